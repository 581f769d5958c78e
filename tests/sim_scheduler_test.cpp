// Goal: under the simulator's scheduler the locks keep their promises, time moves only as it says,
// and a seed repeats a run choice by choice. Method: fibers that use Mutex, SharedMutex, CondVar,
// the key's gate and Thread as the product does; many seeds; bodies with a planted race, which some
// seed must find.

#include <gtest/gtest.h>

#include <set>

#include "base/mutex.h"
#include "base/no_wait.h"
#include "base/thread.h"
#include "keymgr/gate.h"
#include "tests/sim/scheduler.h"
#include "tests/support/random.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

void start_and_join(int count, const std::function<void(int)>& body) {
  std::vector<Thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&body, i] { body(i); });
  for (Thread& thread : threads) thread.join();
}

// Calls body(scheduler) as a fiber under many seeds and all kinds of choices.
void under_seeds(u64 count, const std::function<void(FiberScheduler&)>& body) {
  for (const u64 seed : seeds(count)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    FiberScheduler scheduler({.seed = seed,
                              .preempt_in_1024 = static_cast<u32>(seed % 3 * 200),
                              .spurious_in_1024 = static_cast<u32>(seed % 2 * 100),
                              .by_priority = seed % 5 == 0});
    scheduler.run([&] { body(scheduler); });
  }
}

TEST(Seeds, are_of_streams_that_have_nothing_in_common) {
  std::set<u64> drawn;
  for (u64 seed = 1; seed <= 1000; ++seed) {
    SplitMix64 by_one(seed), by_step(seed * 0x9e3779b97f4a7c15U);
    for (int i = 0; i < 10; ++i) {
      drawn.insert(by_one());
      drawn.insert(by_step());
    }
  }
  EXPECT_EQ(drawn.size(), 20000U);
}

TEST(Fibers, start_end_and_join_as_threads_do) {
  under_seeds(50, [](FiberScheduler&) {
    int ended = 0;
    start_and_join(5, [&](int) {
      start_and_join(2, [&](int) { ++ended; });
      ++ended;
    });
    EXPECT_EQ(ended, 15);
  });
}

TEST(Fibers, a_mutex_keeps_them_apart_and_preemption_finds_who_goes_without) {
  under_seeds(100, [](FiberScheduler& scheduler) {
    Mutex mutex;
    u64 counter = 0;
    start_and_join(3, [&](int) {
      for (int i = 0; i < 20; ++i) {
        Lock lock(mutex);
        const u64 seen = counter;
        scheduler.point();
        counter = seen + 1;
      }
    });
    EXPECT_EQ(counter, 60U);
  });
  // The same with the look and the change in two sections: an update is lost under most seeds.
  u64 wrong = 0;
  under_seeds(100, [&](FiberScheduler&) {
    Mutex mutex;
    u64 counter = 0;
    start_and_join(3, [&](int) {
      for (int i = 0; i < 20; ++i) {
        u64 seen = 0;
        {
          Lock lock(mutex);
          seen = counter;
        }
        Lock lock(mutex);
        counter = seen + 1;
      }
    });
    wrong += counter != 60 ? 1 : 0;
  });
  EXPECT_GT(wrong, 50U);
}

TEST(Fibers, writers_of_a_shared_mutex_are_alone) {
  under_seeds(100, [](FiberScheduler& scheduler) {
    SharedMutex mutex;
    int readers = 0, writers = 0, most = 0;
    start_and_join(5, [&](int who) {
      for (int i = 0; i < 10; ++i) {
        if (who < 2) {
          ExclusiveLock lock(mutex);
          EXPECT_EQ(readers + writers++, 0);
          scheduler.point();
          --writers;
        } else {
          SharedLock lock(mutex);
          EXPECT_EQ(writers, 0);
          most = std::max(most, ++readers);
          scheduler.point();
          --readers;
        }
      }
    });
    EXPECT_GT(most, 0);
  });
}

