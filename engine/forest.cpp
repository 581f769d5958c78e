#include "engine/forest.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::engine {

Forest::Forest(const Options& options, NodeCache& cache, FreeSpace& space, NodePool& pool,
               Mutex& space_mutex)
    : options_(options), cache_(cache), space_(space), pool_(pool), space_mutex_(space_mutex) {}

void Forest::recover(const Pointer& root, u64 generation, u64 node_count, u64 extent_node_count) {
  root_tree_ = root;
  running_ = generation + 1;
  node_count_ = node_count;
  extent_node_count_ = extent_node_count;
}

Result<void> Forest::format(u64 generation) {
  running_ = generation;
  LK_TRY(NodePtr node, make_node(kRootTree, 0, root_tree_));
  (void)node;
  return {};
}

// --- look-ups ----------------------------------------------------------------------------------

Result<TreeRecordDisk> Forest::record_in_tree(TreeId tree) const {
  std::optional<TreeRecordDisk> found;
  const Key key{tree, kTreeRecordType, 0};
  LK_TRYV(scan(kRootTree, key, key, [&](const Key&, Bytes value) {
    if (value.size() == sizeof(TreeRecordDisk)) found = load_disk<TreeRecordDisk>(value);
    return false;
  }));
  if (!found) return fail(Errc::not_found, "there is no such tree");
  return *found;
}

Result<Pointer> Forest::root_in_tree(TreeId tree) const {
  LK_TRY(const TreeRecordDisk record, record_in_tree(tree));
  const Pointer found = from_disk(record.root);
  if (found.level > kLevelMax) return fail(Errc::malformed, "a tree is impossibly high");
  if (found.generation >= running_) return fail(Errc::malformed, "a tree is from the future");
  return found;
}

Result<u64> Forest::promised_blocks(TreeId tree) const {
  LK_TRY(const TreeRecordDisk record, record_in_tree(tree));
  return u64{record.promised_blocks};
}

// At once, beside a root that may be an old one: freeze() enters the new root into what is there.
Result<void> Forest::set_promised_blocks(TreeId tree, u64 blocks) {
  LK_TRY(TreeRecordDisk record, record_in_tree(tree));
  record.promised_blocks = blocks;
  return put_tree_record(tree, record);
}

Result<Pointer> Forest::root(TreeId tree) const {
  if (tree == kRootTree) return root_tree_;
  if (const auto it = changed_roots_.find(tree); it != changed_roots_.end()) return it->second;
  return root_in_tree(tree);
}

Result<void> Forest::scan(TreeId tree, const Key& first, const Key& last,
                          const Visit& visit) const {
  LK_TRY(const Pointer pointer, root(tree));
  LK_TRY(const bool more, scan_node(pointer, tree, first, last, visit));
  (void)more;
  return {};
}

Result<bool> Forest::scan_node(const Pointer& pointer, TreeId tree, const Key& first,
                               const Key& last, const Visit& visit) const {
  LK_TRY(const NodePtr node, cache_.get(pointer, tree));
  if (node->level() == 0) {
    for (u32 i = node->lower_bound(first); i < node->count(); ++i) {
      const Key key = node->key(i);
      if (last < key || !visit(key, node->value(i))) return false;
    }
    return true;
  }
  for (u32 i = node->child_index(first); i < node->count(); ++i) {
    if (i > 0 && last < node->key(i)) return false;
    LK_TRY(const bool more, scan_node(node->child(i), tree, first, last, visit));
    if (!more) return false;
  }
  return true;
}

Result<void> Forest::visit_before(TreeId tree, const Key& key, const Visit& visit) const {
  LK_TRY(const Pointer pointer, root(tree));
  LK_TRY(const bool found, before_node(pointer, tree, key, visit));
  (void)found;
  return {};
}

