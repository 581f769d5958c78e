#pragma once
// Free space: one bitmap of device blocks in fixed places, so that a commit allocates nothing for
// it and opening a large store walks nothing (design S5).
//
// The device is cut into regions (space_layout.h). Each has three slots for its bitmap. The slot
// map of a generation says, for every region, which slot is meant; it lies in the place of its
// generation modulo three. A commit of g writes, for each region that it touched, the slot that
// neither g - 1 nor g - 2 means, and the map; so a torn commit harms nothing of the two before it,
// what it left behind is named by nobody, and a slot that is named and does not verify, or is of
// another generation than the map says, is damage, without doubt. A format writes no slots: a
// region that the map calls never written holds the reserved places only.
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
// After recovery at g, blocks that g - 1 used and g does not are pinned(g): the previous superblock
// set still names them.
//
// Damage. A region whose slot cannot be read or does not verify gives nothing and takes nothing
// back: releases into it succeed, but the blocks are lost until a repair, and its slot is left as
// it is. The counts then call as much of it lost as may have been free, so free never promises too
// much; what was promised before may no longer be there, and allocate() fails with that region's
// error. damage() lists all that was met, for check. What is only needed to find the pins of the
// recovered generation is listed, but does no harm: those blocks may be reused one commit early. If
// the map itself is damaged recover() fails, and of what is below only the counts, release() (lost)
// and damage() work: enough to read.
//
// Memory: 16 KiB for each region in use, of which limit_loaded() keeps at most so many that are not
// in use by pinned or allocated blocks; 16 bytes and some for any other.
//
// Locking: the owner (Store) has its own Mutex around every call; nothing here waits but for the
// reading of a region that is not loaded.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/disk.h"
#include "base/result.h"
#include "engine/free_region.h"
#include "engine/free_space_format.h"
#include "engine/io.h"
#include "engine/slot_map.h"
#include "engine/space_layout.h"
#include "engine/types.h"

namespace latchkey::engine {

class FreeSpace {
 public:
  // Reads one block into aligned memory; used for the map and for regions, loaded on demand.
  using ReadBlock = std::function<Result<void>(u64 block, MutableBytes into)>;

  // `reserved_places`: blocks that are always used (superblocks); its own it finds beside them. At
  // least kRegionBlocksMin blocks; the places are a function of the size, or nothing is found
  // again.
  FreeSpace(u64 device_blocks, std::vector<BlockRun> reserved_places, ReadBlock read_block);

  // A fresh store of generation 0: everything free but the reserved places.
  void format();
  // What the superblock says of a generation's free space: what blocks_used() and map_checksum()
  // said beside slots_to_write().
  struct Root {
    u64 generation = 0;
    u64 used_blocks = 0;
    Checksum map_checksum{}, map_checksum_before{};
  };
  // Reads two blocks of maps for each 124 GiB, and no region. Errors: damaged, malformed (the
  // counts disagree), io.
  Result<void> recover(const Root& root);

  // After recover() met damage: what `used` says of each block is so, reserved places aside, and
  // the next two commits write it. Nothing is pinned: the first of them must change nothing else.
  void rebuild(u64 generation, const std::vector<bool>& used);

  // Neighbouring free blocks, at most `wanted`, at least `count_min` (else no_space), become
  // allocated. `hint`: a block to look from; kNowhere is the cursor. Runs of one size (count_min ==
  // wanted > 1: nodes) come from the end of the device, others one after the other from its
  // beginning, so that writers in sequence get long runs. A run is inside one region. Errors:
  // no_space; damaged, malformed, io if it is for damage that nothing is found.
  struct Want {
    u32 wanted = 1;
    u32 count_min = 1;
    u64 hint = kNowhere;
  };
  Result<BlockRun> allocate(Want want);
  // free -> allocated: these very blocks. malformed: one of them is not free, and nothing changed.
  Result<void> claim(BlockRun run);
  void cancel(BlockRun run);     // allocated -> free
  void mark_used(BlockRun run);  // allocated -> used
  // used -> pinned(transaction). Changes nothing on an error: malformed (a block is not used: the
  // tree that was followed here is damaged, or the bitmap).
  Result<void> release(BlockRun run, u64 transaction);
  // used -> free at once: a node made and dropped in one transaction
  void release_unwritten(BlockRun run);
  // Everything pinned in transactions <= `transaction` becomes free.
  void unpin_through(u64 transaction);
  // What that would free, as far as its regions are loaded, in order, neighbours as one run.
  std::vector<BlockRun> pinned_through(u64 transaction) const;

