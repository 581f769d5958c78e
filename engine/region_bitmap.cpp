#include "engine/region_bitmap.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/disk.h"

namespace latchkey::engine {

// Calls visit(word index, mask of the run's bits in it).
template <class Visit>
void RegionBitmap::each_word(Run run, Visit visit) {
  LK_CHECK(run.first <= kRegionBlocks && run.count <= kRegionBlocks - run.first);
  u32 at = run.first;
  const u32 end = run.first + run.count;
  while (at < end) {
    const u32 bit = at % 64;
    const u32 bits = std::min(64 - bit, end - at);
    const u64 mask = (bits == 64 ? ~u64{0} : ((u64{1} << bits) - 1)) << bit;
    visit(at / 64, mask);
    at += bits;
  }
}

void RegionBitmap::set(Run run) {
  each_word(run, [&](u32 word, u64 mask) { words_[word] |= mask; });
}

void RegionBitmap::clear(Run run) {
  each_word(run, [&](u32 word, u64 mask) { words_[word] &= ~mask; });
}

bool RegionBitmap::all_set(Run run) const {
  bool all = true;
  each_word(run, [&](u32 word, u64 mask) { all &= (words_[word] & mask) == mask; });
  return all;
}

bool RegionBitmap::none_set(Run run) const {
  bool none = true;
  each_word(run, [&](u32 word, u64 mask) { none &= (words_[word] & mask) == 0; });
  return none;
}

bool RegionBitmap::test(u32 position) const {
  LK_CHECK(position < kRegionBlocks);
  return (words_[position / 64] >> (position % 64)) & 1;
}

u32 RegionBitmap::count() const { return count({0, kRegionBlocks}); }

u32 RegionBitmap::count(Run run) const {
  u32 total = 0;
  each_word(run, [&](u32 word, u64 mask) {
    total += static_cast<u32>(std::popcount(words_[word] & mask));
  });
  return total;
}

u32 RegionBitmap::next_set(u32 from, u32 limit) const {
  LK_CHECK(limit <= kRegionBlocks);
  if (from >= limit) return limit;
  u32 word = from / 64;
  u64 bits = words_[word] & (~u64{0} << (from % 64));
  while (bits == 0) {
    if (++word * 64 >= limit) return limit;
    bits = words_[word];
  }
  return std::min(limit, word * 64 + static_cast<u32>(std::countr_zero(bits)));
}

u32 RegionBitmap::next_clear(u32 from, u32 limit) const {
  LK_CHECK(limit <= kRegionBlocks);
  if (from >= limit) return limit;
  u32 word = from / 64;
  u64 bits = ~words_[word] & (~u64{0} << (from % 64));
  while (bits == 0) {
    if (++word * 64 >= limit) return limit;
    bits = ~words_[word];
  }
  return std::min(limit, word * 64 + static_cast<u32>(std::countr_zero(bits)));
}

RegionBitmap::Run RegionBitmap::clear_around(Run run, u32 limit) const {
  u32 first = run.first;
  while (first > 0) {
    const u32 word = (first - 1) / 64;
    const u32 bits_below = first - word * 64;  // 1 to 64: bits of this word before `first`
    const u64 below = bits_below == 64 ? ~u64{0} : (u64{1} << bits_below) - 1;
    const u64 bits = words_[word] & below;
    if (bits != 0) {
      first = word * 64 + 64 - static_cast<u32>(std::countl_zero(bits));
      break;
    }
    first = word * 64;
  }
  return {first, next_set(run.first + run.count, limit) - first};
}

RegionBitmap::Run RegionBitmap::find_clear(u32 from, u32 starts_before, u32 limit,
                                           u32 enough) const {
  Run best;
  starts_before = std::min(starts_before, limit);
  for (u32 at = next_clear(from, starts_before); at < starts_before;) {
    const u32 end = next_set(at, std::min<u64>(limit, u64{at} + enough));
    if (end - at > best.count) best = {at, end - at};
    if (best.count >= enough) break;
    at = next_clear(end, starts_before);
  }
  return best;
}

void RegionBitmap::assign_difference(const RegionBitmap& a, const RegionBitmap& b) {
  for (u32 word = 0; word < kWords; ++word) words_[word] = a.words_[word] & ~b.words_[word];
}

void RegionBitmap::load(Bytes bits) {
  LK_CHECK(bits.size() >= sizeof words_);
  for (std::size_t word = 0; word < kWords; ++word)
    words_[word] = load_disk<Le64>(bits.subspan(word * 8, 8));
}

void RegionBitmap::store(MutableBytes bits) const {
  LK_CHECK(bits.size() >= sizeof words_);
  for (std::size_t word = 0; word < kWords; ++word)
    store_disk(bits.subspan(word * 8, 8), Le64(words_[word]));
}

}  // namespace latchkey::engine
