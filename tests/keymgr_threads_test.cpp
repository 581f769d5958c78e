// keymgr/ under threads: the gate, removals that wait for writers, derivations and each other, and
// a stress whose invariants are checked inside (check_invariants) and at its end. Where a test says
// "blocks", it gives the other thread 20 ms to prove otherwise.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "base/hex.h"
#include "keymgr/gate.h"
#include "keymgr/master_key.h"
#include "tests/support/keyring_fixture.h"
#include "tests/support/seed.h"

namespace latchkey::keymgr {
namespace {

using tests::arena_holds;
using tests::kA;
using tests::kB;
using tests::kC;
using tests::KeyringTest;
using tests::kOk;
using tests::kRoot;

void pause_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// A call in a thread of its own; joined by the destructor.
class Background {
 public:
  explicit Background(std::function<void()> call)
      : thread_([this, call = std::move(call)] {
          call();
          done_ = true;
        }) {}
  ~Background() { join(); }
  void join() {
    if (thread_.joinable()) thread_.join();
  }
  bool blocks() const {
    pause_ms(20);
    return !done_;
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

TEST(Gate, lets_in_holds_turns_away_and_drains) {
  Gate gate;
  EXPECT_TRUE(gate.enter());
  EXPECT_TRUE(gate.enter());
  EXPECT_EQ(gate.inside(), 2u);
  gate.drain();  // open: nothing to wait for
  gate.set(Gate::State::stopped);
  EXPECT_FALSE(gate.enter());
  Background drain([&] { gate.drain(); });
  EXPECT_TRUE(drain.blocks());
  gate.leave();
  EXPECT_TRUE(drain.blocks());
  gate.leave();
  drain.join();
  gate.set(Gate::State::open);
  EXPECT_TRUE(gate.enter());
  gate.leave();
}

TEST(Gate, a_held_newcomer_enters_on_open_and_is_turned_away_on_stop) {
  for (const bool opens : {true, false}) {
    Gate gate;
    gate.set(Gate::State::held);
    std::atomic<int> entered{-1};
    Background writer([&] { entered = gate.enter(); });
    EXPECT_TRUE(writer.blocks());
    gate.drain();  // waiting outside is not being inside
    gate.set(opens ? Gate::State::open : Gate::State::stopped);
    writer.join();
    EXPECT_EQ(entered.load(), opens);
    EXPECT_EQ(gate.inside(), opens ? 1u : 0u);
  }
}

TEST(Gate, a_drain_ends_when_the_gate_opens_again) {
  Gate gate;
  ASSERT_TRUE(gate.enter());
  gate.set(Gate::State::held);
  Background drain([&] { gate.drain(); });
  EXPECT_TRUE(drain.blocks());
  gate.set(Gate::State::open);
  drain.join();
  gate.leave();
}

// The closer changes a plain int while nobody may be inside: TSan sees a race if drain() ends too
// early or enters are admitted too late.
TEST(Gate, a_drained_gate_is_exclusive) {
  Gate gate;
  int shared = 0;
  std::atomic<bool> stop{false};
  std::atomic<u64> passes{0};
  std::vector<std::thread> writers;
  for (int i = 0; i < 3; ++i)
    writers.emplace_back([&] {
      while (!stop) {
        if (!gate.enter()) continue;
        EXPECT_EQ(shared % 2, 0);
        ++passes;
        gate.leave();
      }
    });
  for (int round = 0; round < 2000; ++round) {
    gate.set(round % 2 ? Gate::State::held : Gate::State::stopped);
    gate.drain();
    ++shared;
    EXPECT_EQ(gate.inside(), 0u);
    ++shared;
    gate.set(Gate::State::open);
    if (round % 64 == 0) std::this_thread::yield();
  }
  while (passes == 0) std::this_thread::yield();
  stop = true;
  for (auto& thread : writers) thread.join();
  EXPECT_EQ(gate.inside(), 0u);
}

using KeyThreads = KeyringTest;

TEST_F(KeyThreads, hard_waits_for_a_writer_in_the_gate_before_it_begins) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  auto pass = GatePass::enter(open);
  ASSERT_TRUE(pass.has_value());
  Background removal([&] { begin(kA, false, RemovalMode::hard).rollback(); });
  EXPECT_TRUE(removal.blocks());
  Background second([&] {  // stopped, not held, once the removal has come so far
    Errc answer{};
    while (answer == Errc{}) {
      const auto later = GatePass::enter(open);
      answer = later ? Errc{} : later.error().code;
    }
    EXPECT_EQ(answer, Errc::no_key);
  });
  second.join();
  {
    const GatePass gone = std::move(*pass);
  }
  removal.join();
  EXPECT_TRUE(GatePass::enter(open).has_value());
  ring_.release(open);
}

TEST_F(KeyThreads, a_row_that_holds_writers_wakes_them_into_the_gate_or_into_no_key) {
  for (const bool commits : {false, true}) {
    add(kA);
    Lease open;
    ASSERT_EQ(lease(open), kOk);
    Removal removal = begin(kA, false, RemovalMode::freeze);
    std::atomic<int> entered{-1};
    Background writer([&] { entered = GatePass::enter(open).has_value(); });
    EXPECT_TRUE(writer.blocks());
    HeldGate held;
    EXPECT_EQ(GatePass::try_enter(open, held).error().code, Errc::busy);
    Background waiter([&] { held.wait(); });
    EXPECT_TRUE(waiter.blocks());
    if (commits) {
      EXPECT_EQ(removal.commit()->state, KeyState::absent);
    } else {
      removal.rollback();
    }
    writer.join();
    waiter.join();
    EXPECT_EQ(entered.load(), !commits);
    ring_.release(open);
  }
}

TEST_F(KeyThreads, an_add_frees_a_removal_that_waits_for_writers) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  auto pass = GatePass::enter(open);
  ASSERT_TRUE(pass.has_value());
  std::atomic<bool> canceled{false};
  Background removal([&] {
    Removal r = begin(kA, false, RemovalMode::hard);
    canceled = r.commit().error().code == Errc::canceled;
  });
  EXPECT_TRUE(removal.blocks());
  add(kA);
  removal.join();  // although the writer is still inside
  EXPECT_TRUE(canceled);
  {
    const GatePass gone = std::move(*pass);
  }
  ring_.release(open);
}

TEST_F(KeyThreads, a_batch_in_hand_finishes_before_the_wipe) {
  for (const RemovalMode mode : {RemovalMode::hard, RemovalMode::soft}) {
    SCOPED_TRACE(removal_row(mode).name);
    add(kA);
    Lease open;
    ASSERT_EQ(lease(open), kOk);
    const bool soft = mode == RemovalMode::soft;
    if (soft) {
      ASSERT_EQ(remove(kA).state, KeyState::incompletely_removed);
    }
    std::optional<KeyUse> use;
    use.emplace(std::move(*KeyUse::begin(open)));
    Background wiper([&] {
      if (soft) {
        EXPECT_TRUE(ring_.release(open));
      } else {
        EXPECT_EQ(remove(kA, false, mode).state, KeyState::absent);
      }
    });
    EXPECT_TRUE(wiper.blocks());
    EXPECT_EQ(state(), KeyState::incompletely_removed);  // absent says that the secret is gone
    EXPECT_TRUE(arena_holds(needles_.hkdf_inner));
    EXPECT_EQ(to_hex(crypto::key_identifier(use->state()).bytes), to_hex(id_.bytes));
    use.reset();
    wiper.join();
    EXPECT_EQ(state(), KeyState::absent);
    EXPECT_FALSE(arena_holds(needles_.hkdf_inner));
    if (!soft) {
      EXPECT_FALSE(ring_.release(open));
    }
  }
}

TEST_F(KeyThreads, an_add_while_the_wipe_waits_makes_a_fresh_key) {
  add(kA);
  Lease old, fresh;
  ASSERT_EQ(lease(old), kOk);
  std::optional<KeyUse> use;
  use.emplace(std::move(*KeyUse::begin(old)));
  Background removal(
      [&] { EXPECT_EQ(remove(kA, false, RemovalMode::hard).state, KeyState::absent); });
  EXPECT_TRUE(removal.blocks());
  add(kB);
  expect_status(kB, KeyState::present, 1, true);
  ASSERT_EQ(lease(fresh), kOk);
  EXPECT_EQ(KeyUse::begin(old).error().code, Errc::no_key);
  use.reset();
  removal.join();
  expect_status(kB, KeyState::present, 1, true);
  EXPECT_TRUE(KeyUse::begin(fresh).has_value());
  EXPECT_FALSE(ring_.release(old));
  EXPECT_FALSE(ring_.release(fresh));
}

TEST_F(KeyThreads, a_second_removal_waits_for_the_first_and_then_looks_again) {
  for (const bool commits : {false, true}) {
    SCOPED_TRACE(commits);
    add(kA);
    Removal first = begin(kA, false, RemovalMode::hard);
    std::atomic<int> outcome{-1};
    Background second([&] {
      auto start = ring_.begin_removal(id_, kA, false, RemovalMode::soft);
      if (start) {
        EXPECT_EQ(start->removal->commit()->state, KeyState::absent);
      }
      outcome = static_cast<int>(start ? kOk : start.error().code);
    });
    EXPECT_TRUE(second.blocks());
    expect_status(kA, KeyState::present, 1, true);
    if (commits) {
      EXPECT_TRUE(first.commit().has_value());
    } else {
      first.rollback();
    }
    second.join();
    EXPECT_EQ(outcome.load(), static_cast<int>(commits ? Errc::no_key : kOk));
    EXPECT_EQ(state(), KeyState::absent);
  }
}

TEST_F(KeyThreads, a_removal_that_waited_through_wipe_and_add_removes_the_fresh_key) {
  add(kA);
  Lease old;
  ASSERT_EQ(lease(old), kOk);
  std::optional<KeyUse> use;
  use.emplace(std::move(*KeyUse::begin(old)));
  Background first(
      [&] { EXPECT_EQ(remove(kA, false, RemovalMode::hard).state, KeyState::absent); });
  EXPECT_TRUE(first.blocks());  // waits for the KeyUse
  std::atomic<int> outcome{-1};
  Background second([&] {
    auto start = ring_.begin_removal(id_, kRoot, true, RemovalMode::soft);
    outcome = start.has_value() && start->removal->commit()->state == KeyState::absent;
  });
  EXPECT_TRUE(second.blocks());  // waits for the first
  add(kB);                       // a fresh key, while the old one is still dying
  use.reset();
  first.join();
  second.join();
  EXPECT_EQ(outcome.load(), 1);
  EXPECT_EQ(state(), KeyState::absent);
  ring_.release(old);
}

TEST_F(KeyThreads, owners_walk_while_leases_come_and_go) {
  add(kA);
  add(kB);
  constexpr u64 kStay = 64;
  std::vector<Lease> stay(kStay);
  std::atomic<bool> stop{false};
  std::vector<std::thread> churn;
  for (u64 i = 0; i < kStay; ++i) ASSERT_EQ(lease(stay[i], i), kOk);
  // Coming and going needs an open door, so the list is walked through a removal that has been
  // superseded by B's add.
  remove(kB);
  Removal removal = begin(kA);
  add(kB);
  for (u64 t = 0; t < 2; ++t)
    churn.emplace_back([&, t] {
      std::array<Lease, 8> mine;
      for (u64 n = 0; !stop; ++n) {
        Lease& l = mine[n % mine.size()];
        if (l.held()) ring_.release(l);
        EXPECT_EQ(lease(l, kStay + t), kOk);
      }
      for (Lease& l : mine)
        if (l.held()) ring_.release(l);
    });
  for (int walk = 0; walk < 200; ++walk) {
    std::vector<u64> seen;
    u64 cursor = 0;
    // Newcomers are behind the cursor's end; the walk is over when all that stay were listed.
    while (seen.size() < kStay) {
      const auto batch = removal.owners(cursor, 5);
      ASSERT_FALSE(batch.empty());
      for (u64 owner : batch)
        if (owner < kStay) seen.push_back(owner);
    }
    ASSERT_TRUE(std::ranges::is_sorted(seen));
    ASSERT_EQ(std::ranges::adjacent_find(seen), seen.end());
  }
  stop = true;
  for (auto& thread : churn) thread.join();
  removal.rollback();
  EXPECT_EQ(ring_.status(id_, kA).leases, kStay);
  for (Lease& l : stay) ring_.release(l);
}

struct Exercised {
  bool wrote, derived;
};

// Writes and derives as an inode would. Both are over when it returns: a release may wipe.
Exercised exercise(const Lease& lease, crypto::XtsKey& key, u64 number) {
  const bool wrote = GatePass::enter(lease).has_value();
  const auto use = KeyUse::begin(lease);
  if (use) use->extent_key(tests::nonce_of(number), key);
  return {wrote, use.has_value()};
}

// Adds, removals in both modes, leases, derivations and writers at once. What must hold: a lease
// derives unless it is cut off; under soft alone none ever is and every writer gets in; and at the
// end no byte is left.
class Stress : public KeyringTest, public testing::WithParamInterface<bool> {};

TEST_P(Stress, everything_at_once) {
  const bool with_hard = GetParam();
  const u64 seed = tests::seed_base() + 20260101;
  std::atomic<bool> stop{false};
  std::atomic<u64> leased{0}, cut{0}, wiped{0}, removed{0};
  std::vector<std::thread> threads;
  for (u64 t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {  // inodes
      auto key = Secret<crypto::XtsKey>::create();
      std::array<Lease, 4> mine;
      for (u64 n = 0; !stop; ++n) {
        Lease& l = mine[n % mine.size()];
        if (!l.held() && lease(l, t) != kOk) continue;
        ++leased;
        const Exercised did = exercise(l, **key, n);
        EXPECT_TRUE(did.derived || (with_hard && l.cut_off()));
        EXPECT_TRUE(did.wrote || with_hard);
        cut += !did.derived;
        if (n % 3 == 0 || !did.derived) wiped += ring_.release(l);
      }
      for (Lease& l : mine)
        if (l.held()) wiped += ring_.release(l);
    });
  for (u64 t = 0; t < 2; ++t)
    threads.emplace_back([&, t] {  // users
      std::mt19937_64 random(seed + t);
      const u32 uid = static_cast<u32>(kA + t);
      while (!stop) {
        if (random() % 2) add(uid);
        const bool all = random() % 8 == 0;
        const auto mode = with_hard && random() % 2 ? RemovalMode::hard : RemovalMode::soft;
        auto start = ring_.begin_removal(id_, all ? kRoot : uid, all, mode);
        if (!start || !start->removal) continue;
        u64 cursor = 0;
        while (!start->removal->owners(cursor, 2).empty()) continue;
        if (random() % 4 == 0) continue;
        removed += start->removal->commit().has_value();
      }
    });
  // A second, and on a busy machine as long as it takes until everything has happened.
  pause_ms(1000);
  for (int i = 0; i < 300 && (wiped == 0 || removed == 0 || (with_hard && cut == 0)); ++i)
    pause_ms(100);
  stop = true;
  for (auto& thread : threads) thread.join();
  EXPECT_GT(leased.load(), 0u) << "seed " << seed;
  EXPECT_GT(removed.load(), 0u) << "seed " << seed;
  EXPECT_GT(wiped.load(), 0u) << "seed " << seed;
  EXPECT_EQ(cut.load() != 0, with_hard) << "seed " << seed;
  add(kC);
  remove(kRoot, true);
  EXPECT_EQ(state(), KeyState::absent);
  EXPECT_FALSE(arena_holds(needles_.hkdf_inner) || arena_holds(needles_.master));
}

INSTANTIATE_TEST_SUITE_P(Modes, Stress, testing::Bool(),
                         [](const auto& p) { return p.param ? "soft_and_hard" : "soft"; });

}  // namespace
}  // namespace latchkey::keymgr