  // The blocks a commit of `generation` must write: one image each, of the state as it is now. The
  // regions are clean after. `generation` is one more than that of the last call or of recover(),
  // and the commit of that one is durable: after a failed commit there is no next.
  struct SlotWrite {
    u64 block;
    std::vector<std::byte> image;  // kBlockBytes
  };
  Result<std::vector<SlotWrite>> slots_to_write(u64 generation);
  // Of the map that it wrote last (map_checksum_of() of engine/slot_map.h).
  const Checksum& map_checksum() const { return map_checksum_; }

  u64 blocks_total() const { return layout_.blocks_total(); }
  u64 blocks_used() const { return used_; }  // used, reserved places included
  u64 blocks_free() const;                   // free now
  u64 blocks_pinned() const { return pinned_; }
  u64 blocks_allocated() const { return allocated_; }
  u64 blocks_lost() const { return lost_; }  // in damaged regions, see above
  u64 blocks_reserved() const { return layout_.blocks_reserved(); }  // of those used

  u32 regions() const { return layout_.regions(); }
  Result<void> count_free_runs(u32 index, FreeRuns& runs);  // adds those of a region
  Result<bool> is_used(u64 block);  // for check: as the next commit would write it
  bool is_reserved(u64 block) const { return layout_.is_reserved(block); }

  struct Damage {
    u32 region;
    Error error;  // `at` is the device offset of the slot or map block
  };
  const std::vector<Damage>& damage() const { return damage_; }
  void limit_loaded(u32 regions) { loaded_max_ = regions; }
  u32 regions_loaded() const { return loaded_; }

 private:
  using Run = RegionBitmap::Run;
  struct RegionState {
    std::unique_ptr<FreeRegion> loaded;
    bool damaged = false;
    bool pins_known = false;  // it has been loaded since recovery
  };
  struct Search {
    Want want;
    u32 start_region = 0;
    u32 start_position = 0;
    FreeRegion::Scan scan = FreeRegion::Scan::upwards;
  };

  void reset();
  Result<SlotMap> read_map(u64 generation, const Checksum& meant);
  Result<SlotMap> read_copies(u64 generation, u32 first, Checksum& sum);
  Result<void> read_slot(const SlotMap& map, u32 region, FreeRegion& into);
  Result<FreeRegion*> region(u32 index);  // loads it
  Result<void> load(u32 index, FreeRegion& into);
  Result<void> pin_recovered(u32 index, FreeRegion& into);
  Result<void> recover_map(const Root& root);
  void mark_damaged(u32 index, const Error& error);
  FreeRegion& loaded_region(u64 block);
  BlockRun device_run(u32 index, Run run) const;
  void became_free(u32 index);  // the search for runs of one size may return to it
  void forget_idle_regions();

  Search plan_search(const Want& want) const;
  std::optional<BlockRun> find(const Search& search);
  // Calls visit(region, run) for each region's part, until one returns false.
  template <class Visit>
  bool each_part(BlockRun run, Visit visit) const;

  SpaceLayout layout_;
  ReadBlock read_block_;
  std::vector<RegionState> regions_;
  SlotMap map_;
  Checksum map_checksum_{};                    // of the last commit or the one being written
  std::vector<u8> previous_slots_;             // what the map before it means
  std::optional<SlotMap> recovered_previous_;  // until its pins are gone
  u64 recovered_generation_ = 0;
  bool map_damaged_ = false;

  u64 used_ = 0;
  u64 pinned_ = 0;
  u64 pinned_unloaded_ = 0;  // part of pinned_: in regions not loaded since recovery
  u64 allocated_ = 0;
  u64 lost_ = 0;
  std::map<u64, std::vector<BlockRun>> pins_;  // by transaction
  u64 unpinned_through_ = 0;

  u64 data_cursor_ = 0;   // block
  u32 whole_region_ = 0;  // where runs of one size are looked for first
  u32 loaded_ = 0;
  u32 loaded_max_ = 1024;
  u64 use_clock_ = 0;
  std::vector<Damage> damage_;
};

}  // namespace latchkey::engine
