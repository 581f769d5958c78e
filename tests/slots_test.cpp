// SlotTable: derives once, keeps what is pinned, reuses the oldest idle slot, wipes what it evicts.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

#include "keymgr/slots.h"
#include "tests/support/keyring_fixture.h"
#include "tests/support/seed.h"

namespace latchkey::keymgr {
namespace {

using tests::arena_holds;
using tests::in_arena;
using tests::kA;
using tests::KeyringTest;
using tests::kOk;
using tests::nonce_of;
using tests::schedule_of;

class SlotsTest : public KeyringTest {
 protected:
  void SetUp() override {
    add(kA);
    ASSERT_EQ(lease(open_), kOk);
  }
  void TearDown() override {
    if (open_.held()) ring_.release(open_);
  }
  static std::unique_ptr<SlotTable> table(u32 slots) {
    auto table = SlotTable::create(slots);
    LK_CHECK(table.has_value());
    return std::move(*table);
  }
  SlotPin get(SlotTable& table, u64 nonce) {
    auto pin = table.get(open_, nonce_of(nonce));
    LK_CHECK(pin.has_value());
    return std::move(*pin);
  }
  void expect_counters(const SlotTable& table, u64 hits, u64 misses, u64 evictions) {
    const SlotCounters counters = table.counters();
    EXPECT_EQ(counters.hits, hits);
    EXPECT_EQ(counters.misses, misses);
    EXPECT_EQ(counters.evictions, evictions);
  }

