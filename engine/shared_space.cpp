// How much space a store needs beyond the rest because its trees share nodes (design D7).
//
// To change a record below a shared node is to copy the nodes on the way, whose old copies stay,
// and to write the counts of their children and of the leaf's data: records of the extent table.
// Two bounds, in nodes:
//   copies   A commit writes a node of the extent table once at most, so no change copies more
//            than all of it; nor more than one for each count that it touches. The old ones come
//            back after two commits: begin() waits for them.
//   growth   The copied nodes themselves, new counts, and extent records that had to be split. It
//            cannot be more than a copy of all nodes for each tree beside the first, taken together
//            with an extent table twice as long.
// What one operation of a few leaves needs lies in the pool at all times, delete has it too. What
// the leaves of all reservations need is kept free, as far as it is more than that.

#include <algorithm>

#include "engine/store_state.h"

namespace latchkey::engine {

namespace {

// What an operation changes that is not a flush: a rename has the most.
constexpr u64 kLeavesAnOperation = 8;
// A record that refers to data says where and how much.
constexpr u64 kRunRecordBytesMin = sizeof(LeafSlot) + 12;
// Nodes of the extent table over which the records of one run may be spread.
constexpr u64 kNodesARun = 3;
constexpr u64 kExtentNodesSlack = 8;

}  // namespace

void StoreState::note_forest() {
  Lock lock(space_mutex);
  forest_size = {forest->node_count(), forest->extent_node_count(), forest->shared_trees(),
                 forest->height()};
}

u64 StoreState::shared_trees() const {
  if (clones_reserved == 0) return forest_size.shared_trees < 2 ? 0 : forest_size.shared_trees;
  return std::max<u64>(forest_size.shared_trees, 1) + clones_reserved;
}

u64 StoreState::shared_copies(u64 leaves) const {
  if (shared_trees() == 0) return 0;
  const u64 runs = fixed.node_bytes / kRunRecordBytesMin;
  const u64 children = fixed.node_bytes / sizeof(InteriorEntry);
  const u64 one = (runs * kNodesARun + children * forest_size.height) * 9 / 8;
  const u64 nodes = std::min(leaves * one, forest_size.extent_nodes + kExtentNodesSlack);
  return nodes * 2 * node_blocks();
}

u64 StoreState::shared_growth(u64 leaves) const {
  const u64 trees = shared_trees();
  if (trees == 0) return 0;
  const u64 runs = fixed.node_bytes / kRunRecordBytesMin;
  const u64 split_bytes = sizeof(LeafSlot) + sizeof(ExtentHeadDisk) + kContextBytesMax;
  // Both ends of each run may split a record; nodes are two thirds full where many are added.
  const u64 splits = runs * 2 * split_bytes * 3 / 2 / fixed.node_bytes + 1;
  const u64 one = 1 + u64{3} * forest_size.height + splits;
  const u64 all = (trees - 1) * forest_size.nodes + forest_size.extent_nodes + kExtentNodesSlack;
  return std::min(leaves * one, all) * 2 * node_blocks();
}

u64 StoreState::shared_floor() const {
  return shared_copies(kLeavesAnOperation) + shared_growth(kLeavesAnOperation);
}

u64 StoreState::shared_reserve() const {
  return shared_copies(leaves_reserved + kLeavesAnOperation) +
         shared_growth(leaves_reserved + kLeavesAnOperation);
}

// Whether the pool has what a transaction may need that changes so many leaves: fewer than the
// dirty nodes that begin() leaves room for. Nodes of a store without shared trees are counted by
// reserve() alone.
bool StoreState::may_begin(u64 leaves, u64 tree_blocks) {
  const u64 ordinary = fixed_reserve() / 4;
  leaves = std::min(leaves, dirty_nodes_max / 2);
  Lock lock(space_mutex);
  if (shared_trees() == 0 || leaves == 0) return true;
  const u64 wanted = ordinary + tree_blocks + shared_copies(leaves) + shared_growth(leaves);
  return pool->blocks() >= wanted || pool->fill(wanted, data_kept()).has_value();
}

}  // namespace latchkey::engine