Result<bool> Forest::before_node(const Pointer& pointer, TreeId tree, const Key& key,
                                 const Visit& visit) const {
  LK_TRY(const NodePtr node, cache_.get(pointer, tree));
  if (node->level() == 0) {
    u32 index = node->lower_bound(key);
    if (index == node->count() || key < node->key(index)) {
      if (index == 0) return false;
      --index;
    }
    visit(node->key(index), node->value(index));
    return true;
  }
  // The covering child may hold only larger keys; then the answer is in the one before.
  for (u32 i = node->child_index(key) + 1; i-- > 0;) {
    LK_TRY(const bool found, before_node(node->child(i), tree, key, visit));
    if (found) return true;
  }
  return false;
}

// --- nodes -------------------------------------------------------------------------------------

Result<NodePtr> Forest::make_node(TreeId tree, u8 level, Pointer& pointer) {
  NodePtr node = Node::create(options_.node_bytes);
  if (!node) return fail(Errc::no_memory, "no memory for a tree node");
  {
    Lock lock(space_mutex_);
    LK_TRY(const auto places, pool_.take());
    for (const BlockRun& place : places) space_.mark_used(place);
    pointer = {{places[0].block, places[1].block}, running_, level, {}};
  }
  node->init(options_.volume, tree, level, running_, pointer.place[0]);
  cache_.insert_dirty(node);
  ++node_count_;
  if (tree == kExtentTree) ++extent_node_count_;
  if (is_subvolume(tree)) height_ = std::max<u32>(height_, level);
  ++dirty_nodes_;
  return node;
}

Result<NodePtr> Forest::make_writable(Pointer& pointer, TreeId tree) {
  LK_TRY(NodePtr node, cache_.get(pointer, tree));
  LK_TRY(const bool shared, is_shared(pointer, tree));
  if (!shared && pointer.generation == running_) return node;
  const Pointer old = pointer;
  LK_TRY(NodePtr copy, make_node(tree, node->level(), pointer));
  const NodeHeader header = copy->header();
  copy->copy_from(*node);
  copy->header().generation = header.generation;
  copy->header().tree = header.tree;
  copy->header().place = header.place;
  if (!shared) {
    LK_TRYV(free_node(old, tree));
    return copy;
  }
  LK_TRYV(share_content(*copy));
  LK_TRYV(drop_reference(old));
  return copy;
}

Result<void> Forest::free_node(const Pointer& pointer, TreeId tree) {
  {
    Lock lock(space_mutex_);
    if (pointer.generation == running_) {
      pool_.give_back(pointer.place);
    } else {
      for (const u64 place : pointer.place)
        LK_TRYV(space_.release({place, node_blocks()}, running_));
      pool_.note_freed(running_, u64{2} * node_blocks());
    }
  }
  cache_.drop(pointer.place[0]);
  own_nodes_.erase(pointer.place[0]);
  --node_count_;
  if (tree == kExtentTree) --extent_node_count_;
  if (pointer.generation == running_) --dirty_nodes_;
  return {};
}

// --- changes -----------------------------------------------------------------------------------

Result<void> Forest::create_tree(TreeId tree) {
  if (root(tree)) return fail(Errc::exists, "there is such a tree already");
  Pointer pointer;
  LK_TRY(NodePtr node, make_node(tree, 0, pointer));
  (void)node;
  changed_roots_[tree] = pointer;
  // The record is put at once, so that freeze() only replaces records and allocates little.
  return put_tree_record(tree, {to_disk(pointer), u64{0}, u64{0}, {}});
}

Result<void> Forest::put_tree_record(TreeId tree, const TreeRecordDisk& record) {
  return put(kRootTree, {tree, kTreeRecordType, 0}, std::as_bytes(std::span(&record, 1)));
}

Result<void> Forest::put(TreeId tree, const Key& key, Bytes value) {
  LK_CHECK_MSG(value.size() <= record_bytes_max(options_.node_bytes), "a record is too large");
  LK_TRY(Pointer pointer, root(tree));
  LK_TRY(const std::optional<Split> split, put_into(pointer, tree, key, value));
  if (split) LK_TRYV(grow_root(pointer, tree, *split));
  (tree == kRootTree ? root_tree_ : changed_roots_[tree]) = pointer;
  return {};
}

