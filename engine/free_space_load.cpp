// The part of free space that reads: the map at recovery, regions on demand, and what is done when
// they are damaged.

#include <algorithm>

#include "base/check.h"
#include "engine/free_space.h"

namespace latchkey::engine {

namespace {
struct alignas(kIoAlign) BlockBuffer {
  std::array<std::byte, kBlockBytes> bytes;
};

// An error that names the place, whoever reads.
Result<void> read_at(const FreeSpace::ReadBlock& read_block, u64 block, MutableBytes into) {
  Result<void> read = read_block(block, into);
  if (!read && read.error().at == kNowhere) {
    Error error = read.error();
    error.at = block * kBlockBytes;
    return std::unexpected(error);
  }
  return read;
}

}  // namespace

// A commit that a crash cut off may have left blocks of a map of the same generation where the
// later write of the one that is meant was lost: then the other copies are the ones, also when the
// first copies contradict each other.
Result<SlotMap> FreeSpace::read_map(u64 generation, const Checksum& meant) {
  if (generation == 0) {  // what format() leaves
    SlotMap map(layout_.regions());
    map.used_blocks = layout_.blocks_reserved();
    return map;
  }
  std::optional<Error> first_error;
  for (u32 first = 0; first < 2; ++first) {
    Checksum sum{};
    Result<SlotMap> map = read_copies(generation, first, sum);
    if (map && sum == meant) return map;
    if (!map && !first_error) first_error = map.error();
  }
  if (first_error) return std::unexpected(*first_error);
  return fail(Errc::damaged, "the slot map is not the one that the superblock means",
              layout_.map_block(0, generation, 0) * kBlockBytes);
}

// Of each block the copy `first` if that is sound.
Result<SlotMap> FreeSpace::read_copies(u64 generation, u32 first, Checksum& sum) {
  SlotMap map(layout_.regions());
  std::vector<Checksum> sums(layout_.map_blocks());
  auto buffer = std::make_unique<BlockBuffer>();
  for (u32 index = 0; index < layout_.map_blocks(); ++index) {
    std::optional<Error> first_error;
    bool found = false;
    for (u32 turn = 0; turn < 2 && !found; ++turn) {
      const u64 block = layout_.map_block(first ^ turn, generation, index);
      Result<void> read = read_at(read_block_, block, buffer->bytes);
      if (read) read = map.decode(index, generation, buffer->bytes, block * kBlockBytes);
      found = read.has_value();
      if (!found && !first_error) first_error = read.error();
    }
    if (!found) return std::unexpected(*first_error);
    sums[index] = load_disk<SlotMapDisk>(buffer->bytes).checksum;
  }
  sum = map_checksum_of(sums);
  if (map.used_blocks < layout_.blocks_reserved() || map.used_blocks > blocks_total() ||
      map.freed_blocks > blocks_total() - map.used_blocks)
    return fail(Errc::malformed, "the slot map counts more blocks than the device has",
                layout_.map_block(0, generation, 0) * kBlockBytes);
  return map;
}

Result<void> FreeSpace::recover(const Root& root) {
  reset();
  recovered_generation_ = root.generation;
  if (Result<void> map = recover_map(root); !map) {
    map_damaged_ = true;
    used_ = std::clamp(root.used_blocks, layout_.blocks_reserved(), blocks_total());
    lost_ = blocks_total() - used_;
    damage_.push_back({0, map.error()});
    return map;
  }
  if (root.generation == 0) return {};

  Result<SlotMap> previous = read_map(root.generation - 1, root.map_checksum_before);
  if (!previous) {
    // Nothing of this generation is missing. not_found: it was opened on request although there is
    // a newer one, and a commit after that has the place.
    if (previous.error().code != Errc::not_found) damage_.push_back({0, previous.error()});
    return {};
  }
  for (u32 index = 0; index < layout_.regions(); ++index)
    previous_slots_[index] = previous->entries[index].slot;
  recovered_previous_ = std::move(*previous);
  pinned_ = pinned_unloaded_ = map_.freed_blocks;
  return {};
}

Result<void> FreeSpace::recover_map(const Root& root) {
  Result<SlotMap> map = read_map(root.generation, root.map_checksum);
  const u64 at = layout_.map_block(0, root.generation, 0) * kBlockBytes;
  if (!map && map.error().code == Errc::not_found)
    return fail(Errc::damaged, "the slot map of this generation is missing", at);
  if (!map) return std::unexpected(map.error());
  if (map->used_blocks != root.used_blocks)
    return fail(Errc::malformed, "superblock and slot map disagree about the blocks used", at);
  map_ = std::move(*map);
  used_ = root.used_blocks;
  return {};
}

Result<void> FreeSpace::read_slot(const SlotMap& map, u32 index, FreeRegion& into) {
  const SlotMap::Entry& entry = map.entries[index];
  if (entry.slot == kSlotNone) return {};
  const u64 block = layout_.slot_block(index, entry.slot);
  auto buffer = std::make_unique<BlockBuffer>();
  LK_TRYV(read_at(read_block_, block, buffer->bytes));
  return into.load_slot(buffer->bytes, {index, map.generation, entry.check}, block * kBlockBytes);
}

// The pins that recovery left to the moment when the region is first looked at.
Result<void> FreeSpace::pin_recovered(u32 index, FreeRegion& into) {
  const u8 slot = recovered_previous_->entries[index].slot;
  if (slot == map_.entries[index].slot || slot == kSlotNone) return {};
  FreeRegion before(layout_.blocks_in(index), layout_.reserved_in(index));
  LK_TRYV(read_slot(*recovered_previous_, index, before));
  if (before.used_and_not_in(into) > pinned_unloaded_)
    return fail(Errc::malformed, "more blocks were freed than the slot map says",
                layout_.slot_block(index, slot) * kBlockBytes);
  into.pin_difference(before);
  pinned_unloaded_ -= into.pinned_count();
  for (const Run& run : into.pinned_runs())
    pins_[recovered_generation_].push_back(device_run(index, run));
  return {};
}

Result<void> FreeSpace::load(u32 index, FreeRegion& into) {
  const SlotMap::Entry& entry = map_.entries[index];
  LK_TRYV(read_slot(map_, index, into));
  if (entry.slot != kSlotNone && free_class(into.free(), into.blocks()) != entry.free)
    return fail(Errc::malformed, "the slot map misjudges how full a region is",
                layout_.slot_block(index, entry.slot) * kBlockBytes);
  if (recovered_previous_ && !regions_[index].pins_known) {
    if (Result<void> pinned = pin_recovered(index, into); !pinned)
      damage_.push_back({index, pinned.error()});
  }
  regions_[index].pins_known = true;
  return {};
}

Result<FreeRegion*> FreeSpace::region(u32 index) {
  RegionState& state = regions_[index];
  if (state.loaded) {
    state.loaded->last_use = ++use_clock_;
    return state.loaded.get();
  }
  if (map_damaged_) return std::unexpected(damage_.front().error);
  if (state.damaged) {
    const auto it = std::find_if(damage_.rbegin(), damage_.rend(),
                                 [&](const Damage& damage) { return damage.region == index; });
    LK_CHECK(it != damage_.rend());
    return std::unexpected(it->error);
  }
  auto fresh = std::make_unique<FreeRegion>(layout_.blocks_in(index), layout_.reserved_in(index));
  if (Result<void> read = load(index, *fresh); !read) {
    mark_damaged(index, read.error());
    return std::unexpected(read.error());
  }
  fresh->last_use = ++use_clock_;
  state.loaded = std::move(fresh);
  ++loaded_;
  return state.loaded.get();
}

// What of the region was counted as free, or as pinned, is not known: as much as can have been is
// lost.
void FreeSpace::mark_damaged(u32 index, const Error& error) {
  regions_[index].damaged = true;
  damage_.push_back({index, error});
  u64 unknown = blocks_free();
  for (const RegionState& state : regions_)
    if (state.loaded) unknown -= std::min<u64>(unknown, state.loaded->free());
  u64 lost = free_blocks_max(map_.entries[index].free, layout_.blocks_in(index));
  const u64 of_free = std::min(lost, unknown);
  const u64 of_pinned = std::min(lost - of_free, pinned_unloaded_);
  pinned_unloaded_ -= of_pinned;
  pinned_ -= of_pinned;
  lost_ += of_free + of_pinned;
}

// Regions whose last slot is durable and that hold nothing but what the slot says can be read
// again. Called when a commit begins: the one before it is durable.
void FreeSpace::forget_idle_regions() {
  if (loaded_ <= loaded_max_) return;
  std::vector<u32> idle;
  for (u32 index = 0; index < regions_.size(); ++index)
    if (regions_[index].loaded && regions_[index].loaded->idle()) idle.push_back(index);
  std::sort(idle.begin(), idle.end(), [&](u32 a, u32 b) {
    return regions_[a].loaded->last_use < regions_[b].loaded->last_use;
  });
  for (u32 index : idle) {
    if (loaded_ <= loaded_max_) break;
    regions_[index].loaded.reset();
    --loaded_;
  }
}

}  // namespace latchkey::engine
