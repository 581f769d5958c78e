#pragma once
// A bitmap of one region's blocks, searched by 64-bit words.
//
// Positions are blocks from the start of the region, all below kRegionBlocks. Not thread-safe.

#include <array>

#include "base/types.h"
#include "engine/free_space_format.h"

namespace latchkey::engine {

class RegionBitmap {
 public:
  struct Run {
    u32 first = 0;
    u32 count = 0;
  };

  void set(Run run);
  void clear(Run run);
  bool all_set(Run run) const;
  bool none_set(Run run) const;
  bool test(u32 position) const;
  u32 count() const;         // bits set
  u32 count(Run run) const;  // bits set in it

  // The first set (clear) position at or after `from`, or `limit`.
  u32 next_set(u32 from, u32 limit) const;
  u32 next_clear(u32 from, u32 limit) const;
  // The run of clear bits around `run`, itself clear, within [0, limit).
  Run clear_around(Run run, u32 limit) const;
  // The first run of `enough` clear bits that begins in [from, starts_before) and ends by `limit`,
  // cut to `enough`; if there is none, the longest of those that begin there (count 0: none at
  // all).
  Run find_clear(u32 from, u32 starts_before, u32 limit, u32 enough) const;

  // this = a & ~b
  void assign_difference(const RegionBitmap& a, const RegionBitmap& b);

  void load(Bytes bits);  // kRegionBlocks / 8 bytes
  void store(MutableBytes bits) const;

 private:
  static constexpr u32 kWords = kRegionBlocks / 64;
  static_assert(kRegionBlocks % 64 == 0);

  template <class Visit>
  static void each_word(Run run, Visit visit);

  std::array<u64, kWords> words_{};
};

}  // namespace latchkey::engine
