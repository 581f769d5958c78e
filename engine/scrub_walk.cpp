#include "engine/scrub_walk.h"

#include <algorithm>

namespace latchkey::engine {

namespace {

constexpr std::size_t kNodesInBatch = 64;

class Collector {
 public:
  Collector(NodeCache& cache, TreeId tree, const std::optional<Key>& from, NodeBatch& batch)
      : cache_(cache), tree_(tree), from_(from), batch_(batch) {}

  // `lower`: what the parent says of the node's keys; nothing of the tree's first nodes. One that
  // begins before `from` was in an earlier batch. A lost node is in its batch; what lies below it
  // cannot be.
  void walk(const Pointer& pointer, const std::optional<Key>& lower) {
    if (!from_ || (lower && *lower >= *from_)) batch_.nodes.push_back(pointer);
    if (pointer.level == 0) return;
    const auto node = cache_.get(pointer, tree_);
    if (!node) return;
    const u32 first = from_ ? (*node)->child_index(*from_) : 0;
    for (u32 i = first; i < (*node)->count() && !batch_.next; ++i) {
      // A child that is its parent's first begins where the parent does: it belongs to that batch.
      const auto child_lower = i == 0 ? lower : std::optional((*node)->key(i));
      if (i != 0 && batch_.nodes.size() >= kNodesInBatch)
        batch_.next = child_lower;
      else
        walk((*node)->child(i), child_lower);
    }
  }

 private:
  NodeCache& cache_;
  const TreeId tree_;
  const std::optional<Key>& from_;
  NodeBatch& batch_;
};

}  // namespace

Result<void> collect_nodes(const Forest& forest, NodeCache& cache, TreeId tree,
                           const std::optional<Key>& from, NodeBatch& batch) {
  LK_TRY(const Pointer root, forest.root(tree));
  Collector(cache, tree, from, batch).walk(root, std::nullopt);
  return {};
}

Result<void> collect_extents(const Forest& forest, u64 block, u64 blocks_max,
                             std::vector<ExtentRecord>& batch) {
  u64 left = blocks_max;
  // The record that begins before `block` and reaches beyond it.
  const auto add = [&](const Key& key, Bytes value) {
    if (key.type != kExtentRecordType) return true;
    auto record = decode_extent(key, value);
    if (!record || record->run.end() <= block) return true;
    const u32 from = static_cast<u32>(std::max(block, record->run.block) - record->run.block);
    const u32 count = static_cast<u32>(std::min<u64>(record->run.count - from, left));
    if (count == 0) return false;
    ExtentRecord part = std::move(*record);
    part.run = {part.run.block + from, count};
    part.checksums.erase(part.checksums.begin(), part.checksums.begin() + from);
    part.checksums.resize(count);
    left -= count;
    batch.push_back(std::move(part));
    return left != 0;
  };
  const u64 before = block >= kRecordBlocksMax ? block - kRecordBlocksMax : 0;
  return forest.scan(kExtentTree, {before, 0, 0}, {~u64{0}, 255, ~u64{0}}, add);
}

}  // namespace latchkey::engine
