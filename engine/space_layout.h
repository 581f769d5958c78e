#pragma once
// Where free space keeps its own blocks, computed from the size of the device and the places that
// others take (superblocks); nothing of it is on disk.
//
// The device is cut into regions of kRegionBlocks; a rest shorter than kRegionBlocksMin stays
// unused. The first kSlotsPerRegion blocks of a region that nobody else takes are the slots of its
// bitmap. The slot map lies twice, behind the slots of the first and of the middle region:
// kMapPlaces places of map_blocks() blocks each.

#include <vector>

#include "engine/region_bitmap.h"
#include "engine/types.h"

namespace latchkey::engine {

class SpaceLayout {
 public:
  // `places` must lie inside the device and not overlap.
  SpaceLayout(u64 device_blocks, std::vector<BlockRun> places);

  u64 blocks_total() const { return device_blocks_; }
  u64 blocks_reserved() const { return blocks_reserved_; }
  u32 regions() const { return regions_; }
  u32 map_blocks() const { return (regions_ + kMapRegions - 1) / kMapRegions; }

  u32 region_of(u64 block) const { return static_cast<u32>(block / kRegionBlocks); }
  u64 first_block(u32 region) const { return u64{region} * kRegionBlocks; }
  u32 blocks_in(u32 region) const;
  u64 slot_block(u32 region, u32 slot) const;
  // Copy 0 or 1 of block `index` of the map of a generation.
  u64 map_block(u32 copy, u64 generation, u32 index) const;
  // Positions in the region, in no order, without overlap.
  std::vector<RegionBitmap::Run> reserved_in(u32 region) const;
  bool is_reserved(u64 block) const;

 private:
  u64 open_block(u32 region, u32 n) const;  // the n-th block that no place takes
  u32 map_region(u32 copy) const { return copy == 0 ? 0 : regions_ / 2; }
  u32 own_blocks(u32 region) const;  // slots and maps there

  u64 device_blocks_;
  std::vector<BlockRun> places_;  // sorted
  u32 regions_;
  u64 blocks_reserved_;
};

}  // namespace latchkey::engine
