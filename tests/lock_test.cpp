// base/mutex.h and base/wait.h: exclusion, preference of writers, no lost wake-up, the scheduler's
// hook. Run under TSan too: the counters behind the locks are plain.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/env.h"
#include "base/mutex.h"
#include "base/wait.h"

namespace latchkey {
namespace {

constexpr u64 kMillisecond = 1'000'000;
constexpr u64 kHang = 20'000 * kMillisecond;  // who sleeps this long was forgotten

template <class Body>
void run_threads(int count, Body body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&body, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

class NoThreads : public Scheduler {
 public:
  u64 start_thread(std::function<void()>) override { LK_CHECK_MSG(false, "no threads here"); }
  void join_thread(u64) override { LK_CHECK_MSG(false, "no threads here"); }
};

// Stands in for the kernel and shows who sleeps, so that a test can wait for "the writer waits"
// instead of hoping for it. Wakes more threads than asked for, which every caller must bear.
class WatchedScheduler final : public NoThreads {
 public:
  WatchedScheduler() { install_scheduler(this); }
  ~WatchedScheduler() override { install_scheduler(nullptr); }

  bool wait_on(std::atomic<u32>& word, u32 expected, u64 timeout_ns) override {
    std::unique_lock lock(mutex_);
    last_timeout_ns_ = timeout_ns;
    if (word.load() != expected) return true;
    const u64 wakes = wakes_[&word];
    ++sleepers_;
    changed_.notify_all();
    if (timeout_ns == kForever) changed_.wait(lock, [&] { return wakes_[&word] != wakes; });
    const bool woken = wakes_[&word] != wakes;
    --sleepers_;
    return woken;
  }
  void wake(std::atomic<u32>& word, u32) override {
    std::lock_guard lock(mutex_);
    ++wakes_[&word];
    ++wake_calls_;
    changed_.notify_all();
  }

  void await_sleepers(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return sleepers_ == count; });
  }
  u64 last_timeout_ns() {
    std::lock_guard lock(mutex_);
    return last_timeout_ns_;
  }
  u64 wake_calls() {
    std::lock_guard lock(mutex_);
    return wake_calls_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::atomic<u32>*, u64> wakes_;
  u64 wake_calls_ = 0;
  u64 last_timeout_ns_ = 0;
  int sleepers_ = 0;
};

// ---- the futex itself

TEST(Wait, ReturnsAtOnceWhenTheWordDiffers) {
  std::atomic<u32> word{1};
  EXPECT_TRUE(wait_on(word, 0));
}

TEST(Wait, TimesOut) {
  std::atomic<u32> word{0};
  const u64 begin = system_env().monotonic_ns();
  while (wait_on(word, 0, 20 * kMillisecond)) {
  }
  EXPECT_GE(system_env().monotonic_ns() - begin, 20 * kMillisecond);
}

TEST(Wait, APauseLastsItsTimeAndIsAWaitLikeAnyOther) {
  const u64 begin = system_env().monotonic_ns();
  pause_for(20 * kMillisecond);
  EXPECT_GE(system_env().monotonic_ns() - begin, 20 * kMillisecond);
  WatchedScheduler scheduler;
  pause_for(1'234'567);
  EXPECT_EQ(scheduler.last_timeout_ns(), 1'234'567U);
}

TEST(Wait, WakeAllReachesEverySleeper) {
  std::atomic<u32> word{0};
  std::atomic<int> timed_out{0};
  std::thread waker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    word.store(1);
    wake_all(word);
  });
  run_threads(4, [&](int) {
    while (word.load() == 0)
      if (!wait_on(word, 0, kHang)) ++timed_out;
  });
  waker.join();
  EXPECT_EQ(timed_out, 0);
}

// ---- Mutex

