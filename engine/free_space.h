#pragma once
// Free space: one bitmap of device blocks in fixed places, so that a commit allocates nothing for
// it and opening a large store walks nothing (design S5).
//
// The device is cut into regions of kRegionBlocks. The first two blocks of a region are the two
// slots of its bitmap, each with generation, region number and checksum; a commit writes the slot
// with the older generation, for the regions it touched. Loading a region takes the newest slot
// whose generation is at most the recovered one.
//
// A block is, in memory, in one of these states:
//   free        may be allocated
//   allocated   handed out, not yet referred to: used in memory, free on disk
//   used        referred to by the running transaction's trees: used in the next commit
//   pinned(f)   freed in transaction f: free in the next commit, not allocated before f + 1 is
//   durable
//               and no reader pins a transaction <= f (E2). Blocks that were allocated and freed in
//               the same transaction and never reached the device's committed state are free at
//               once.
// After open, blocks that the newest slot frees and the older slot still had, in regions whose
// newest slot has the recovered generation g, are pinned(g): the previous superblock set still
// names them.
//
// Locking: the owner (Store) has its own Mutex around every call; nothing here waits but for the
// reading of a region that is not loaded.

#include <functional>
#include <map>
#include <vector>

#include "base/disk.h"
#include "base/result.h"
#include "engine/io.h"
#include "engine/types.h"

namespace latchkey::engine {

inline constexpr u32 kRegionBlocks = 32256;  // 126 MiB; (4096 - 64) * 8 bits
inline constexpr u32 kBitmapHeaderBytes = 64;

class FreeSpace {
 public:
  // reads one block; used for regions that are loaded on demand
  using ReadBlock = std::function<Result<void>(u64 block, MutableBytes into)>;

  // `reserved_places`: blocks that are always used (superblocks, bitmap slots are added by itself).
  FreeSpace(u64 device_blocks, std::vector<BlockRun> reserved_places, ReadBlock read_block);

  // A fresh store: everything free but the reserved places.
  void format();
  // A store recovered at `generation` of which `used_blocks` are used (from the superblock).
  void recover(u64 generation, u64 used_blocks);

  // Up to `wanted` neighbouring free blocks (allocated), near `hint` if it says something
  // (kNowhere: the cursor). min_count: fail with no_space rather than give less. Nodes ask for
  // min_count == wanted.
  Result<BlockRun> allocate(u32 wanted, u32 min_count, u64 hint);
  void cancel(BlockRun run);                            // allocated -> free
  void mark_used(BlockRun run);                         // allocated -> used
  Result<void> release(BlockRun run, u64 transaction);  // used -> pinned(transaction)
  // used -> free at once: a node made and dropped in one transaction
  void release_unwritten(BlockRun run);
  // Everything pinned in transactions <= `transaction` becomes free.
  void unpin_through(u64 transaction);

  // The slots a commit of `generation` must write: one block image each. The regions are clean
  // after.
  struct SlotWrite {
    u64 block;
    std::vector<std::byte> image;  // kBlockBytes
  };
  Result<std::vector<SlotWrite>> slots_to_write(u64 generation);

  u64 blocks_total() const;
  u64 blocks_used() const;  // used, reserved places included
  u64 blocks_free() const;  // free now
  u64 blocks_pinned() const;
  u64 blocks_allocated() const;
  Result<bool> is_used(u64 block);  // for check: as the next commit would write it

 private:
  // the implementer's
};

}  // namespace latchkey::engine
