#include "engine/space_layout.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::engine {

SpaceLayout::SpaceLayout(u64 device_blocks, std::vector<BlockRun> places)
    : device_blocks_(device_blocks), places_(std::move(places)) {
  const u64 rest = device_blocks % kRegionBlocks;
  regions_ = static_cast<u32>(device_blocks / kRegionBlocks) + (rest >= kRegionBlocksMin ? 1 : 0);
  LK_CHECK_MSG(regions_ > 0, "the device is smaller than one region may be");
  std::sort(places_.begin(), places_.end(),
            [](const BlockRun& a, const BlockRun& b) { return a.block < b.block; });

  const u64 end = first_block(regions_ - 1) + blocks_in(regions_ - 1);
  blocks_reserved_ = device_blocks - end;
  u64 at = 0;
  for (const BlockRun& place : places_) {
    LK_CHECK(place.block >= at && place.end() <= device_blocks);
    at = place.end();
    if (place.block < end) blocks_reserved_ += std::min(place.end(), end) - place.block;
  }
  for (u32 region = 0; region < regions_; ++region) blocks_reserved_ += own_blocks(region);
}

u32 SpaceLayout::blocks_in(u32 region) const {
  LK_CHECK(region < regions_);
  return static_cast<u32>(std::min<u64>(kRegionBlocks, device_blocks_ - first_block(region)));
}

u64 SpaceLayout::open_block(u32 region, u32 n) const {
  u64 block = first_block(region) + n;
  for (const BlockRun& place : places_) {
    if (place.end() <= first_block(region)) continue;
    if (place.block > block) break;
    block += place.end() - std::max(place.block, first_block(region));
  }
  LK_CHECK_MSG(block < first_block(region) + blocks_in(region), "no room for the bitmap's places");
  return block;
}

u64 SpaceLayout::slot_block(u32 region, u32 slot) const {
  LK_CHECK(slot < kSlotsPerRegion);
  return open_block(region, slot);
}

u64 SpaceLayout::map_block(u32 copy, u64 generation, u32 index) const {
  LK_CHECK(copy < 2 && index < map_blocks());
  const u32 place = static_cast<u32>(generation % kMapPlaces);
  u32 n = kSlotsPerRegion + place * map_blocks() + index;
  if (copy == 1 && map_region(1) == map_region(0)) n += kMapPlaces * map_blocks();
  return open_block(map_region(copy), n);
}

u32 SpaceLayout::own_blocks(u32 region) const {
  u32 count = kSlotsPerRegion;
  for (u32 copy = 0; copy < 2; ++copy)
    if (map_region(copy) == region) count += kMapPlaces * map_blocks();
  return count;
}

std::vector<RegionBitmap::Run> SpaceLayout::reserved_in(u32 region) const {
  const u64 first = first_block(region);
  const u64 end = first + blocks_in(region);
  std::vector<RegionBitmap::Run> runs;
  for (const BlockRun& place : places_) {
    const u64 from = std::max(place.block, first);
    const u64 to = std::min(place.end(), end);
    if (from < to) runs.push_back({static_cast<u32>(from - first), static_cast<u32>(to - from)});
  }
  for (u32 n = 0; n < own_blocks(region); ++n)
    runs.push_back({static_cast<u32>(open_block(region, n) - first), 1});
  return runs;
}

bool SpaceLayout::is_reserved(u64 block) const {
  LK_CHECK(block < device_blocks_);
  const u32 region = region_of(block);
  if (region >= regions_) return true;
  u64 n = block - first_block(region);  // how many-th block that no place takes
  for (const BlockRun& place : places_) {
    if (place.end() <= first_block(region)) continue;
    if (place.block > block) break;
    if (block < place.end()) return true;
    n -= place.end() - std::max(place.block, first_block(region));
  }
  return n < own_blocks(region);
}

}  // namespace latchkey::engine