TEST(Mutex, KeepsThreadsApart) {
  Mutex mutex;
  u64 counter = 0;
  run_threads(4, [&](int thread) {
    for (int i = 0; i < 50'000; ++i) {
      Lock lock(mutex);
      ++counter;
      // Some holds are long, so that others sleep and the contended state is walked.
      if (i % 5'000 == thread) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  EXPECT_EQ(counter, 200'000U);
}

TEST(Mutex, TryLockTellsWhetherItIsHeld) LK_NO_ANALYSIS {
  Mutex mutex;
  ASSERT_TRUE(mutex.try_lock());
  bool second = true;
  std::thread([&] { second = mutex.try_lock(); }).join();
  EXPECT_FALSE(second);
  mutex.unlock();
  EXPECT_TRUE(mutex.try_lock());
  mutex.unlock();
}

TEST(Mutex, WakesASleeperAndOnlyThenCallsTheKernel) {
  WatchedScheduler scheduler;
  Mutex mutex;
  mutex.lock();
  mutex.unlock();
  EXPECT_EQ(scheduler.wake_calls(), 0U);
  mutex.lock();
  std::thread other([&] { Lock lock(mutex); });
  scheduler.await_sleepers(1);
  EXPECT_EQ(scheduler.last_timeout_ns(), kForever);
  mutex.unlock();
  other.join();
  EXPECT_GE(scheduler.wake_calls(), 1U);
}

TEST(MutexDeathTest, UnlockOfAFreeMutexStopsTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Mutex mutex;
  EXPECT_DEATH([&]() LK_NO_ANALYSIS { mutex.unlock(); }(), "nobody holds");
  SharedMutex shared;
  EXPECT_DEATH([&]() LK_NO_ANALYSIS { shared.unlock(); }(), "not held so");
  EXPECT_DEATH([&]() LK_NO_ANALYSIS { shared.unlock_shared(); }(), "not held so");
}

// ---- SharedMutex

TEST(SharedMutex, ReadersSeeWholeWrites) {
  SharedMutex mutex;
  u64 left = 0;
  u64 right = 0;
  std::atomic<u64> torn{0};
  run_threads(4, [&](int thread) {
    for (int i = 0; i < 20'000; ++i) {
      if (thread == 0 || (thread == 1 && i % 16 == 0)) {
        ExclusiveLock lock(mutex);
        ++left;
        if (i % 2'000 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
        ++right;
      } else {
        SharedLock lock(mutex);
        if (left != right) ++torn;
      }
    }
  });
  EXPECT_EQ(torn, 0U);
  EXPECT_EQ(left, 21'250U);
  EXPECT_EQ(left, right);
}

TEST(SharedMutex, ReadersShare) {
  SharedMutex mutex;
  std::atomic<int> inside{0};
  run_threads(3, [&](int) {
    SharedLock lock(mutex);
    ++inside;
    // Ends only if all three are inside at once.
    while (inside != 3) std::this_thread::yield();
  });
  EXPECT_EQ(inside, 3);
}

TEST(SharedMutex, AWaitingWriterKeepsNewReadersOut) {
  WatchedScheduler scheduler;
  SharedMutex mutex;
  Mutex order_mutex;
  std::vector<char> order;
  const auto note = [&](char who) {
    Lock lock(order_mutex);
    order.push_back(who);
  };
  mutex.lock_shared();
  std::thread writer([&] {
    ExclusiveLock lock(mutex);
    note('w');
  });
  scheduler.await_sleepers(1);
  std::thread reader([&] {
    SharedLock lock(mutex);
    note('r');
  });
  scheduler.await_sleepers(2);
  mutex.unlock_shared();
  writer.join();
  reader.join();
  EXPECT_EQ(order, (std::vector<char>{'w', 'r'}));
}

TEST(SharedMutex, WritersAreNotStarvedByReaders) {
  SharedMutex mutex;
  std::atomic<bool> stop{false};
  u64 writes = 0;
  std::thread writer([&] {
    for (int i = 0; i < 200; ++i) {
      ExclusiveLock lock(mutex);
      ++writes;
    }
    stop = true;
  });
  run_threads(3, [&](int) {
    while (!stop) SharedLock lock(mutex);
  });
  writer.join();
  EXPECT_EQ(writes, 200U);
}

TEST(SharedMutex, CallsTheKernelOnlyForSleepers) {
  WatchedScheduler scheduler;
  SharedMutex mutex;
  {
    ExclusiveLock lock(mutex);
  }
  {
    SharedLock lock(mutex);
  }
  EXPECT_EQ(scheduler.wake_calls(), 0U);
}

// ---- CondVar

struct Queue {
  Mutex mutex;
  CondVar not_empty;
  CondVar not_full;
  std::deque<u64> items LK_GUARDED_BY(mutex);
  u64 forgotten LK_GUARDED_BY(mutex) = 0;

  void push(u64 item) {
    Lock lock(mutex);
    while (items.size() >= 2)
      if (!not_full.wait_for(mutex, kHang)) ++forgotten;
    items.push_back(item);
    not_empty.notify_one();
  }
  u64 pop() {
    u64 item = 0;
    {
      Lock lock(mutex);
      while (items.empty())
        if (!not_empty.wait_for(mutex, kHang)) ++forgotten;
      item = items.front();
      items.pop_front();
    }
    not_full.notify_one();  // outside of the lock: allowed too
    return item;
  }
};

TEST(CondVar, LosesNoWakeUp) {
  constexpr u64 kItems = 10'000;
  Queue queue;
  std::atomic<u64> sum{0};
  run_threads(4, [&](int thread) {
    for (u64 i = 1; i <= kItems; ++i) {
      if (thread < 2)
        queue.push(i);
      else
        sum += queue.pop();
    }
  });
  EXPECT_EQ(sum, kItems * (kItems + 1));
  Lock lock(queue.mutex);
  EXPECT_EQ(queue.forgotten, 0U);
  EXPECT_TRUE(queue.items.empty());
}

TEST(CondVar, NotifyAllReleasesEveryone) {
  Mutex mutex;
  CondVar changed;
  int rounds = 0;
  int arrived = 0;
  // A barrier of four, a thousand times: one forgotten thread stops all.
  run_threads(4, [&](int) {
    for (int round = 0; round < 1'000; ++round) {
      Lock lock(mutex);
      if (++arrived == 4) {
        arrived = 0;
        ++rounds;
        changed.notify_all();
      } else {
        while (rounds == round) ASSERT_TRUE(changed.wait_for(mutex, kHang)) << "forgotten";
      }
    }
  });
  EXPECT_EQ(rounds, 1'000);
}

TEST(CondVar, WaitForTimesOutWithTheMutexHeld) {
  Mutex mutex;
  CondVar never;
  Lock lock(mutex);
  const u64 begin = system_env().monotonic_ns();
  while (never.wait_for(mutex, 10 * kMillisecond)) {
  }
  EXPECT_GE(system_env().monotonic_ns() - begin, 10 * kMillisecond);
  bool free = true;
  std::thread([&]() LK_NO_ANALYSIS { free = mutex.try_lock(); }).join();
  EXPECT_FALSE(free);
}

TEST(CondVar, HandsItsTimeoutToTheScheduler) {
  WatchedScheduler scheduler;
  Mutex mutex;
  CondVar never;
  Lock lock(mutex);
  EXPECT_FALSE(never.wait_for(mutex, 12'345));
  EXPECT_EQ(scheduler.last_timeout_ns(), 12'345U);
  never.notify_all();
  EXPECT_EQ(scheduler.wake_calls(), 0U);
}

TEST(CondVar, ANotifyBetweenUnlockAndSleepIsSeen) {
  // The scheduler notifies at the moment that lies between: when the waiter asks to sleep.
  class Notifier final : public NoThreads {
   public:
    explicit Notifier(CondVar& target) : target_(target) { install_scheduler(this); }
    ~Notifier() override { install_scheduler(nullptr); }
    bool wait_on(std::atomic<u32>& word, u32 expected, u64) override {
      if (!notified_) {
        notified_ = true;
        target_.notify_one();
      }
      slept_ = word.load() == expected;
      return !slept_;
    }
    void wake(std::atomic<u32>&, u32) override {}
    bool slept() const { return slept_; }

   private:
    CondVar& target_;
    bool notified_ = false;
    bool slept_ = true;
  };
  Mutex mutex;
  CondVar condition;
  Notifier scheduler(condition);
  Lock lock(mutex);
  EXPECT_TRUE(condition.wait_for(mutex, kHang));
  EXPECT_FALSE(scheduler.slept());
}

}  // namespace
}  // namespace latchkey