  Lease open_;
};

TEST_F(SlotsTest, a_key_is_derived_once_and_found_again) {
  const auto slots = table(4);
  EXPECT_EQ(slots->counters().capacity, 4u);
  const auto expected = schedule_of(raw_, nonce_of(1));
  const crypto::XtsKey* first = nullptr;
  {
    const SlotPin pin = get(*slots, 1);
    EXPECT_TRUE(std::ranges::equal(pin.key().encrypt, expected.encrypt));
    EXPECT_TRUE(std::ranges::equal(pin.key().tweak, expected.tweak));
    first = &pin.key();
    const SlotPin again = get(*slots, 1);  // several pins of one slot
    EXPECT_EQ(&again.key(), first);
  }
  const SlotPin later = get(*slots, 1);
  EXPECT_EQ(&later.key(), first);
  const SlotPin other = get(*slots, 2);
  EXPECT_NE(&other.key(), first);
  expect_counters(*slots, 2, 2, 0);
}

TEST_F(SlotsTest, the_idle_slot_used_longest_ago_is_reused_and_wiped) {
  const auto slots = table(3);
  for (const u64 nonce : {1, 2, 3}) get(*slots, nonce);
  get(*slots, 1);  // 2 is the oldest now
  const auto two = schedule_of(raw_, nonce_of(2));
  EXPECT_TRUE(arena_holds(two.encrypt));
  EXPECT_TRUE(arena_holds(two.tweak));
  get(*slots, 4);
  EXPECT_FALSE(arena_holds(two.encrypt) || arena_holds(two.tweak));
  expect_counters(*slots, 1, 4, 1);
  get(*slots, 1);
  get(*slots, 3);
  get(*slots, 4);
  expect_counters(*slots, 4, 4, 1);
  get(*slots, 2);
  expect_counters(*slots, 4, 5, 2);
}

TEST_F(SlotsTest, a_pinned_slot_is_never_reused) {
  const auto slots = table(2);
  const SlotPin pinned = get(*slots, 1);
  const auto expected = schedule_of(raw_, nonce_of(1));
  for (u64 nonce = 2; nonce < 50; ++nonce) {
    const SlotPin pin = get(*slots, nonce);
    ASSERT_NE(&pin.key(), &pinned.key());
  }
  EXPECT_TRUE(std::ranges::equal(pinned.key().encrypt, expected.encrypt));
}

TEST_F(SlotsTest, get_waits_while_every_slot_is_pinned) {
  const auto slots = table(1);
  std::optional<SlotPin> pinned(get(*slots, 1));
  std::atomic<bool> got{false};
  std::thread other([&] {
    get(*slots, 2);
    got = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(got);
  pinned.reset();
  other.join();
  EXPECT_TRUE(got);
}

TEST_F(SlotsTest, evict_key_wipes_that_key_and_no_other) {
  const auto slots = table(8);
  const auto other_raw = tests::raw_key(2);
  const auto other_id = ring_.add(kA, in_arena(other_raw));
  Lease other;
  ASSERT_TRUE(other_id && ring_.lease(*other_id, 2, other));
  for (const u64 nonce : {1, 2, 3}) get(*slots, nonce);
  ASSERT_TRUE(slots->get(other, nonce_of(1)).has_value());  // same nonce, other key
  const auto mine = schedule_of(raw_, nonce_of(1)), theirs = schedule_of(other_raw, nonce_of(1));
  EXPECT_TRUE(arena_holds(mine.encrypt));
  EXPECT_TRUE(arena_holds(theirs.encrypt));
  slots->evict_key(id_);
  for (const u64 nonce : {1, 2, 3}) {
    const auto schedule = schedule_of(raw_, nonce_of(nonce));
    EXPECT_FALSE(arena_holds(schedule.encrypt) || arena_holds(schedule.tweak));
  }
  EXPECT_TRUE(arena_holds(theirs.encrypt));
  ASSERT_TRUE(slots->get(other, nonce_of(1)).has_value());
  expect_counters(*slots, 1, 4, 0);
  get(*slots, 1);
  expect_counters(*slots, 1, 5, 0);
  ring_.release(other);
}

TEST_F(SlotsTest, evict_key_waits_for_pinned_slots_and_does_not_wipe_them_before) {
  const auto slots = table(4);
  std::optional<SlotPin> pinned(get(*slots, 1));
  const auto schedule = schedule_of(raw_, nonce_of(1));
  std::atomic<bool> evicted{false};
  std::thread evictor([&] {
    slots->evict_key(id_);
    evicted = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(evicted);
  EXPECT_TRUE(std::ranges::equal(pinned->key().encrypt, schedule.encrypt));
  pinned.reset();
  evictor.join();
  EXPECT_FALSE(arena_holds(schedule.encrypt) || arena_holds(schedule.tweak));
}

TEST_F(SlotsTest, a_cut_off_lease_finds_no_slot_not_even_a_filled_one) {
  const auto slots = table(4);
  get(*slots, 1);
  remove(kA, false, RemovalMode::hard);
  EXPECT_EQ(slots->get(open_, nonce_of(1)).error().code, Errc::no_key);
  EXPECT_EQ(slots->get(open_, nonce_of(2)).error().code, Errc::no_key);
  slots->evict_key(id_);
  expect_counters(*slots, 0, 1, 0);
  add(kA);
  Lease fresh;
  ASSERT_EQ(lease(fresh), kOk);
  EXPECT_EQ(slots->get(open_, nonce_of(1)).error().code, Errc::no_key);
  EXPECT_TRUE(slots->get(fresh, nonce_of(1)).has_value());
  ring_.release(fresh);
  Lease never;
  EXPECT_EQ(slots->get(never, nonce_of(1)).error().code, Errc::no_key);
}

TEST_F(SlotsTest, under_soft_a_busy_inode_goes_on_and_absent_leaves_no_schedule) {
  const auto slots = table(4);
  get(*slots, 1);
  EXPECT_EQ(remove(kA).state, KeyState::incompletely_removed);
  get(*slots, 1);
  get(*slots, 2);
  expect_counters(*slots, 1, 2, 0);
  ASSERT_TRUE(ring_.release(open_));
  slots->evict_key(id_);
  for (const u64 nonce : {1, 2})
    EXPECT_FALSE(arena_holds(schedule_of(raw_, nonce_of(nonce)).encrypt));
}

TEST_F(SlotsTest, the_table_wipes_all_when_it_dies) {
  const auto schedule = schedule_of(raw_, nonce_of(1));
  auto slots = table(4);
  get(*slots, 1);
  EXPECT_TRUE(arena_holds(schedule.encrypt));
  slots.reset();
  EXPECT_FALSE(arena_holds(schedule.encrypt) || arena_holds(schedule.tweak));
}

TEST_F(SlotsTest, many_that_miss_the_same_key_derive_it_once) {
  constexpr u64 kNonces = 200;
  const auto slots = table(kNonces);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (u64 nonce = 0; nonce < kNonces; ++nonce) get(*slots, nonce);
    });
  for (auto& thread : threads) thread.join();
  expect_counters(*slots, 3 * kNonces, kNonces, 0);
}

// Readers pin random keys of a small table while the key is removed, evicted and added again. A pin
// always holds its own key's schedule; after an eviction of an absent key no schedule is left.
TEST_F(SlotsTest, readers_against_removals) {
  constexpr u64 kNonces = 16;
  const u64 seed = tests::seed_base() + 20260102;
  const auto slots = table(6);
  std::vector<tests::ScheduleNeedles> expected;
  for (u64 n = 0; n < kNonces; ++n) expected.push_back(schedule_of(raw_, nonce_of(n)));
  std::atomic<bool> stop{false};
  std::atomic<u64> good{0}, refused_count{0};
  std::vector<std::thread> readers;
  for (u64 t = 0; t < 3; ++t)
    readers.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      Lease mine;
      while (!stop) {
        if (!mine.held() && lease(mine, t) != kOk) continue;
        const u64 n = random() % kNonces;
        const auto pin = slots->get(mine, nonce_of(n));
        if (pin) {
          ASSERT_TRUE(std::ranges::equal(pin->key().encrypt, expected[n].encrypt));
          ASSERT_TRUE(std::ranges::equal(pin->key().tweak, expected[n].tweak));
          ++good;
          continue;
        }
        ASSERT_EQ(pin.error().code, Errc::no_key);
        ASSERT_TRUE(mine.cut_off());
        ++refused_count;
        ring_.release(mine);
      }
      if (mine.held()) ring_.release(mine);
    });
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(700);
  u64 removals = 0;
  while (std::chrono::steady_clock::now() < end) {
    EXPECT_EQ(remove(kA, false, RemovalMode::hard).state, KeyState::absent);
    slots->evict_key(id_);
    add(kA);
    if (++removals % 16 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  remove(kA, false, RemovalMode::hard);
  slots->evict_key(id_);
  stop = true;
  for (auto& thread : readers) thread.join();
  EXPECT_GT(good.load(), 0u) << "seed " << seed;
  EXPECT_GT(refused_count.load(), 0u) << "seed " << seed;
  for (const auto& schedule : expected)
    EXPECT_FALSE(arena_holds(schedule.encrypt) || arena_holds(schedule.tweak));
}

}  // namespace
}  // namespace latchkey::keymgr
