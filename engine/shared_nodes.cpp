// The forest's rules of sharing: counts of nodes, clones of trees, and their end. Rodeh, "B-trees,
// Shadowing, and Clones", ACM Transactions on Storage 3(4), 2008.

#include <algorithm>

#include "base/check.h"
#include "engine/extent_table.h"
#include "engine/forest.h"

namespace latchkey::engine {

namespace {

constexpr Key kLastKey{~u64{0}, 255, ~u64{0}};

Key key_of(const Pointer& pointer) { return {pointer.place[0], kNodeRecordType, 0}; }

// Runs of data whose release costs about as much as a node's.
constexpr u64 kRunsANode = 16;

}  // namespace

void Forest::find_shared_trees() {
  shared_trees_ = 0;
  height_ = 0;
  const auto scanned = scan(kRootTree, {}, kLastKey, [this](const Key& key, Bytes value) {
    if (!is_subvolume(key.object) || value.size() != sizeof(TreeRecordDisk)) return true;
    const auto record = load_disk<TreeRecordDisk>(value);
    if ((record.flags & kTreeShares) != 0) ++shared_trees_;
    height_ = std::max<u32>(height_, std::min(record.root.level, kLevelMax));
    return true;
  });
  if (!scanned) shared_trees_ = std::max<u64>(shared_trees_, 2);
}

// --- counts ------------------------------------------------------------------------------------

Result<u64> Forest::references(u64 place) const {
  u64 references = 1;
  const Key key{place, kNodeRecordType, 0};
  LK_TRYV(scan(kExtentTree, key, key, [&](const Key&, Bytes value) {
    references = value.size() == sizeof(NodeRecordDisk)
                     ? u64{load_disk<NodeRecordDisk>(value).references}
                     : u64{0};
    return false;
  }));
  if (references == 0)
    return fail(Errc::malformed, "a node's count of references is malformed", place * kBlockBytes);
  return references;
}

Result<bool> Forest::is_shared(const Pointer& pointer, TreeId tree) {
  if (!is_subvolume(tree) || !sharing() || own_nodes_.contains(pointer.place[0])) return false;
  LK_TRY(const u64 count, references(pointer.place[0]));
  if (count == 1 && pointer.generation == running_) own_nodes_.insert(pointer.place[0]);
  return count > 1;
}

Result<void> Forest::put_references(const Pointer& pointer, u64 references) {
  const NodeRecordDisk record{references};
  return put(kExtentTree, key_of(pointer), std::as_bytes(std::span(&record, 1)));
}

Result<void> Forest::add_reference(const Pointer& pointer) {
  own_nodes_.erase(pointer.place[0]);
  LK_TRY(const u64 count, references(pointer.place[0]));
  return put_references(pointer, count + 1);
}

Result<void> Forest::drop_reference(const Pointer& pointer) {
  LK_TRY(const u64 count, references(pointer.place[0]));
  LK_CHECK(count > 1);
  if (count > 2) return put_references(pointer, count - 1);
  LK_TRY(const bool there, erase(kExtentTree, key_of(pointer)));
  LK_CHECK(there);
  return {};
}

// In the order of the device and joined where they touch, so that the extent table is gone through
// once, from its beginning to its end.
std::vector<BlockRun> Forest::runs_in(const Node& leaf) const {
  std::vector<BlockRun> runs;
  if (!options_.runs_of) return runs;
  for (u32 i = 0; i < leaf.count(); ++i) {
    const auto run = options_.runs_of(leaf.key(i), leaf.value(i));
    if (run && run->count != 0) runs.push_back(*run);
  }
  std::ranges::sort(runs, {}, &BlockRun::block);
  std::vector<BlockRun> joined;
  for (const BlockRun& run : runs) {
    if (!joined.empty() && joined.back().end() == run.block &&
        u64{joined.back().count} + run.count <= ~u32{0})
      joined.back().count += run.count;
    else
      joined.push_back(run);
  }
  return joined;
}

Result<void> Forest::share_content(const Node& node) {
  if (node.level() > 0) {
    for (u32 i = 0; i < node.count(); ++i) LK_TRYV(add_reference(node.child(i)));
    return {};
  }
  std::vector<BlockRun> freed;
  for (const BlockRun& run : runs_in(node)) LK_TRYV(count_references(*this, run, +1, freed));
  LK_CHECK(freed.empty());
  return {};
}

// --- clones ------------------------------------------------------------------------------------

Result<void> Forest::clone_tree(TreeId from, TreeId to) {
  LK_CHECK(is_subvolume(from) && is_subvolume(to));
  if (root(to)) return fail(Errc::exists, "there is such a tree already");
  LK_TRY(const Pointer pointer, root(from));
  LK_TRY(TreeRecordDisk record, record_in_tree(from));
  if ((record.flags & kTreeShares) == 0) {
    record.flags = record.flags | kTreeShares;
    LK_TRYV(put_tree_record(from, record));
    ++shared_trees_;
  }
  record.root = to_disk(pointer);
  record.promised_blocks = u64{0};  // promises name their tree: in the clone they are holes
  LK_TRYV(put_tree_record(to, record));
  ++shared_trees_;
  changed_roots_[to] = pointer;
  return add_reference(pointer);
}

Result<bool> Forest::drop_tree_step(TreeId tree, u32 nodes_max, std::vector<BlockRun>& freed) {
  LK_CHECK(is_subvolume(tree));
  LK_TRY(Pointer pointer, root(tree));
  Drop drop{std::max(1U, nodes_max), dirty_nodes_ + u64{2} * nodes_max, freed};
  LK_TRY(const bool gone, drop_below(pointer, tree, drop));
  if (!gone) {
    changed_roots_[tree] = pointer;
    return false;
  }
  LK_TRY(const TreeRecordDisk record, record_in_tree(tree));
  if ((record.flags & kTreeShares) != 0) --shared_trees_;
  changed_roots_.erase(tree);
  return erase(kRootTree, {tree, kTreeRecordType, 0});
}

// Gives up the reference `pointer`; what only it held goes from the end on while the step has room.
// False: something is left, and `pointer` leads to it.
Result<bool> Forest::drop_below(Pointer& pointer, TreeId tree, Drop& drop) {
  if (drop.nodes_left > 0) --drop.nodes_left;
  LK_TRY(const bool shared, is_shared(pointer, tree));
  if (shared) {
    LK_TRYV(drop_reference(pointer));
    return true;
  }
  if (pointer.level == 0) {
    LK_TRY(const NodePtr leaf, cache_.get(pointer, tree));
    LK_TRYV(drop_leaf(*leaf, drop));
    LK_TRYV(free_node(pointer, tree));
    return true;
  }
  LK_TRY(const NodePtr node, make_writable(pointer, tree));
  while (node->count() > 0) {
    if (drop.nodes_left == 0 || dirty_nodes_ > drop.dirty_nodes_max) return false;
    const u32 last = node->count() - 1;
    Pointer child = node->child(last);
    LK_TRY(const bool gone, drop_below(child, tree, drop));
    if (!gone) {
      node->set_child(last, child);
      return false;
    }
    node->erase(last);
  }
  LK_TRYV(free_node(pointer, tree));
  return true;
}

Result<void> Forest::drop_leaf(const Node& leaf, Drop& drop) {
  const std::vector<BlockRun> runs = runs_in(leaf);
  for (const BlockRun& run : runs) LK_TRYV(count_references(*this, run, -1, drop.freed));
  drop.nodes_left -= std::min<u64>(drop.nodes_left, runs.size() / kRunsANode);
  return {};
}

// --- all records -------------------------------------------------------------------------------

Result<void> Forest::scan_distinct(const VisitOf& visit) const {
  std::vector<TreeId> trees;
  LK_TRYV(scan(kRootTree, {kFirstSubvolume, 0, 0}, kLastKey, [&](const Key& key, Bytes) {
    trees.push_back(key.object);
    return true;
  }));
  std::unordered_set<u64> seen;
  for (const TreeId tree : trees) {
    LK_TRY(const Pointer pointer, root(tree));
    LK_TRY(const bool more, scan_distinct_below(pointer, tree, seen, visit));
    if (!more) break;
  }
  return {};
}

Result<bool> Forest::scan_distinct_below(const Pointer& pointer, TreeId tree,
                                         std::unordered_set<u64>& seen,
                                         const VisitOf& visit) const {
  if (!seen.insert(pointer.place[0]).second) return true;
  LK_TRY(const NodePtr node, cache_.get(pointer, tree));
  for (u32 i = 0; i < node->count(); ++i) {
    if (node->level() == 0) {
      if (!visit(tree, node->key(i), node->value(i))) return false;
      continue;
    }
    LK_TRY(const bool more, scan_distinct_below(node->child(i), tree, seen, visit));
    if (!more) return false;
  }
  return true;
}

}  // namespace latchkey::engine
