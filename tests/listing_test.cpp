// Goal: the offsets of a directory's listing are positive, rise with the places in the store, and
// lead back to the next place. Method: the places of both ends and drawn ones.

#include "mount/listing.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <set>

#include "volume/format.h"

namespace latchkey::mount {
namespace {

TEST(Listing, every_place_has_an_offset_of_its_own_that_leads_behind_it) {
  std::mt19937_64 random(1);
  std::set<u64> places;
  for (u64 low = 0; low < volume::kNamesOfOneHashMax; ++low) {
    for (const u64 hash : {u64{0}, u64{1}, (u64{1} << 56) - 2, (u64{1} << 56) - 1})
      places.insert(hash << 8 | low);
    places.insert((random() & ~u64{255}) | low);
  }
  u64 before = kBehindDots;
  for (const u64 place : places) {
    const u64 offset = offset_behind(place);
    EXPECT_GT(offset, before);
    EXPECT_LE(offset, static_cast<u64>(std::numeric_limits<i64>::max()));
    EXPECT_EQ(place_behind(offset), place + 1);
    before = offset;
  }
  EXPECT_EQ(place_behind(kBehindDots), 0U);
}

// Of a store that was written when a hash had all 256 places.
TEST(Listing, more_names_of_one_hash_than_there_may_be_end_and_lead_on) {
  const u64 hash = u64{77} << 8;
  EXPECT_GT(offset_behind(hash + 200), offset_behind(hash + volume::kNamesOfOneHashMax - 1));
  EXPECT_LT(offset_behind(hash + 255), offset_behind(hash + 256));
  EXPECT_EQ(place_behind(offset_behind(hash + 200)), hash + 256);
}

}  // namespace
}  // namespace latchkey::mount