Result<void> Forest::grow_root(Pointer& root, TreeId tree, const Split& split) {
  Pointer top;
  LK_TRY(NodePtr node, make_node(tree, static_cast<u8>(root.level + 1), top));
  LK_CHECK(top.level <= kLevelMax);
  node->insert_child(0, Key{}, root);
  node->insert_child(1, split.key, split.pointer);
  root = top;
  return {};
}

Result<std::optional<Forest::Split>> Forest::put_into(Pointer& pointer, TreeId tree, const Key& key,
                                                      Bytes value) {
  LK_TRY(NodePtr node, make_writable(pointer, tree));
  if (node->level() == 0) return put_leaf(*node, tree, key, value);
  const u32 index = node->child_index(key);
  Pointer child = node->child(index);
  LK_TRY(const std::optional<Split> split, put_into(child, tree, key, value));
  node->set_child(index, child);
  if (!split) return std::optional<Split>{};
  return add_child(*node, tree, index + 1, *split);
}

Result<std::optional<Forest::Split>> Forest::put_leaf(Node& leaf, TreeId tree, const Key& key,
                                                      Bytes value) {
  u32 index = leaf.lower_bound(key);
  if (index < leaf.count() && leaf.key(index) == key) {
    if (leaf.replace(index, value)) return std::optional<Split>{};
    leaf.erase(index);
  }
  if (leaf.has_room(static_cast<u32>(value.size()))) {
    leaf.insert(index, key, value);
    return std::optional<Split>{};
  }
  Split split;
  LK_TRY(NodePtr right, make_node(tree, 0, split.pointer));
  leaf.split_into(*right, index);
  Node* target = index <= leaf.count() ? &leaf : right.get();
  if (target == right.get()) index -= leaf.count();
  if (!target->has_room(static_cast<u32>(value.size()))) {
    // Only after the uneven split of an ascending insert: the new record goes right.
    LK_CHECK(index == leaf.count());
    target = right.get();
    index = 0;
  }
  target->insert(index, key, value);
  split.key = right->key(0);
  return std::optional<Split>(split);
}

Result<std::optional<Forest::Split>> Forest::add_child(Node& node, TreeId tree, u32 index,
                                                       const Split& child) {
  if (!node.is_place_of_child(index, child.key))
    return fail(Errc::malformed, "a tree node has keys that do not belong there");
  if (node.has_room_for_child()) {
    node.insert_child(index, child.key, child.pointer);
    return std::optional<Split>{};
  }
  Split split;
  LK_TRY(NodePtr right, make_node(tree, node.level(), split.pointer));
  node.split_into(*right, index);
  if (index <= node.count() && node.has_room_for_child())
    node.insert_child(index, child.key, child.pointer);
  else
    right->insert_child(index - node.count(), child.key, child.pointer);
  split.key = right->key(0);
  return std::optional<Split>(split);
}

Result<bool> Forest::erase(TreeId tree, const Key& key) {
  bool there = false;
  LK_TRYV(scan(tree, key, key, [&](const Key&, Bytes) {
    there = true;
    return false;
  }));
  if (!there) return false;
  LK_TRY(Pointer pointer, root(tree));
  LK_TRY(const bool erased, erase_from(pointer, tree, key));
  LK_CHECK(erased);
  while (pointer.level > 0) {  // a root with one child is one level too many
    LK_TRY(const NodePtr node, cache_.get(pointer, tree));
    LK_TRY(const bool shared, is_shared(pointer, tree));
    if (node->count() != 1 || shared) break;
    const Pointer child = node->child(0);
    LK_TRYV(free_node(pointer, tree));
    pointer = child;
  }
  (tree == kRootTree ? root_tree_ : changed_roots_[tree]) = pointer;
  return true;
}

Result<bool> Forest::erase_from(Pointer& pointer, TreeId tree, const Key& key) {
  LK_TRY(NodePtr node, make_writable(pointer, tree));
  if (node->level() == 0) {
    const u32 index = node->lower_bound(key);
    if (index == node->count() || node->key(index) != key) return false;
    node->erase(index);
    return true;
  }
  const u32 index = node->child_index(key);
  Pointer child = node->child(index);
  LK_TRY(const bool erased, erase_from(child, tree, key));
  node->set_child(index, child);
  LK_TRYV(tidy_child(*node, tree, index));
  return erased;
}

