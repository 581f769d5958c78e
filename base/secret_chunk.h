#pragma once
// One mapped piece of the secrets arena and the map of what is free in it. Internal to the arena
// (base/secret.cpp), which guards every chunk by its own lock.
//
// Invariants
//   A granule is 64 bytes: free or part of one allocation. Free granules are zero.
//   Nothing but secrets lies in the mapping: which granules are free is kept outside.
//   A chunk is never unmapped.

#include <memory>
#include <vector>

#include "base/result.h"
#include "base/secret.h"
#include "base/types.h"

namespace latchkey {

inline constexpr u64 kSecretGranule = 64;

inline constexpr u64 granules_for(u64 size) {
  return size / kSecretGranule + (size % kSecretGranule != 0 ? 1 : 0);
}

// Maps `size` bytes (a multiple of the page size), zero and present in memory. Errc::unavailable:
// the kernel has no such pages, os_errno says why. Errc::no_memory: it has, but not so many.
Result<std::byte*> map_secret_pages(ArenaKind kind, u64 size);

class SecretChunk {
 public:
  // Errc::unavailable and no_memory as above.
  static Result<std::unique_ptr<SecretChunk>> create(ArenaKind kind, u64 size);

  // The first run of `count` free granules, or nullptr. The bytes are zero.
  std::byte* allocate(u64 count);
  // The granules are zero again.
  void release(std::byte* data, u64 count);

  std::byte* begin() const { return begin_; }
  u64 size() const { return granules_ * kSecretGranule; }
  bool contains(const std::byte* data) const { return data >= begin_ && data < begin_ + size(); }

 private:
  SecretChunk() = default;
  u64 find_run(u64 count) const;  // index of its first granule, or granules_
  // Turns the granules, which are all `free` or all not, into the opposite.
  void flip(u64 first, u64 count, bool free);

  std::byte* begin_ = nullptr;
  u64 granules_ = 0;
  u64 free_granules_ = 0;
  u64 run_limit_ = 0;          // no free run is longer; an upper bound, not the longest
  u64 first_word_ = 0;         // no word below it has a free granule
  std::vector<u64> free_map_;  // bit i of word w: granule 64 w + i is free
};

}  // namespace latchkey
