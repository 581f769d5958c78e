#include "engine/free_space.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace latchkey::engine {

namespace {

constexpr u32 kWords = kRegionBlocks / 64;
constexpr u32 kSlots = 2;
static_assert(kRegionBlocks % 64 == 0);

Checksum checksum_of(const BitmapSlotDisk& slot) {
  BitmapSlotDisk copy = slot;
  copy.checksum = {};
  return checksum128(std::as_bytes(std::span(&copy, 1)));
}

bool verifies(const BitmapSlotDisk& slot, u32 region) {
  return slot.magic == kBitmapMagic && slot.region == region && slot.checksum == checksum_of(slot);
}

}  // namespace

FreeSpace::FreeSpace(u64 device_blocks, std::vector<BlockRun> reserved_places, ReadBlock read_block)
    : device_blocks_(device_blocks),
      reserved_places_(std::move(reserved_places)),
      read_block_(std::move(read_block)),
      node_cursor_(device_blocks / 2) {
  // A last region that could hold nothing but its slots is left unused.
  if (device_blocks_ % kRegionBlocks <= kSlots) device_blocks_ -= device_blocks_ % kRegionBlocks;
  regions_.resize(region_count());
}

u32 FreeSpace::region_count() const {
  return static_cast<u32>((device_blocks_ + kRegionBlocks - 1) / kRegionBlocks);
}

u32 FreeSpace::region_bits(u32 region) const {
  return static_cast<u32>(
      std::min<u64>(kRegionBlocks, device_blocks_ - u64{region} * kRegionBlocks));
}

void FreeSpace::set(std::vector<u64>& bits, u32 first, u32 count, bool value) {
  for (u32 bit = first; bit < first + count;) {
    const u32 shift = bit % 64;
    const u32 here = std::min(64 - shift, first + count - bit);
    const u64 mask = (here == 64 ? ~u64{0} : ((u64{1} << here) - 1)) << shift;
    if (value)
      bits[bit / 64] |= mask;
    else
      bits[bit / 64] &= ~mask;
    bit += here;
  }
}

void FreeSpace::set_reserved(u32 index, Region& region) const {
  const u64 base = u64{index} * kRegionBlocks;
  set(region.used, 0, kSlots, true);
  for (const BlockRun& run : reserved_places_)
    for (u64 block = run.block; block < run.end(); ++block)
      if (block >= base && block < base + kRegionBlocks)
        set(region.used, static_cast<u32>(block - base), 1, true);
  const u32 bits = region_bits(index);
  if (bits < kRegionBlocks) set(region.used, bits, kRegionBlocks - bits, true);
}

void FreeSpace::format() {
  used_ = pinned_ = allocated_ = 0;
  for (u32 i = 0; i < region_count(); ++i) {
    auto region = std::make_unique<Region>();
    region->used.assign(kWords, 0);
    set_reserved(i, *region);
    region->busy = region->used;
    u32 set_bits = 0;
    for (const u64 word : region->used) set_bits += static_cast<u32>(std::popcount(word));
    region->free_count = kRegionBlocks - set_bits;
    used_ += region_bits(i) - region->free_count;
    region->dirty = region->both_slots = true;
    regions_[i] = std::move(region);
  }
}

void FreeSpace::recover(u64 generation, u64 used_blocks) {
  generation_ = generation;
  used_ = used_blocks;
}

