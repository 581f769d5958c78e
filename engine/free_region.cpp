#include "engine/free_region.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "engine/slot_map.h"

namespace latchkey::engine {

namespace {
constexpr u32 kWindowBlocks = 512;  // granularity of the scan from the top
}

FreeRegion::FreeRegion(u32 blocks, const std::vector<Run>& reserved)
    : blocks_(blocks), longest_(blocks), reserved_(reserved) {
  LK_CHECK(blocks <= kRegionBlocks);
  used_.set({blocks, kRegionBlocks - blocks});
  for (const Run& run : reserved_) {
    used_.set(run);
    used_count_ += run.count;
  }
  taken_ = used_;
  committed_ = used_;
  taken_count_ = used_count_;
}

void FreeRegion::count_free_runs(FreeRuns& runs) const {
  for (u32 at = used_.next_clear(0, blocks_); at < blocks_; at = used_.next_clear(at, blocks_)) {
    const u32 end = used_.next_set(at, blocks_);
    const u64 length = end - at;
    ++runs.runs;
    runs.blocks += length;
    runs.longest = std::max(runs.longest, length);
    ++runs.by_length[static_cast<std::size_t>(std::bit_width(length) - 1)];
    at = end;
  }
}

Result<void> FreeRegion::load_slot(Bytes block, const Meant& meant, u64 at) {
  LK_CHECK(block.size() == kBlockBytes);
  const auto header = load_disk<BitmapSlotDisk>(block);
  if (header.magic != kBitmapMagic ||
      header.checksum != block_checksum(block, offsetof(BitmapSlotDisk, checksum)))
    return fail(Errc::damaged, "a free space bitmap does not match its checksum", at);
  if (header.region != meant.region)
    return fail(Errc::damaged, "a free space bitmap of another region lies here", at);
  if (header.generation > meant.generation_max)
    return fail(Errc::damaged, "a free space bitmap is newer than the commit that names it", at);
  if (slot_check(header.checksum) != meant.check)
    return fail(Errc::damaged, "a bitmap is not the one that the slot map means", at);

  RegionBitmap bits;
  bits.load(block.subspan(kBitmapHeaderBytes));
  bool well_formed = header.reserved == 0 && bits.all_set({blocks_, kRegionBlocks - blocks_}) &&
                     bits.count({0, blocks_}) == header.used_count;
  for (const Run& run : reserved_) well_formed = well_formed && bits.all_set(run);
  if (!well_formed)
    return fail(Errc::malformed, "a free space bitmap contradicts itself or the layout", at);

  used_ = bits;
  taken_ = bits;
  committed_ = bits;
  pinned_ = {};
  used_count_ = taken_count_ = header.used_count;
  pinned_count_ = 0;
  longest_ = blocks_;
  dirty_ = false;
  return {};
}

void FreeRegion::pin_difference(const FreeRegion& before) {
  LK_CHECK(idle() && before.blocks_ == blocks_);
  pinned_.assign_difference(before.used_, used_);
  for (const Run& run : pinned_runs()) taken_.set(run);
  pinned_count_ = pinned_.count();
  taken_count_ += pinned_count_;
}

std::vector<FreeRegion::Run> FreeRegion::pinned_runs() const {
  std::vector<Run> runs;
  for (u32 at = pinned_.next_set(0, blocks_); at < blocks_;) {
    const u32 end = pinned_.next_clear(at, blocks_);
    runs.push_back({at, end - at});
    at = pinned_.next_set(end, blocks_);
  }
  return runs;
}

Checksum FreeRegion::encode_slot(MutableBytes block, u32 region, u64 generation) {
  LK_CHECK(block.size() == kBlockBytes);
  BitmapSlotDisk header{};
  header.magic = kBitmapMagic;
  header.region = region;
  header.used_count = used_count_;
  header.generation = generation;
  store_disk(block, header);
  used_.store(block.subspan(kBitmapHeaderBytes));
  header.checksum = block_checksum(block, offsetof(BitmapSlotDisk, checksum));
  store_disk(block, header);
  committed_ = used_;
  dirty_ = false;
  return header.checksum;
}

void FreeRegion::rebuild(Run run) {
  LK_CHECK(taken_.none_set(run));
  taken_.set(run);
  taken_count_ += run.count;
  used_.set(run);
  used_count_ += run.count;
  committed_.set(run);
  dirty_ = true;
}

void FreeRegion::allocate(Run run) {
  LK_CHECK(taken_.none_set(run) && committed_.none_set(run));
  taken_.set(run);
  taken_count_ += run.count;
}

void FreeRegion::give_back(Run run) {
  taken_.clear(run);
  taken_count_ -= run.count;
  longest_ = std::max(longest_, taken_.clear_around(run, blocks_).count);
}

void FreeRegion::cancel(Run run) {
  LK_CHECK(taken_.all_set(run) && used_.none_set(run) && pinned_.none_set(run));
  give_back(run);
}

void FreeRegion::mark_used(Run run) {
  LK_CHECK(taken_.all_set(run) && used_.none_set(run) && pinned_.none_set(run));
  used_.set(run);
  used_count_ += run.count;
  dirty_ = true;
}

void FreeRegion::pin(Run run) {
  LK_CHECK(used_.all_set(run));
  used_.clear(run);
  used_count_ -= run.count;
  pinned_.set(run);
  pinned_count_ += run.count;
  dirty_ = true;
}

void FreeRegion::unpin(Run run) {
  LK_CHECK(pinned_.all_set(run));
  LK_CHECK_MSG(committed_.none_set(run), "unpinned before the commit that frees it");
  pinned_.clear(run);
  pinned_count_ -= run.count;
  give_back(run);
}

void FreeRegion::drop_unwritten(Run run) {
  LK_CHECK(used_.all_set(run));
  LK_CHECK_MSG(committed_.none_set(run), "a committed block is not free at once");
  used_.clear(run);
  used_count_ -= run.count;
  dirty_ = true;
  give_back(run);
}

bool FreeRegion::can_release(Run run) const {
  for (const Run& reserved : reserved_)
    if (reserved.first < run.first + run.count && run.first < reserved.first + reserved.count)
      return false;
  return used_.all_set(run);
}

u32 FreeRegion::used_and_not_in(const FreeRegion& other) const {
  RegionBitmap difference;
  difference.assign_difference(used_, other.used_);
  return difference.count();
}

u32 FreeRegion::freed_since_commit() const {
  RegionBitmap freed;
  freed.assign_difference(committed_, used_);
  return freed.count();
}

FreeRegion::Run FreeRegion::find(Scan scan, u32 from, u32 enough) {
  const u32 target = std::min(enough, longest_);
  if (target == 0) return {};
  Run best;
  const auto look = [&](u32 first, u32 starts_before, u32 limit) {
    const Run run = taken_.find_clear(first, starts_before, std::min(limit, blocks_), target);
    if (run.count > best.count) best = run;
    return best.count >= target;
  };
  bool found = false;
  if (scan == Scan::upwards) {
    found = look(from, blocks_, blocks_);
    // Far enough past `from` that a run which lies across it is seen.
    if (!found && from > 0) found = look(0, from, from + target);
  } else {
    for (u32 first = (blocks_ - 1) / kWindowBlocks * kWindowBlocks; !found;
         first -= kWindowBlocks) {
      found = look(first, first + kWindowBlocks, blocks_);
      if (first == 0) break;
    }
  }
  if (!found) longest_ = best.count;
  return best;
}

}  // namespace latchkey::engine
