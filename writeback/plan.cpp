#include "writeback/plan.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::writeback {

std::vector<PlannedExtent> plan_extents(std::size_t pages, std::span<const engine::BlockRun> runs,
                                        u32 extent_blocks_max, Env& env) {
  std::vector<PlannedExtent> extents;
  std::size_t page = 0;
  for (const engine::BlockRun& run : runs) {
    for (u32 used = 0; used < run.count;) {
      PlannedExtent extent;
      extent.run = {run.block + used, std::min(extent_blocks_max, run.count - used)};
      extent.first_page = page;
      env.random(extent.nonce.bytes);
      used += extent.run.count;
      page += extent.run.count;
      extents.push_back(extent);
    }
  }
  LK_CHECK_MSG(page == pages, "a plan has a block for each page");
  return extents;
}

std::vector<extent::MapEntry> map_entries(std::span<const DirtyPage> pages,
                                          std::span<const PlannedExtent> extents) {
  std::vector<extent::MapEntry> entries;
  for (const PlannedExtent& extent : extents) {
    for (u32 i = 0; i < extent.run.count; ++i) {
      const u64 index = pages[extent.first_page + i].index;
      if (i != 0 && entries.back().file_end() == index)
        ++entries.back().blocks;
      else
        entries.push_back({index, extent.run.block + i, 1});
    }
  }
  return entries;
}

}  // namespace latchkey::writeback
