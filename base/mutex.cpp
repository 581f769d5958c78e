#include "base/mutex.h"

#include "base/check.h"
#include "base/wait.h"

namespace latchkey {
namespace {

constexpr u32 kFree = 0;
constexpr u32 kHeld = 1;
constexpr u32 kContended = 2;

constexpr u32 kWriter = u32{1} << 31;

// A short hold ends sooner than a futex call; a longer one is slept through.
constexpr int kSpinCount = 40;

void pause() { __builtin_ia32_pause(); }

}  // namespace

// Acquire on the way in pairs with the release in unlock(): what the last holder wrote is seen.
void Mutex::lock() {
  u32 expected = kFree;
  if (state_.compare_exchange_strong(expected, kHeld, std::memory_order_acquire,
                                     std::memory_order_relaxed))
    return;
  for (int i = 0; i < kSpinCount && expected == kHeld; ++i) {
    pause();
    expected = kFree;
    if (state_.compare_exchange_weak(expected, kHeld, std::memory_order_acquire,
                                     std::memory_order_relaxed))
      return;
  }
  // From here on the lock is taken as contended: others may sleep, and only a useless wake is lost.
  while (state_.exchange(kContended, std::memory_order_acquire) != kFree)
    wait_on(state_, kContended);
}

bool Mutex::try_lock() {
  u32 expected = kFree;
  return state_.compare_exchange_strong(expected, kHeld, std::memory_order_acquire,
                                        std::memory_order_relaxed);
}

void Mutex::unlock() {
  const u32 before = state_.exchange(kFree, std::memory_order_release);
  LK_CHECK_MSG(before != kFree, "unlock of a mutex that nobody holds");
  if (before == kContended) wake_one(state_);
}

// SharedMutex. The sequentially consistent operations are one pattern: a sleeper raises sleepers_
// and then looks at state_; who releases changes state_ and then looks at sleepers_. In the one
// order of these four at least one sees the other, so no sleeper is missed. The sleeper has read
// wake_ before it looked: a release after that look changes wake_ and the futex does not sleep.
// They are also the acquire and the release that order what the lock protects.

void SharedMutex::lock() {
  u32 expected = 0;
  if (state_.compare_exchange_strong(expected, kWriter)) return;
  // Relaxed: a reader that misses it goes in before this writer, as if it had come earlier.
  writers_waiting_.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    expected = 0;
    if (state_.compare_exchange_strong(expected, kWriter)) break;
    sleep_while_blocked(true);
  }
  // The readers that this writer kept out sleep until its unlock().
  writers_waiting_.fetch_sub(1, std::memory_order_relaxed);
}

void SharedMutex::unlock() {
  const u32 before = state_.exchange(0);
  LK_CHECK_MSG(before == kWriter, "exclusive unlock of a lock that is not held so");
  wake_sleepers();
}

void SharedMutex::lock_shared() {
  u32 state = state_.load();
  for (;;) {
    if ((state & kWriter) != 0 || writers_waiting_.load(std::memory_order_relaxed) != 0) {
      sleep_while_blocked(false);
      state = state_.load();
      continue;
    }
    LK_CHECK_MSG(state + 1 < kWriter, "too many readers");
    if (state_.compare_exchange_weak(state, state + 1)) return;
  }
}

void SharedMutex::unlock_shared() {
  const u32 before = state_.fetch_sub(1);
  LK_CHECK_MSG(before != 0 && (before & kWriter) == 0,
               "shared unlock of a lock that is not held so");
  if (before == 1) wake_sleepers();
}

// One sleep at most. A reader that finds only writers_waiting_ raised sleeps too: that writer's
// unlock() wakes it.
void SharedMutex::sleep_while_blocked(bool exclusive) {
  sleepers_.fetch_add(1);
  const u32 wake = wake_.load();
  const u32 state = state_.load();
  const bool blocked =
      exclusive ? state != 0 : (state & kWriter) != 0 || writers_waiting_.load() != 0;
  if (blocked) wait_on(wake_, wake);
  sleepers_.fetch_sub(1);
}

void SharedMutex::wake_sleepers() {
  if (sleepers_.load() == 0) return;
  wake_.fetch_add(1);
  wake_all(wake_);
}

// CondVar. A waiter is counted and has read sequence_ before it gives up the mutex; who notifies
// has changed the predicate under the mutex, so he comes after that and sees the waiter, or came
// before and the waiter saw the predicate. The notify changes sequence_: a waiter not yet asleep
// stays awake.

void CondVar::wait(Mutex& mutex) { wait_for(mutex, kForever); }

bool CondVar::wait_for(Mutex& mutex, u64 timeout_ns) {
  waiters_.fetch_add(1);
  const u32 sequence = sequence_.load();
  mutex.unlock();
  const bool woken = wait_on(sequence_, sequence, timeout_ns);
  const bool notified = woken || sequence_.load() != sequence;
  waiters_.fetch_sub(1);
  mutex.lock();
  return notified;
}

void CondVar::notify_one() {
  sequence_.fetch_add(1);
  if (waiters_.load() != 0) wake_one(sequence_);
}

void CondVar::notify_all() {
  sequence_.fetch_add(1);
  if (waiters_.load() != 0) wake_all(sequence_);
}

}  // namespace latchkey
