#pragma once
// Integer names used everywhere. Sizes and offsets are bytes in u64; counts say what they count.

#include <cstddef>
#include <cstdint>
#include <span>

namespace latchkey {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

using Bytes = std::span<const std::byte>;   // borrowed, read only
using MutableBytes = std::span<std::byte>;  // borrowed, writable

inline constexpr u64 kKiB = 1024;
inline constexpr u64 kMiB = 1024 * kKiB;
inline constexpr u64 kGiB = 1024 * kMiB;

}  // namespace latchkey