TEST(Fibers, a_queue_with_a_condition_loses_nothing) {
  under_seeds(100, [](FiberScheduler&) {
    Mutex mutex;
    CondVar filled;
    std::vector<int> queue;
    int taken = 0;
    start_and_join(4, [&](int who) {
      for (int i = 0; i < 10; ++i) {
        Lock lock(mutex);
        if (who % 2 == 0) {
          queue.push_back(i);
          filled.notify_one();
        } else {
          while (queue.empty()) filled.wait(mutex);
          queue.pop_back();
          ++taken;
        }
      }
    });
    EXPECT_EQ(taken, 20);
  });
}

TEST(Fibers, the_gate_is_drained_before_the_drain_ends) {
  under_seeds(100, [](FiberScheduler& scheduler) {
    keymgr::Gate gate;
    int inside = 0;
    bool drained = false;
    start_and_join(4, [&](int who) {
      if (who == 0) {
        scheduler.sleep_until(scheduler.now_ns() + 500);
        gate.set(keymgr::Gate::State::stopped);
        gate.drain();
        EXPECT_EQ(inside, 0);
        drained = true;
        return;
      }
      while (gate.enter()) {
        EXPECT_FALSE(drained);
        ++inside;
        scheduler.sleep_until(scheduler.now_ns() + 100);
        --inside;
        gate.leave();
      }
    });
    EXPECT_TRUE(drained);
  });
}

TEST(Fibers, time_moves_to_the_first_deadline_when_all_wait) {
  FiberScheduler scheduler({.seed = seed_base() + 1, .spurious_in_1024 = 0, .step_ns_max = 0});
  std::vector<u64> woke;
  scheduler.run([&] {
    start_and_join(3, [&](int i) {
      pause_for(1'000'000'000 * static_cast<u64>(3 - i));
      woke.push_back(scheduler.now_ns());
    });
    Mutex mutex;
    CondVar nobody;
    Lock lock(mutex);
    EXPECT_FALSE(nobody.wait_for(mutex, 500));
  });
  EXPECT_EQ(woke, (std::vector<u64>{1'000'000'000, 2'000'000'000, 3'000'000'000}));
  EXPECT_EQ(scheduler.now_ns(), 3'000'000'500U);
}

TEST(Fibers, what_is_kept_for_each_thread_is_kept_for_each_fiber) {
  under_seeds(20, [](FiberScheduler& scheduler) {
    start_and_join(3, [&](int who) {
      for (int i = 0; i < who; ++i) begin_no_wait();
      for (int i = 0; i < 5; ++i) scheduler.sleep_until(scheduler.now_ns() + 1000);
      EXPECT_EQ(no_wait_depth, static_cast<u32>(who));
      for (int i = 0; i < who; ++i) end_no_wait();
    });
    EXPECT_EQ(no_wait_depth, 0U);
  });
}

// Some fibers that race for a lock: the order in which they got it, and the run's trace.
std::pair<std::vector<int>, u64> race(u64 seed) {
  std::vector<int> order;
  FiberScheduler scheduler({.seed = seed});
  scheduler.run([&] {
    Mutex mutex;
    start_and_join(4, [&](int who) {
      for (int i = 0; i < 10; ++i) {
        Lock lock(mutex);
        order.push_back(who);
        if (i % 3 == 0) scheduler.sleep_until(scheduler.now_ns() + 300);
      }
    });
  });
  return {order, scheduler.trace()};
}

TEST(Fibers, a_seed_repeats_a_run_and_another_seed_does_not) {
  std::set<u64> traces;
  for (const u64 seed : seeds(50)) {
    const auto first = race(seed);
    EXPECT_EQ(first, race(seed)) << "seed " << seed;
    traces.insert(first.second);
  }
  EXPECT_EQ(traces.size(), 50U);
}

TEST(FibersDeathTest, a_deadlock_stops_the_process) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      []() LK_NO_ANALYSIS {
        FiberScheduler scheduler({.seed = 1});
        scheduler.run([]() LK_NO_ANALYSIS {
          Mutex mutex;
          mutex.lock();
          mutex.lock();
        });
      }(),
      "a deadlock: all fibers wait for ever");
}

}  // namespace
}  // namespace latchkey::tests
