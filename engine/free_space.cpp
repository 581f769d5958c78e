#include "engine/free_space.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::engine {

FreeSpace::FreeSpace(u64 device_blocks, std::vector<BlockRun> reserved_places, ReadBlock read_block)
    : layout_(device_blocks, std::move(reserved_places)), read_block_(std::move(read_block)) {
  reset();
}

void FreeSpace::reset() {
  regions_.clear();
  regions_.resize(layout_.regions());
  map_ = SlotMap(layout_.regions());
  previous_slots_.assign(layout_.regions(), kSlotNone);
  recovered_previous_.reset();
  recovered_generation_ = 0;
  map_damaged_ = false;
  used_ = layout_.blocks_reserved();
  pinned_ = pinned_unloaded_ = allocated_ = lost_ = 0;
  pins_.clear();
  unpinned_through_ = 0;
  data_cursor_ = 0;
  whole_region_ = layout_.regions() - 1;
  loaded_ = 0;
  damage_.clear();
}

void FreeSpace::format() { reset(); }

// Slots that the maps at hand name are left as they are until the first of those commits is
// durable; where a map is lost nobody can tell which they were.
void FreeSpace::rebuild(u64 generation, const std::vector<bool>& used) {
  LK_CHECK(used.size() >= blocks_total());
  const SlotMap map_before = map_damaged_ ? SlotMap(layout_.regions()) : std::move(map_);
  const std::vector<u8> previous_before = previous_slots_;
  reset();
  recovered_generation_ = generation;
  map_.generation = generation;
  previous_slots_ = previous_before;
  for (u32 index = 0; index < layout_.regions(); ++index) {
    auto fresh = std::make_unique<FreeRegion>(layout_.blocks_in(index), layout_.reserved_in(index));
    const u64 first = layout_.first_block(index);
    for (u32 at = 0; at < fresh->blocks(); ++at)
      if (used[first + at] && !layout_.is_reserved(first + at)) fresh->rebuild({at, 1});
    regions_[index].pins_known = true;
    if (!fresh->dirty()) continue;  // as never written
    map_.entries[index].slot = map_before.entries[index].slot;
    used_ +=
        fresh->used_count() - FreeRegion(fresh->blocks(), layout_.reserved_in(index)).used_count();
    regions_[index].loaded = std::move(fresh);
    ++loaded_;
  }
}

u64 FreeSpace::blocks_free() const {
  const u64 taken = used_ + pinned_ + allocated_ + lost_;
  LK_CHECK(taken <= blocks_total());
  return blocks_total() - taken;
}

template <class Visit>
bool FreeSpace::each_part(BlockRun run, Visit visit) const {
  u64 block = run.block;
  while (block < run.end()) {
    const u32 index = layout_.region_of(block);
    const u64 end = std::min(run.end(), layout_.first_block(index) + kRegionBlocks);
    const Run part{static_cast<u32>(block - layout_.first_block(index)),
                   static_cast<u32>(end - block)};
    if (!visit(index, part)) return false;
    block = end;
  }
  return true;
}

BlockRun FreeSpace::device_run(u32 index, Run run) const {
  return {layout_.first_block(index) + run.first, run.count};
}

// For blocks that are allocated, or used since the last commit: their region cannot be forgotten.
FreeRegion& FreeSpace::loaded_region(u64 block) {
  const u32 index = layout_.region_of(block);
  LK_CHECK(index < regions_.size() && regions_[index].loaded);
  return *regions_[index].loaded;
}

Result<void> FreeSpace::claim(BlockRun run) {
  if (map_damaged_) return std::unexpected(damage_.front().error);
  if (run.count == 0 || run.block >= blocks_total() || run.count > blocks_total() - run.block)
    return fail(Errc::malformed, "blocks are claimed that the device does not have");
  Result<void> wrong;
  each_part(run, [&](u32 index, Run part) {
    const u64 at = (layout_.first_block(index) + part.first) * kBlockBytes;
    if (index >= layout_.regions()) {
      wrong = fail(Errc::malformed, "blocks are claimed that no region has", at);
    } else if (const auto loaded = region(index); !loaded) {
      wrong = std::unexpected(loaded.error());
    } else if (!(*loaded)->is_free(part)) {
      wrong = fail(Errc::malformed, "blocks are claimed that are in use", at);
    }
    return wrong.has_value();
  });
  LK_TRYV(wrong);
  each_part(run, [&](u32 index, Run part) {
    loaded_region(layout_.first_block(index)).allocate(part);
    return true;
  });
  allocated_ += run.count;
  return {};
}

void FreeSpace::cancel(BlockRun run) {
  each_part(run, [&](u32 index, Run part) {
    loaded_region(layout_.first_block(index)).cancel(part);
    became_free(index);
    return true;
  });
  allocated_ -= run.count;
  // A writer that gives back the tail of what it got leaves no hole.
  if (run.end() == data_cursor_) data_cursor_ = run.block;
}

void FreeSpace::mark_used(BlockRun run) {
  each_part(run, [&](u32 index, Run part) {
    loaded_region(layout_.first_block(index)).mark_used(part);
    return true;
  });
  allocated_ -= run.count;
  used_ += run.count;
}

