#pragma once
// Room for tree nodes, set aside before it is promised (design D7).
//
// A node lies in neighbouring blocks. Counting free blocks is therefore no promise: a device of
// which every other block is free has room for any amount of data and for no node at all. So what
// a reservation may need for nodes is held here as allocated runs of one node each, and a
// transaction takes its nodes from here. What transactions free comes back after two commits, when
// fill() takes it before further data can, but nothing that was promised to data.
//
// Two sides, so that the two places of a node are far from each other: one from the end of the
// device, one from the middle. Nothing of it is on disk: blocks of the pool are free there.
// Locking: the owner of FreeSpace (Store: space_mutex) locks this with it.

#include <array>
#include <vector>

#include "base/result.h"
#include "engine/free_space.h"

namespace latchkey::engine {

class NodePool {
 public:
  // `space` must outlive this.
  NodePool(FreeSpace& space, u32 node_blocks) : space_(space), node_blocks_(node_blocks) {}

  // Both places of one node, allocated. From the pool, or from free space if it is empty.
  // Errors: no_space, and those of FreeSpace::allocate.
  Result<std::array<BlockRun, 2>> take();
  // A node that was used and never written (see FreeSpace::release_unwritten): its places come
  // back at once.
  void give_back(const std::array<u64, 2>& places);

  // Sets aside until there are `blocks`, of what is free beyond `promised` blocks. Errors: as
  // take(); what was found is kept.
  Result<void> fill(u64 blocks, u64 promised);
  // Gives to free space what is beyond `blocks`.
  void trim(u64 blocks);

  // Nodes of the last commit were freed: their room is expected back with `transaction` + 2.
  void note_freed(u64 transaction, u64 blocks);
  void note_unpinned(u64 running);

  u64 blocks() const { return (sides_[0].size() + sides_[1].size()) * node_blocks_; }
  u64 blocks_coming() const { return coming_; }

 private:
  enum Side : u8 { end, middle };
  Result<void> add(Side side);
  Result<BlockRun> take_from(Side side);

  FreeSpace& space_;
  const u32 node_blocks_;
  std::array<std::vector<u64>, 2> sides_;  // first blocks
  std::map<u64, u64> freed_;               // blocks by transaction
  u64 coming_ = 0;
};

}  // namespace latchkey::engine
