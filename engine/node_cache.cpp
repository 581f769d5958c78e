#include "engine/node_cache.h"

namespace latchkey::engine {

NodeCache::NodeCache(const Options& options, ReadNode read)
    : options_(options), read_(std::move(read)) {}

bool NodeCache::is(const Node& node, const Pointer& pointer, TreeId tree) {
  const NodeHeader& header = node.header();
  return header.generation == pointer.generation && header.level == pointer.level &&
         may_belong(header.tree, tree);
}

NodePtr NodeCache::find(const Pointer& pointer, TreeId tree) {
  Lock lock(mutex_);
  const auto it = entries_.find(pointer.place[0]);
  if (it == entries_.end()) return nullptr;
  if (!is(*it->second.node, pointer, tree)) return nullptr;
  if (!it->second.pinned) lru_.splice(lru_.begin(), lru_, it->second.position);
  return it->second.node;
}

Result<NodePtr> NodeCache::read_place(const Pointer& pointer, TreeId tree, u32 place,
                                      const char*& wrong) const {
  NodePtr node = Node::create(options_.node_bytes);
  if (!node) return fail(Errc::no_memory, "no memory for a tree node");
  LK_TRYV(read_(pointer.place[place], node->bytes()));
  if (checksum128(node->bytes()) != pointer.checksum)
    wrong = "a tree node does not match its checksum";
  else
    wrong = node->validate(
        {options_.volume, tree, pointer.level, pointer.generation, pointer.place[0]});
  return node;
}

Result<NodePtr> NodeCache::get(const Pointer& pointer, TreeId tree) {
  if (NodePtr node = find(pointer, tree)) return node;
  const char* wrong = nullptr;
  auto node = read_place(pointer, tree, 0, wrong);
  if (!node || wrong != nullptr) {
    const char* wrong_twin = nullptr;
    auto twin = read_place(pointer, tree, 1, wrong_twin);
    if (!twin && !node) return node;
    if (!twin || wrong_twin != nullptr)
      return fail(Errc::damaged, wrong != nullptr ? wrong : "a tree node cannot be read",
                  pointer.place[0] * kBlockBytes);
    node = std::move(twin);
    mended_.fetch_add(1, std::memory_order_relaxed);
  }
  Lock lock(mutex_);
  std::list<u64> place(1, pointer.place[0]);  // what can fail for memory comes first
  const auto [it, fresh] = entries_.try_emplace(pointer.place[0]);
  if (!fresh && is(*it->second.node, pointer, tree)) return it->second.node;
  if (!fresh && it->second.pinned) return *node;  // dirty ones are never displaced
  if (fresh) {
    lru_.splice(lru_.begin(), place);
    it->second.position = lru_.begin();
  }
  it->second.node = *node;
  shrink();
  return *node;
}

void NodeCache::shrink() {
  const u64 nodes_max = options_.cache_bytes / options_.node_bytes + 8;
  while (lru_.size() > nodes_max) {
    entries_.erase(lru_.back());
    lru_.pop_back();
  }
}

void NodeCache::insert_dirty(const NodePtr& node) {
  Lock lock(mutex_);
  Entry& entry = entries_[node->place()];
  if (entry.node && !entry.pinned) lru_.erase(entry.position);
  entry.node = node;
  entry.pinned = true;
}

void NodeCache::make_clean(u64 place) {
  Lock lock(mutex_);
  const auto it = entries_.find(place);
  if (it == entries_.end() || !it->second.pinned) return;
  lru_.push_front(place);
  it->second.pinned = false;
  it->second.position = lru_.begin();
  shrink();
}

void NodeCache::drop(u64 place) {
  Lock lock(mutex_);
  const auto it = entries_.find(place);
  if (it == entries_.end()) return;
  if (!it->second.pinned) lru_.erase(it->second.position);
  entries_.erase(it);
}

}  // namespace latchkey::engine
