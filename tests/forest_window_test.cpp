// Goal: a tree whose least keys have all gone, and which then gets lesser ones, finds each of them.
// So it goes with the extent tree when allocation has come round to the device's begin again: the
// oldest extents, its first children, are gone, and what is put next is less than what is left.
// Method: a window of keys that moves up and comes round, in small nodes; each key is asked for,
// and the structure is checked, also behind reopening.

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>

#include "tests/support/seed.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

class ForestWindow : public StoreTest {
 protected:
  static Key key_of(u64 number) { return {number, 1, 0}; }
  Result<void> put_number(u64 number) { return put(key_of(number), seeded_bytes(number, 40)); }

  void expect_found(u64 number) {
    const auto found = store_->view().get(kFirstSubvolume, key_of(number));
    ASSERT_TRUE(found) << found.error().what;
    ASSERT_TRUE(found->has_value()) << number << " is not found";
    ASSERT_TRUE(std::ranges::equal((*found)->value, seeded_bytes(number, 40)));
    // A scan would come upon it from the wrong child, too; what looks backwards would not.
    const auto before = store_->view().at_or_before(kFirstSubvolume, key_of(number));
    ASSERT_TRUE(before && before->has_value());
    ASSERT_EQ((*before)->key, key_of(number));
  }
  void reopen() {
    ASSERT_TRUE(store_->close());
    open();
  }
};

TEST_F(ForestWindow, lesser_keys_come_behind_an_emptied_first_child) {
  make(64 * kMiB, 4096);
  for (u64 i = 10'000; i < 11'000; ++i) ASSERT_TRUE(put_number(i));
  for (u64 i = 10'000; i < 10'300; ++i) ASSERT_TRUE(erase(key_of(i)));
  for (u64 i = 0; i < 1000; ++i) {
    ASSERT_TRUE(put_number(i));
    for (u64 seen = 0; seen <= i; ++seen) ASSERT_NO_FATAL_FAILURE(expect_found(seen));
  }
  for (u64 i = 10'300; i < 11'000; ++i) ASSERT_NO_FATAL_FAILURE(expect_found(i));
  ASSERT_TRUE(store_->commit());
  expect_clean();
  reopen();
  for (u64 i = 0; i < 1000; ++i) ASSERT_NO_FATAL_FAILURE(expect_found(i));
  expect_clean();
}

TEST_F(ForestWindow, a_window_of_keys_comes_round) {
  make(64 * kMiB, 4096);
  std::mt19937_64 random(seed_base());
  constexpr u64 kRing = 4000;
  std::deque<u64> window;
  u64 next = 0;
  for (u64 step = 0; step < 3 * kRing; ++step) {
    ASSERT_TRUE(put_number(next));
    window.push_back(next);
    next = (next + 1 + random() % 2) % kRing;
    while (!window.empty() && window.size() > 800 + random() % 400) {
      const auto erased = erase(key_of(window.front()));
      ASSERT_TRUE(erased) << erased.error().what;
      ASSERT_TRUE(*erased) << window.front() << " is not found";
      window.pop_front();
    }
    if (step % 500 != 0) continue;
    for (const u64 number : window) ASSERT_NO_FATAL_FAILURE(expect_found(number));
    ASSERT_TRUE(store_->commit());
    expect_clean();
    if (random() % 4 == 0) reopen();
  }
}

// The same in the extent tree itself: the oldest extents go, the allocator's cursor comes round.
TEST_F(ForestWindow, the_oldest_extents_go_and_allocation_comes_round) {
  make(64 * kMiB, 4096);
  std::deque<BlockRun> live;
  u32 turns = 0;
  for (u64 last = 0, step = 0; turns < 3; ++step) {
    std::vector<BlockRun> fresh;
    const auto added = add_extents(static_cast<u32>(1 + step % 5), fresh);
    ASSERT_TRUE(added) << added.error().what;
    for (const BlockRun& run : fresh) {
      if (run.block < last) ++turns;
      last = run.block;
      live.push_back(run);
    }
    while (live.size() > 2000) {
      const auto released = release(live.front());
      ASSERT_TRUE(released) << released.error().what;
      live.pop_front();
    }
    if (step % 50 != 0) continue;
    for (const BlockRun& run : live) {
      const auto held = store_->view().extent_at(run.block, run.count);
      ASSERT_TRUE(held) << held.error().what << " at block " << run.block;
    }
    ASSERT_TRUE(store_->commit());
    expect_clean();
  }
}

}  // namespace
}  // namespace latchkey::tests
