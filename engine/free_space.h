#pragma once
// Free space: one bitmap of device blocks in fixed places, so that a commit allocates nothing for
// it and opening a large store walks nothing (design S5).
//
// The device is cut into regions of kRegionBlocks. The first two blocks of a region are the two
// slots of its bitmap; a commit writes the slot with the older generation, for the regions it
// touched. Loading a region takes the newest slot whose generation is at most the recovered one.
//
// A block is, in memory, in one of these states:
//   free        may be allocated
//   allocated   handed out, not yet referred to: used in memory, free on disk
//   used        referred to by the running transaction's trees: used in the next commit
//   pinned(f)   freed in transaction f: free in the next commit, not allocated before f + 1 is
//   durable
//               and no reader pins a transaction <= f (E2)
//
// A slot that does not verify is either the torn write of a commit that never came to be, whose
// first sector then names a later generation or the old one, or rot. If its header says that it
// could be the needed one, or says nothing, the region is not trusted: nothing is allocated from it
// and nothing freed in it (a leak, told by check) until a repair.
//
// Locking: the owner (Store) has its own Mutex around every call; nothing here waits but for the
// reading of a region that is not loaded.

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/result.h"
#include "engine/free_space_format.h"
#include "engine/io_buffer.h"
#include "engine/types.h"

namespace latchkey::engine {

class FreeSpace {
 public:
  // Reads one block; used for regions that are loaded on demand.
  using ReadBlock = std::function<Result<void>(u64 block, MutableBytes into)>;

  // `reserved_places`: blocks that are always used; the bitmap slots are added by itself.
  FreeSpace(u64 device_blocks, std::vector<BlockRun> reserved_places, ReadBlock read_block);

  // A fresh store: everything free but the reserved places; every region is written by the next
  // commit, in both slots.
  void format();
  // A store recovered at `generation` of which `used_blocks` are used (from the superblock).
  void recover(u64 generation, u64 used_blocks);

  // Neighbouring free blocks, at most `wanted`, at least `count_min` (else no_space). Nodes ask for
  // count_min == wanted. `hint`: a block to look from; kNowhere is the cursor of the last call.
  struct Want {
    u32 wanted = 1;
    u32 count_min = 1;
    u64 hint = kNowhere;
  };
  Result<BlockRun> allocate(Want want);
  void cancel(BlockRun run);     // allocated -> free
  void mark_used(BlockRun run);  // allocated -> used
  // used -> pinned(transaction). damaged: a block was not used; nothing is changed then.
  Result<void> release(BlockRun run, u64 transaction);
  // used -> free at once: a node made and dropped in one transaction.
  void release_unwritten(BlockRun run);
  // Everything pinned in transactions <= `transaction` becomes free.
  void unpin_through(u64 transaction);

  // The slots a commit of `generation` must write: one block each. The regions are clean after.
  struct SlotWrite {
    u64 block = 0;
    BitmapSlotDisk slot;
  };
  std::vector<std::unique_ptr<SlotWrite>> slots_to_write(u64 generation);

  u64 blocks_total() const { return device_blocks_; }
  u64 blocks_used() const { return used_; }  // reserved places included
  u64 blocks_free() const { return device_blocks_ - used_ - pinned_ - allocated_; }
  u64 blocks_pinned() const { return pinned_; }
  u64 blocks_allocated() const { return allocated_; }
  // For check: as the next commit would write it. damaged: the region's bitmap is not trusted.
  Result<bool> is_used(u64 block);

 private:
  struct Region {
    std::vector<u64> used;  // bits of the next commit
    std::vector<u64> busy;  // used, allocated or pinned
    u32 free_count = 0;     // bits of busy that are clear
    bool dirty = false;
    bool both_slots = false;  // format: write the two of them
    bool trusted = true;
    u64 slot_generation[2] = {0, 0};
  };
  struct Found {
    u32 first = 0;
    u32 count = 0;
  };

  u32 region_count() const;
  u32 region_bits(u32 region) const;
  Result<Region*> load(u32 index);
  void set_reserved(u32 index, Region& region) const;
  static bool test(const std::vector<u64>& bits, u32 bit) {
    return (bits[bit / 64] >> (bit % 64)) & 1;
  }
  static void set(std::vector<u64>& bits, u32 first, u32 count, bool value);
  Found find_run(const Region& region, u32 bits, u32 from, u32 wanted) const;
  // Splits at region borders.
  void each_part(BlockRun run, const std::function<void(Region&, u32 first, u32 count)>& fn);
  void make_free(BlockRun run);

  u64 device_blocks_;
  std::vector<BlockRun> reserved_places_;
  ReadBlock read_block_;
  std::vector<std::unique_ptr<Region>> regions_;
  std::map<u64, std::vector<BlockRun>> pinned_runs_;  // by transaction
  u64 generation_ = 0;                                // recovered
  u64 used_ = 0, pinned_ = 0, allocated_ = 0;
  u64 data_cursor_ = 0;
  u64 node_cursor_ = 0;
};

}  // namespace latchkey::engine
