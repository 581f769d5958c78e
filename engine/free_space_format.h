#pragma once
// A slot of a region's bitmap on disk: one block. Bit i is block first + i of the region; 1 is
// used.

#include "base/checksum.h"
#include "base/disk.h"

namespace latchkey::engine {

inline constexpr u32 kRegionBlocks = 32256;  // 126 MiB; (4096 - 64) * 8 bits
inline constexpr u32 kBitmapBytes = kRegionBlocks / 8;

struct BitmapSlotDisk {
  Le32 magic;
  Le32 region;
  Le64 generation;  // of the commit that wrote it
  Le32 used;        // bits that are set
  std::array<u8, 12> reserved;
  Checksum checksum;  // of the block with this field zero
  std::array<std::byte, kBitmapBytes> bits;
};
LK_DISK_STRUCT(BitmapSlotDisk, 4096);
LK_DISK_FIELD(BitmapSlotDisk, checksum, 32);
LK_DISK_FIELD(BitmapSlotDisk, bits, 64);
inline constexpr u32 kBitmapMagic = 0x4d424b4c;  // "LKBM"

}  // namespace latchkey::engine
