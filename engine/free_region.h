#pragma once
// One region of free space in memory: the state of each of its blocks.
//
//   taken  used  pinned  committed
//     0     0      0         0      free
//     1     0      0         0      allocated
//     1     1      0        any     used
//     1     0      1        any     pinned
//
// `committed` is the bitmap as the last commit wrote it, or is writing it now. A free or allocated
// block is never committed: it would be overwritten while a superblock still leads to it (E1).
// Transitions LK_CHECK the state that they start from. Not thread-safe.

#include <vector>

#include "base/result.h"
#include "engine/region_bitmap.h"
#include "engine/types.h"

namespace latchkey::engine {

class FreeRegion {
 public:
  using Run = RegionBitmap::Run;
  enum class Scan : u8 { upwards, from_top };

  // Everything free but `reserved`.
  FreeRegion(u32 blocks, const std::vector<Run>& reserved);

  // Takes over a slot. Errors: damaged (not the slot that is meant), malformed (well checksummed
  // nonsense). `at` goes into them.
  struct Meant {
    u32 region;
    u64 generation_max;  // of the map that means it
    u32 check;           // what the map says of it (slot_check())
  };
  Result<void> load_slot(Bytes block, const Meant& meant, u64 at);
  // Pins what the loaded slot of the generation before had and this one has not.
  void pin_difference(const FreeRegion& before);
  std::vector<Run> pinned_runs() const;
  // Writes the image for the commit of `generation` into `block`, from here on the committed state;
  // its checksum.
  Checksum encode_slot(MutableBytes block, u32 region, u64 generation);

  // In a region of which nothing but the reserved places is known: used, and taken for committed.
  void rebuild(Run run);

  void allocate(Run run);        // free -> allocated
  void cancel(Run run);          // allocated -> free
  void mark_used(Run run);       // allocated -> used
  void pin(Run run);             // used -> pinned
  void unpin(Run run);           // pinned -> free; not what is still committed
  void drop_unwritten(Run run);  // used -> free; not what is committed

  bool can_release(Run run) const;  // all used, none of it reserved
  bool is_free(Run run) const { return taken_.none_set(run) && committed_.none_set(run); }
  bool is_used(u32 position) const { return used_.test(position); }
  u32 blocks() const { return blocks_; }
  u32 free() const { return blocks_ - taken_count_; }
  u32 used_count() const { return used_count_; }
  u32 pinned_count() const { return pinned_count_; }
  u32 used_and_not_in(const FreeRegion& other) const;
  u32 freed_since_commit() const;  // committed and not used any more
  // Adds the runs of what is not used, as the bitmap on disk has them.
  void count_free_runs(FreeRuns& runs) const;
  // Nothing but what a slot on disk says.
  bool idle() const { return taken_count_ == used_count_ && !dirty_; }
  bool dirty() const { return dirty_; }

  // No free run is longer.
  u32 longest() const { return longest_; }
  // A run of `enough` free blocks, or the longest there is (perhaps none). Upwards: the first at or
  // after `from`, then from the start. From the top: among the highest; `from` says nothing.
  Run find(Scan scan, u32 from, u32 enough);

  u64 last_use = 0;  // the owner's, to choose what to forget

 private:
  void give_back(Run run);

  u32 blocks_;
  u32 taken_count_ = 0;
  u32 used_count_ = 0;
  u32 pinned_count_ = 0;
  u32 longest_;
  bool dirty_ = false;  // used_ differs, or did, from what the last commit wrote
  std::vector<Run> reserved_;
  RegionBitmap taken_;
  RegionBitmap used_;
  RegionBitmap pinned_;
  RegionBitmap committed_;
};

}  // namespace latchkey::engine