Result<FreeSpace::Region*> FreeSpace::load(u32 index) {
  if (regions_[index]) return regions_[index].get();
  std::array<std::unique_ptr<BitmapSlotDisk>, kSlots> slots;
  const u64 base = u64{index} * kRegionBlocks;
  auto page = IoBuffer::create(kBlockBytes);
  if (!page) return std::unexpected(page.error());
  for (u32 i = 0; i < kSlots; ++i) {
    slots[i] = std::make_unique<BitmapSlotDisk>();
    LK_TRYV(read_block_(base + i, page->bytes()));
    std::memcpy(slots[i].get(), page->bytes().data(), kBlockBytes);
  }
  auto region = std::make_unique<Region>();
  int newest = -1;
  for (u32 i = 0; i < kSlots; ++i) {
    region->slot_generation[i] = slots[i]->generation;
    if (!verifies(*slots[i], index) || slots[i]->generation > generation_) continue;
    if (newest < 0 || slots[i]->generation > slots[static_cast<u32>(newest)]->generation)
      newest = static_cast<int>(i);
  }
  for (u32 i = 0; i < kSlots; ++i) {
    if (verifies(*slots[i], index)) continue;
    const bool header_says = slots[i]->magic == kBitmapMagic && slots[i]->region == index;
    const u64 says = slots[i]->generation;
    const u64 other = newest >= 0 ? slots[static_cast<u32>(newest)]->generation.get() : 0;
    if (newest < 0 || !header_says || (says > other && says <= generation_))
      region->trusted = false;
    region->slot_generation[i] = 0;  // written first
  }
  if (newest < 0) region->trusted = false;
  region->used.assign(kWords, region->trusted ? 0 : ~u64{0});
  if (region->trusted) {
    const auto& bits = slots[static_cast<u32>(newest)]->bits;
    for (u32 word = 0; word < kWords; ++word)
      region->used[word] = load_disk<Le64>(Bytes(bits).subspan(word * 8));
    set_reserved(index, *region);
  }
  region->busy = region->used;
  u32 set_bits = 0;
  for (const u64 word : region->used) set_bits += static_cast<u32>(std::popcount(word));
  region->free_count = kRegionBlocks - set_bits;
  regions_[index] = std::move(region);
  return regions_[index].get();
}

// The first run of `wanted` free blocks from `from` on, else the longest.
FreeSpace::Found FreeSpace::find_run(const Region& region, u32 bits, u32 from, u32 wanted) const {
  Found best;
  for (u32 bit = from; bit < bits;) {
    const u64 word = ~region.busy[bit / 64] >> (bit % 64);
    if (word == 0) {
      bit = (bit / 64 + 1) * 64;
      continue;
    }
    bit += static_cast<u32>(std::countr_zero(word));
    const u32 first = bit;
    while (bit < bits && bit - first < wanted) {
      const u64 rest = region.busy[bit / 64] >> (bit % 64);
      const u32 here = rest == 0 ? 64 - bit % 64 : static_cast<u32>(std::countr_zero(rest));
      if (here == 0) break;
      bit += here;
    }
    const u32 count = std::min({bit, bits, first + wanted}) - first;
    if (count > best.count) best = {first, count};
    if (best.count == wanted) return best;
  }
  return best;
}

Result<BlockRun> FreeSpace::allocate(Want want) {
  const bool node = want.count_min == want.wanted && want.wanted > 1;
  u64& cursor = node ? node_cursor_ : data_cursor_;
  const u64 start = (want.hint == kNowhere ? cursor : want.hint) % device_blocks_;
  const u32 first_region = static_cast<u32>(start / kRegionBlocks);
  BlockRun best;
  // A region that runs out from the cursor on is looked at again from its beginning, last.
  for (u32 step = 0; step <= region_count(); ++step) {
    const u32 index = (first_region + step) % region_count();
    auto loaded = load(index);
    if (!loaded) continue;  // a region that cannot be read has nothing to give
    Region* region = *loaded;
    if (region->free_count < want.count_min) continue;
    const u32 from = step == 0 ? static_cast<u32>(start % kRegionBlocks) : 0;
    const Found found = find_run(*region, region_bits(index), from, want.wanted);
    if (found.count > best.count) best = {u64{index} * kRegionBlocks + found.first, found.count};
    if (best.count == want.wanted ||
        (step >= 4 && best.count >= want.count_min && best.count >= 16))
      break;
  }
  if (best.count == 0 || best.count < want.count_min)
    return fail(Errc::no_space, "no free blocks are left");
  LK_TRY(Region * region, load(static_cast<u32>(best.block / kRegionBlocks)));
  set(region->busy, static_cast<u32>(best.block % kRegionBlocks), best.count, true);
  region->free_count -= best.count;
  allocated_ += best.count;
  if (want.hint == kNowhere || node) cursor = best.end();
  return best;
}

void FreeSpace::each_part(BlockRun run, const std::function<void(Region&, u32, u32)>& fn) {
  LK_CHECK(run.end() <= device_blocks_);
  while (run.count != 0) {
    const u32 first = static_cast<u32>(run.block % kRegionBlocks);
    const u32 count = std::min(run.count, kRegionBlocks - first);
    Region* region = regions_[run.block / kRegionBlocks].get();
    LK_CHECK(region != nullptr);
    fn(*region, first, count);
    run.block += count;
    run.count -= count;
  }
}

void FreeSpace::make_free(BlockRun run) {
  each_part(run, [](Region& region, u32 first, u32 count) {
    for (u32 bit = first; bit < first + count; ++bit)
      LK_CHECK_MSG(test(region.busy, bit) && !test(region.used, bit), "a block is freed twice");
    set(region.busy, first, count, false);
    region.free_count += count;
  });
}