// After an erase below child `index`: an empty child goes, a thin one joins a neighbour.
Result<void> Forest::tidy_child(Node& node, TreeId tree, u32 index) {
  const Pointer pointer = node.child(index);
  LK_TRY(NodePtr child, cache_.get(pointer, tree));
  if (child->count() == 0) {
    if (node.count() == 1) return {};  // the level goes with the root
    LK_TRYV(free_node(pointer, tree));
    node.erase(index);
    return {};
  }
  if (child->used_bytes() > options_.node_bytes / 4 || node.count() < 2) return {};
  return try_merge(node, tree, index + 1 < node.count() ? index : index - 1);
}

Result<void> Forest::try_merge(Node& node, TreeId tree, u32 left) {
  Pointer left_pointer = node.child(left);
  const Pointer right_pointer = node.child(left + 1);
  auto left_node = cache_.get(left_pointer, tree);
  auto right_node = cache_.get(right_pointer, tree);
  if (!left_node || !right_node) return {};  // a neighbour that cannot be read stays as it is
  // One of the two is private, since the erase went through it. To join it with a shared one would
  // copy what is shared to save less than that.
  LK_TRY(const bool left_shared, is_shared(left_pointer, tree));
  LK_TRY(const bool right_shared, is_shared(right_pointer, tree));
  if (left_shared || right_shared) return {};
  if ((*left_node)->free_bytes() < (*right_node)->used_bytes() + options_.node_bytes / 8) return {};
  LK_TRY(NodePtr target, make_writable(left_pointer, tree));
  if (!target->append(**right_node, node.key(left + 1))) {
    node.set_child(left, left_pointer);
    return fail(Errc::malformed, "a tree node has keys that do not belong there");
  }
  LK_TRYV(free_node(right_pointer, tree));
  node.set_child(left, left_pointer);
  node.erase(left + 1);
  return {};
}

// --- commit ------------------------------------------------------------------------------------

void Forest::finalize(Pointer& pointer, TreeId tree, Finalized& done) {
  if (pointer.generation != running_) return;
  const bool may_be_met_again = sharing() && is_subvolume(tree);
  if (may_be_met_again) {
    const auto it = done.shared.find(pointer.place[0]);
    if (it != done.shared.end()) {
      pointer.checksum = it->second;
      return;
    }
  }
  auto node = cache_.get(pointer, tree);  // dirty nodes are always in memory
  LK_CHECK(node);
  if ((*node)->level() > 0) {
    for (u32 i = 0; i < (*node)->count(); ++i) {
      Pointer child = (*node)->child(i);
      if (child.generation != running_) continue;
      finalize(child, tree, done);
      (*node)->set_child(i, child);
    }
  }
  pointer.checksum = checksum128((*node)->bytes());
  if (may_be_met_again) done.shared[pointer.place[0]] = pointer.checksum;
  done.writes.push_back({*node, pointer.place});
}

Result<Forest::Frozen> Forest::freeze() {
  Frozen frozen;
  Finalized done{frozen.nodes, {}};
  for (const auto& [tree, root] : changed_roots_) {
    Pointer pointer = root;
    finalize(pointer, tree, done);
    LK_TRY(TreeRecordDisk record, record_in_tree(tree));
    record.root = to_disk(pointer);
    LK_TRYV(put_tree_record(tree, record));
  }
  finalize(root_tree_, kRootTree, done);
  LK_CHECK_MSG(frozen.nodes.size() == dirty_nodes_, "a dirty node is not reachable");
  changed_roots_.clear();  // not before: one that fails half way leaves what can be read
  frozen.root = root_tree_;
  frozen.generation = running_;
  dirty_nodes_ = 0;
  own_nodes_.clear();
  ++running_;
  return frozen;
}

}  // namespace latchkey::engine
