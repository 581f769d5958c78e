#pragma once
// What free space looks like on disk: bitmap slots and slot maps (docs/disk_format.md, "Free
// space"). Both are one block; neither knows the volume, since nothing but a map of the recovered
// generation leads to a slot, and maps of a former volume have been overwritten by the first
// commits.

#include "base/checksum.h"
#include "base/disk.h"
#include "engine/types.h"

namespace latchkey::engine {

inline constexpr u32 kBitmapHeaderBytes = 64;
inline constexpr u32 kRegionBlocks = 32256;  // 126 MiB: (4096 - 64) * 8 bits
inline constexpr u32 kRegionBlocksMin = 64;  // a shorter rest of the device stays unused
inline constexpr u32 kSlotsPerRegion = 3;
inline constexpr u32 kMapRegions = 1008;  // (4096 - 64) / 4 entries: 124 GiB
inline constexpr u32 kMapPlaces = 3;      // generation modulo 3

inline constexpr std::array<char, 8> kBitmapMagic = {'l', 'k', 'b', 'i', 't', 'm', 'a', 'p'};
inline constexpr std::array<char, 8> kSlotMapMagic = {'l', 'k', 's', 'l', 't', 'm', 'a', 'p'};

// Header of a bitmap slot; kRegionBlocks bits follow. Bit i % 8 of byte i / 8 (least significant
// first) is 1 when block i of the region is used, reserved, or past the end of the device.
struct BitmapSlotDisk {
  std::array<char, 8> magic;
  Le32 region;
  Le32 used_count;    // bits set, without those past the end
  Le64 generation;    // of the commit that wrote it
  Le64 reserved;      // zero
  Checksum checksum;  // of the block with this field zero
};
LK_DISK_STRUCT(BitmapSlotDisk, kBitmapHeaderBytes);
LK_DISK_FIELD(BitmapSlotDisk, generation, 16);
LK_DISK_FIELD(BitmapSlotDisk, checksum, 32);

// Header of a block of the slot map; kMapRegions entries, each a Le32, follow. Bits 0 and 1 of an
// entry: the slot that holds the region as of `generation` (kSlotNone: never written, the region
// holds nothing but reserved places). Bits 2 and 3: FreeClass. Bits 4 to 31: slot_check() of the
// slot, 0 for kSlotNone. Without them a slot whose last write was lost, or landed elsewhere, would
// be believed: what lies there verifies by itself. Its generation would not do: that of a commit
// that a crash cut off is used again.
struct SlotMapDisk {
  std::array<char, 8> magic;
  Le32 index;         // which block of the map: its first region is index * kMapRegions
  Le32 freed_blocks;  // blocks that were used in generation - 1 and are not in this one; whole
                      // device
  Le64 generation;
  Le64 used_blocks;   // whole device
  Checksum checksum;  // of the block with this field zero
};
LK_DISK_STRUCT(SlotMapDisk, kBitmapHeaderBytes);
LK_DISK_FIELD(SlotMapDisk, generation, 16);
LK_DISK_FIELD(SlotMapDisk, checksum, 32);

inline constexpr u8 kSlotNone = 3;

// What a map can say of the bitmap that it means: what lay in the slot before has another one, but
// for one in 2^28.
inline constexpr u32 kSlotCheckBits = 28;
inline u32 slot_check(const Checksum& slot) {
  return load_disk<Le32>(std::as_bytes(std::span(slot))) & ((1U << kSlotCheckBits) - 1);
}

// How much of a region is free, so that a full store is searched without reading full regions.
enum class FreeClass : u8 { none = 0, under_eighth = 1, under_half = 2, half = 3 };

}  // namespace latchkey::engine
