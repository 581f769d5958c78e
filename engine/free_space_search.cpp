// Where allocate() looks. Two kinds of runs keep out of each other's way: runs of one size (nodes,
// in both places) are packed from the end of the device down, first fit, since nodes come and go
// all the time; the others (data) go forward from a cursor and come back to the beginning at the
// end (next fit), so that a writer's extents follow each other. A region is passed over without a
// look at its bits when it is full, or when an earlier look found nothing long enough.

#include <algorithm>

#include "base/check.h"
#include "engine/free_space.h"

namespace latchkey::engine {

namespace {
// So many regions are searched for a run of the wanted length before a shorter one is taken.
constexpr u32 kProbes = 8;
}  // namespace

void FreeSpace::became_free(u32 index) { whole_region_ = std::max(whole_region_, index); }

FreeSpace::Search FreeSpace::plan_search(const Want& want) const {
  Search search{want};
  if (want.hint == kNowhere && want.wanted == want.count_min && want.wanted > 1) {
    search.scan = FreeRegion::Scan::from_top;
    search.start_region = whole_region_;
    return search;
  }
  const u64 from = want.hint == kNowhere ? data_cursor_ : want.hint;
  if (from < blocks_total() && layout_.region_of(from) < layout_.regions()) {
    search.start_region = layout_.region_of(from);
    search.start_position = static_cast<u32>(from - layout_.first_block(search.start_region));
  }
  return search;
}

std::optional<BlockRun> FreeSpace::find(const Search& search) {
  const u32 regions = layout_.regions();
  const bool upwards = search.scan == FreeRegion::Scan::upwards;
  BlockRun best;
  u32 probes = 0;
  for (u32 step = 0; step < regions; ++step) {
    const u32 index = (search.start_region + (upwards ? step : regions - step)) % regions;
    const RegionState& state = regions_[index];
    if (state.damaged) continue;
    if (!state.loaded && map_.entries[index].free == FreeClass::none) continue;
    const auto loaded = region(index);
    if (!loaded) continue;  // noted as damage
    FreeRegion& candidate = **loaded;
    const u32 longest = std::min(candidate.longest(), candidate.free());
    if (longest < search.want.count_min || longest <= best.count) continue;
    const u32 from = step == 0 ? std::min(search.start_position, candidate.blocks()) : 0;
    const Run run = candidate.find(search.scan, from, search.want.wanted);
    if (run.count > best.count) best = device_run(index, run);
    if (best.count >= search.want.wanted) break;
    if (++probes >= kProbes && best.count >= search.want.count_min) break;
  }
  if (best.count < search.want.count_min) return std::nullopt;
  return best;
}

Result<BlockRun> FreeSpace::allocate(Want want) {
  LK_CHECK(want.count_min >= 1 && want.wanted >= want.count_min && want.wanted <= kRegionBlocks);
  if (map_damaged_) return std::unexpected(damage_.front().error);
  Search search = plan_search(want);
  std::optional<BlockRun> found;
  if (blocks_free() >= want.count_min) {
    search.want.wanted = static_cast<u32>(std::min<u64>(want.wanted, blocks_free()));
    found = find(search);
  }
  if (!found) {
    if (lost_ > 0) return std::unexpected(damage_.back().error);
    if (blocks_free() > 0 && want.count_min == 1)
      return fail(Errc::damaged, "the bitmaps have less free blocks than the superblock counts");
    return fail(Errc::no_space, "no free blocks");
  }
  const u32 index = layout_.region_of(found->block);
  regions_[index].loaded->allocate(
      {static_cast<u32>(found->block - layout_.first_block(index)), found->count});
  allocated_ += found->count;
  if (search.scan == FreeRegion::Scan::from_top)
    whole_region_ = index;
  else if (want.hint == kNowhere)
    data_cursor_ = found->end();
  return *found;
}

}  // namespace latchkey::engine
