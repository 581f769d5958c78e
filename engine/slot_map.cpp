#include "engine/slot_map.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::engine {

namespace {

constexpr u32 kCheckShift = 4;
static_assert(kCheckShift + kSlotCheckBits == 8 * sizeof(Le32));
static_assert(kBitmapHeaderBytes + kMapRegions * sizeof(Le32) == kBlockBytes);

std::size_t entry_offset(std::size_t index) { return kBitmapHeaderBytes + index * sizeof(Le32); }

}  // namespace

Checksum block_checksum(Bytes block, std::size_t field_offset) {
  LK_CHECK(block.size() == kBlockBytes && field_offset + sizeof(Checksum) <= kBlockBytes);
  std::array<std::byte, kBlockBytes> copy;
  std::copy(block.begin(), block.end(), copy.begin());
  std::fill_n(copy.begin() + static_cast<std::ptrdiff_t>(field_offset), sizeof(Checksum),
              std::byte{0});
  return checksum128(copy);
}

Checksum map_checksum_of(std::span<const Checksum> blocks) {
  return checksum128(std::as_bytes(blocks));
}

FreeClass free_class(u32 free_blocks, u32 region_blocks) {
  if (free_blocks == 0) return FreeClass::none;
  if (free_blocks < region_blocks / 8) return FreeClass::under_eighth;
  if (free_blocks < region_blocks / 2) return FreeClass::under_half;
  return FreeClass::half;
}

u32 free_blocks_max(FreeClass free, u32 region_blocks) {
  switch (free) {
    case FreeClass::none:
      return 0;
    case FreeClass::under_eighth:
      return region_blocks / 8;
    case FreeClass::under_half:
      return region_blocks / 2;
    case FreeClass::half:
      return region_blocks;
  }
  return region_blocks;
}

Checksum SlotMap::encode(u32 index, MutableBytes block) const {
  LK_CHECK(block.size() == kBlockBytes);
  std::fill(block.begin(), block.end(), std::byte{0});
  SlotMapDisk header{};
  header.magic = kSlotMapMagic;
  header.index = index;
  header.freed_blocks = freed_blocks;
  header.generation = generation;
  header.used_blocks = used_blocks;
  store_disk(block, header);

  const std::size_t first = std::size_t{index} * kMapRegions;
  const std::size_t count = std::min<std::size_t>(kMapRegions, entries.size() - first);
  for (std::size_t i = 0; i < count; ++i) {
    const Entry& entry = entries[first + i];
    const Le32 bits(entry.slot | (static_cast<u32>(entry.free) << 2) |
                    (entry.check << kCheckShift));
    store_disk(block.subspan(entry_offset(i)), bits);
  }
  header.checksum = block_checksum(block, offsetof(SlotMapDisk, checksum));
  store_disk(block, header);
  return header.checksum;
}

Result<void> SlotMap::decode(u32 index, u64 expected_generation, Bytes block, u64 at) {
  LK_CHECK(block.size() == kBlockBytes);
  const auto header = load_disk<SlotMapDisk>(block);
  if (header.magic != kSlotMapMagic ||
      header.checksum != block_checksum(block, offsetof(SlotMapDisk, checksum)))
    return fail(Errc::damaged, "a block of the slot map does not match its checksum", at);
  if (header.index != index)
    return fail(Errc::damaged, "a block of the slot map lies in the wrong place", at);
  if (header.generation != expected_generation)
    return fail(Errc::not_found, "a block of the slot map is of another generation", at);
  if (index == 0) {
    generation = header.generation;
    used_blocks = header.used_blocks;
    freed_blocks = header.freed_blocks;
  } else if (header.used_blocks != used_blocks || header.freed_blocks != freed_blocks) {
    return fail(Errc::malformed, "blocks of the slot map disagree", at);
  }

  const std::size_t first = std::size_t{index} * kMapRegions;
  const std::size_t count = std::min<std::size_t>(kMapRegions, entries.size() - first);
  for (std::size_t i = 0; i < kMapRegions; ++i) {
    const u32 bits = load_disk<Le32>(block.subspan(entry_offset(i)));
    const Entry entry{static_cast<u8>(bits & 3), static_cast<FreeClass>(bits >> 2 & 3),
                      bits >> kCheckShift};
    if (i < count)
      entries[first + i] = entry;
    else if (bits != 0)
      return fail(Errc::malformed, "the slot map names regions past the end of the device", at);
    if (i < count && entry.slot == kSlotNone && entry.check != 0)
      return fail(Errc::malformed,
                  "the slot map says what lies in the slot of a region that has none", at);
  }
  return {};
}

}  // namespace latchkey::engine
