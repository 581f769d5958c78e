#pragma once
// A directory's listing as the kernel asks for it, a piece at a time and from any offset that it
// was given before. Nothing is kept between two calls: an offset is a place in the store.

#include "base/types.h"

namespace latchkey::mount {

// Offsets: 0 the beginning, 1 behind ".", 2 behind "..", then behind an entry. They are loff_t, so
// they have 63 bits: of a place's low byte, which tells names of one hash apart, there are at most
// kNamesOfOneHashMax values.
inline constexpr u64 kBehindDot = 1;
inline constexpr u64 kBehindDots = 2;
inline constexpr u64 kLowBits = 7;
inline constexpr u64 kLowMax = 124;  // of stores that have more than they may: those share one

constexpr u64 offset_behind(u64 place) {
  const u64 low = place & 255;
  return (((place >> 8) << kLowBits) | (low < kLowMax ? low : kLowMax)) + kBehindDots + 1;
}

// Where the listing goes on behind that offset, which is at least kBehindDots.
constexpr u64 place_behind(u64 offset) {
  if (offset == kBehindDots) return 0;
  const u64 packed = offset - kBehindDots - 1;
  const u64 low = packed & ((u64{1} << kLowBits) - 1);
  const u64 base = (packed >> kLowBits) << 8;
  return low < kLowMax ? base + low + 1 : base + 256;
}

}  // namespace latchkey::mount