void FreeSpace::cancel(BlockRun run) {
  make_free(run);
  allocated_ -= run.count;
}

void FreeSpace::mark_used(BlockRun run) {
  each_part(run, [](Region& region, u32 first, u32 count) {
    for (u32 bit = first; bit < first + count; ++bit)
      LK_CHECK_MSG(test(region.busy, bit) && !test(region.used, bit), "a block is used twice");
    set(region.used, first, count, true);
    region.dirty = true;
  });
  allocated_ -= run.count;
  used_ += run.count;
}

Result<void> FreeSpace::release(BlockRun run, u64 transaction) {
  if (run.end() > device_blocks_) return fail(Errc::damaged, "a record names blocks past the end");
  for (u64 block = run.block; block < run.end();) {
    const u32 index = static_cast<u32>(block / kRegionBlocks);
    LK_TRY(Region * region, load(index));
    const u64 end = std::min(run.end(), (u64{index} + 1) * kRegionBlocks);
    for (; block < end; ++block)
      if (!test(region->used, static_cast<u32>(block % kRegionBlocks)))
        return fail(Errc::damaged, "a block is in use but its bitmap says free",
                    block * kBlockBytes);
  }
  each_part(run, [&](Region& region, u32 first, u32 count) {
    if (!region.trusted) return;
    set(region.used, first, count, false);
    region.dirty = true;
  });
  // Parts in regions that are not trusted stay used.
  for (u64 block = run.block; block < run.end();) {
    const u32 index = static_cast<u32>(block / kRegionBlocks);
    const u64 end = std::min(run.end(), (u64{index} + 1) * kRegionBlocks);
    if (regions_[index]->trusted) {
      pinned_runs_[transaction].push_back({block, static_cast<u32>(end - block)});
      used_ -= end - block;
      pinned_ += end - block;
    }
    block = end;
  }
  return {};
}

void FreeSpace::release_unwritten(BlockRun run) {
  each_part(run, [](Region& region, u32 first, u32 count) {
    set(region.used, first, count, false);
    region.dirty = true;
  });
  make_free(run);
  used_ -= run.count;
}

void FreeSpace::unpin_through(u64 transaction) {
  while (!pinned_runs_.empty() && pinned_runs_.begin()->first <= transaction) {
    for (const BlockRun& run : pinned_runs_.begin()->second) {
      make_free(run);
      pinned_ -= run.count;
    }
    pinned_runs_.erase(pinned_runs_.begin());
  }
}

std::vector<std::unique_ptr<FreeSpace::SlotWrite>> FreeSpace::slots_to_write(u64 generation) {
  std::vector<std::unique_ptr<SlotWrite>> writes;
  for (u32 index = 0; index < region_count(); ++index) {
    Region* region = regions_[index].get();
    if (region == nullptr || !region->dirty || !region->trusted) continue;
    const u32 older = region->slot_generation[0] <= region->slot_generation[1] ? 0 : 1;
    for (u32 slot = 0; slot < kSlots; ++slot) {
      if (slot != older && !region->both_slots) continue;
      auto write = std::make_unique<SlotWrite>();
      write->block = u64{index} * kRegionBlocks + slot;
      write->slot = {};
      write->slot.magic = kBitmapMagic;
      write->slot.region = index;
      write->slot.generation = slot == older ? generation : generation - 1;
      u32 set_bits = 0;
      for (u32 word = 0; word < kWords; ++word) {
        store_disk(MutableBytes(write->slot.bits).subspan(word * 8), Le64(region->used[word]));
        set_bits += static_cast<u32>(std::popcount(region->used[word]));
      }
      write->slot.used = set_bits;
      write->slot.checksum = checksum_of(write->slot);
      region->slot_generation[slot] = write->slot.generation;
      writes.push_back(std::move(write));
    }
    region->dirty = region->both_slots = false;
  }
  return writes;
}

Result<bool> FreeSpace::is_used(u64 block) {
  if (block >= device_blocks_) return true;
  LK_TRY(Region * region, load(static_cast<u32>(block / kRegionBlocks)));
  if (!region->trusted)
    return fail(Errc::damaged, "a region's bitmap does not verify",
                block / kRegionBlocks * kRegionBlocks * kBlockBytes);
  return test(region->used, static_cast<u32>(block % kRegionBlocks));
}

}  // namespace latchkey::engine