Result<void> FreeSpace::release(BlockRun run, u64 transaction) {
  LK_CHECK(run.count > 0);
  if (run.block >= blocks_total() || run.count > blocks_total() - run.block ||
      run.count > used_ - layout_.blocks_reserved())
    return fail(Errc::malformed, "blocks are released that the device does not have");
  if (map_damaged_) {
    used_ -= run.count;
    lost_ += run.count;
    return {};
  }
  std::optional<u64> wrong;
  each_part(run, [&](u32 index, Run part) {
    bool good = index < layout_.regions();
    if (good) {
      const auto loaded = region(index);
      good = !loaded || (*loaded)->can_release(part);
    }
    if (!good) wrong = (layout_.first_block(index) + part.first) * kBlockBytes;
    return good;
  });
  if (wrong) return fail(Errc::malformed, "blocks are released that are not used", *wrong);

  each_part(run, [&](u32 index, Run part) {
    used_ -= part.count;
    if (regions_[index].damaged) {
      lost_ += part.count;
    } else {
      regions_[index].loaded->pin(part);
      pinned_ += part.count;
      pins_[transaction].push_back(device_run(index, part));
    }
    return true;
  });
  return {};
}

void FreeSpace::release_unwritten(BlockRun run) {
  each_part(run, [&](u32 index, Run part) {
    loaded_region(layout_.first_block(index)).drop_unwritten(part);
    became_free(index);
    return true;
  });
  used_ -= run.count;
}

void FreeSpace::unpin_through(u64 transaction) {
  while (!pins_.empty() && pins_.begin()->first <= transaction) {
    for (const BlockRun& run : pins_.begin()->second) {
      const u32 index = layout_.region_of(run.block);
      const Run part{static_cast<u32>(run.block - layout_.first_block(index)), run.count};
      loaded_region(run.block).unpin(part);
      became_free(index);
      pinned_ -= run.count;
    }
    pins_.erase(pins_.begin());
  }
  unpinned_through_ = std::max(unpinned_through_, transaction);
  if (recovered_previous_ && unpinned_through_ >= recovered_generation_) {
    pinned_ -= pinned_unloaded_;
    pinned_unloaded_ = 0;
    recovered_previous_.reset();
  }
}

std::vector<BlockRun> FreeSpace::pinned_through(u64 transaction) const {
  std::vector<BlockRun> runs;
  for (const auto& [pinned_in, list] : pins_)
    if (pinned_in <= transaction) runs.insert(runs.end(), list.begin(), list.end());
  std::ranges::sort(runs, {}, &BlockRun::block);
  std::vector<BlockRun> joined;
  for (const BlockRun& run : runs) {
    if (!joined.empty() && joined.back().end() == run.block)
      joined.back().count += run.count;
    else
      joined.push_back(run);
  }
  return joined;
}

Result<std::vector<FreeSpace::SlotWrite>> FreeSpace::slots_to_write(u64 generation) {
  if (map_damaged_) return std::unexpected(damage_.front().error);
  LK_CHECK_MSG(generation == map_.generation + 1, "commits follow each other");
  forget_idle_regions();

  std::vector<SlotWrite> writes;
  std::vector<u8> slots_before(regions_.size());
  u64 freed = 0;
  for (u32 index = 0; index < regions_.size(); ++index) {
    SlotMap::Entry& entry = map_.entries[index];
    slots_before[index] = entry.slot;
    FreeRegion* loaded = regions_[index].loaded.get();
    if (loaded == nullptr || !loaded->dirty()) continue;
    freed += loaded->freed_since_commit();
    u8 slot = 0;
    while (slot == entry.slot || slot == previous_slots_[index]) ++slot;
    const u32 free_blocks = loaded->blocks() - loaded->used_count();
    SlotWrite& write =
        writes.emplace_back(layout_.slot_block(index, slot), std::vector<std::byte>(kBlockBytes));
    const Checksum written = loaded->encode_slot(write.image, index, generation);
    entry = {slot, free_class(free_blocks, loaded->blocks()), slot_check(written)};
  }
  previous_slots_ = std::move(slots_before);
  map_.generation = generation;
  map_.used_blocks = used_;
  map_.freed_blocks = static_cast<u32>(freed);
  std::vector<Checksum> sums(layout_.map_blocks());
  for (u32 copy = 0; copy < 2; ++copy) {
    for (u32 part = 0; part < layout_.map_blocks(); ++part) {
      SlotWrite& write = writes.emplace_back(layout_.map_block(copy, generation, part),
                                             std::vector<std::byte>(kBlockBytes));
      sums[part] = map_.encode(part, write.image);
    }
  }
  map_checksum_ = map_checksum_of(sums);
  return writes;
}

Result<void> FreeSpace::count_free_runs(u32 index, FreeRuns& runs) {
  LK_TRY(const FreeRegion* loaded, region(index));
  loaded->count_free_runs(runs);
  return {};
}

Result<bool> FreeSpace::is_used(u64 block) {
  LK_CHECK(block < blocks_total());
  const u32 index = layout_.region_of(block);
  if (index >= layout_.regions()) return true;
  LK_TRY(FreeRegion * loaded, region(index));
  return loaded->is_used(static_cast<u32>(block - layout_.first_block(index)));
}

}  // namespace latchkey::engine
