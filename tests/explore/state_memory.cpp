#include "tests/explore/state_memory.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define LK_EXPLORE_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define LK_EXPLORE_SANITIZED 1
#endif

namespace latchkey::tests {
namespace {

constexpr std::size_t kSlotBytesMin = 16;
constexpr std::size_t kSizes = 10;  // 16 bytes to 8 KiB
constexpr std::size_t kSlots = 64;  // of each size
constexpr std::size_t kSlotBytesMax = kSlotBytesMin << (kSizes - 1);

struct Slots {
  u64 used = 0;
  std::array<u32, kSlots> bytes{};  // that were asked for
};

// The slots of one size lie together, the small ones first; each begins on a multiple of its size.
constinit std::array<Slots, kSizes> sizes{};
alignas(kSlotBytesMax) constinit std::array<std::byte, kSlots * 2 * kSlotBytesMax> memory{};
thread_local constinit bool in_play = false;

std::byte* slots_of(std::size_t size) {
  // 64 * (16 + 32 + ...) up to this size is one slot's worth less than 64 * this size.
  return memory.data() + kSlots * ((kSlotBytesMin << size) - kSlotBytesMin);
}

[[maybe_unused]] void* take(std::size_t bytes, std::size_t align) {
  const std::size_t wanted = std::bit_ceil(std::max({bytes, align, kSlotBytesMin}));
  LK_CHECK_MSG(wanted <= kSlotBytesMax, "too large for the memory of an explored world");
  const auto size = static_cast<std::size_t>(std::countr_zero(wanted / kSlotBytesMin));
  const auto slot = static_cast<std::size_t>(std::countr_one(sizes[size].used));
  LK_CHECK_MSG(slot < kSlots, "the memory of an explored world is full");
  sizes[size].used |= u64{1} << slot;
  sizes[size].bytes[slot] = static_cast<u32>(bytes);
  return slots_of(size) + slot * wanted;
}

[[maybe_unused]] void give_back(void* address) {
  auto* at = static_cast<std::byte*>(address);
  std::size_t size = 0;
  while (size + 1 < kSizes && at >= slots_of(size + 1)) ++size;
  const std::size_t slot_bytes = kSlotBytesMin << size;
  const auto slot = static_cast<std::size_t>(at - slots_of(size)) / slot_bytes;
  LK_CHECK(slot < kSlots && (sizes[size].used >> slot & 1U) != 0);
  std::memset(at, 0, slot_bytes);
  sizes[size].used &= ~(u64{1} << slot);
}

}  // namespace

bool StateMemory::works() {
#ifdef LK_EXPLORE_SANITIZED
  return false;
#else
  return true;
#endif
}

StateMemory::Use::Use() : before_(in_play) { in_play = true; }
StateMemory::Use::~Use() { in_play = before_; }
StateMemory::Pause::Pause() : before_(in_play) { in_play = false; }
StateMemory::Pause::~Pause() { in_play = before_; }

bool StateMemory::contains(const void* address) {
  const auto* at = static_cast<const std::byte*>(address);
  return at >= memory.data() && at < memory.data() + memory.size();
}

u64 StateMemory::in_use() {
  u64 count = 0;
  for (const Slots& slots : sizes) count += static_cast<u64>(std::popcount(slots.used));
  return count;
}

u64 StateMemory::hash(u64 seed) {
  for (std::size_t size = 0; size < kSizes; ++size) {
    seed = hash_bytes(seed, reinterpret_cast<const std::byte*>(&sizes[size].used), sizeof(u64));
    for (u64 left = sizes[size].used; left != 0; left &= left - 1) {
      const auto slot = static_cast<std::size_t>(std::countr_zero(left));
      seed = hash_bytes(seed, slots_of(size) + slot * (kSlotBytesMin << size),
                        sizes[size].bytes[slot]);
    }
  }
  return seed;
}

// Four words at a time, each in a lane of its own.
u64 hash_bytes(u64 seed, const std::byte* bytes, std::size_t size) {
  constexpr u64 kMultiplier = 0xbf58476d1ce4e5b9U;
  std::array<u64, 4> lanes{seed, size, 0x9e3779b97f4a7c15U, 0x94d049bb133111ebU};
  for (std::size_t at = 0; at < size; at += sizeof lanes) {
    std::array<u64, 4> words{};
    std::memcpy(words.data(), bytes + at, std::min(sizeof words, size - at));
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      lanes[i] = (lanes[i] ^ words[i]) * kMultiplier;
      lanes[i] ^= lanes[i] >> 29U;
    }
  }
  u64 hash = 0;
  for (const u64 lane : lanes) {
    hash = (hash ^ lane) * kMultiplier;
    hash ^= hash >> 31U;
  }
  return hash;
}

}  // namespace latchkey::tests

#ifndef LK_EXPLORE_SANITIZED

#include "tests/support/own_new.h"

namespace latchkey::tests {

void* own_allocate(std::size_t size, std::size_t align) noexcept {
  return in_play ? take(size, align) : from_malloc(size, align);
}

// Apart, or a compiler that sees only this half of a pair takes it for a mistake.
[[gnu::noinline]] void own_release(void* allocated) noexcept {
  if (StateMemory::contains(allocated))
    give_back(allocated);
  else
    std::free(allocated);
}

}  // namespace latchkey::tests

#endif
