#pragma once
// Mutex, SharedMutex and CondVar: the only locks of the project, so that every place where a thread
// can stop goes through base/wait.h and a simulator can schedule it. They are futex words; the
// simulator's fibers use the same code.
//
// Not recursive. A CondVar is used with the Mutex given to wait(); spurious wake-ups happen.
//
// Source of the Mutex: Drepper, "Futexes Are Tricky", mutex2.

#include <atomic>

#include "base/thread_annotations.h"
#include "base/types.h"

namespace latchkey {

class LK_CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() LK_ACQUIRE();
  void unlock() LK_RELEASE();
  bool try_lock() LK_TRY_ACQUIRE(true);

 private:
  std::atomic<u32> state_{0};  // 0 free, 1 held, 2 held and somebody may wait
};

// Writers are preferred: a waiting writer keeps new readers out, so a stream of readers cannot
// starve it. A thread that holds it shared must not take it shared again.
class LK_CAPABILITY("shared_mutex") SharedMutex {
 public:
  SharedMutex() = default;
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;

  void lock() LK_ACQUIRE();
  void unlock() LK_RELEASE();
  void lock_shared() LK_ACQUIRE_SHARED();
  void unlock_shared() LK_RELEASE_SHARED();
  // Somebody sleeps because of it, or was woken and has not come that far: who has just released it
  // and wants it again next can give way.
  bool wanted() const { return sleepers_.load(std::memory_order_relaxed) != 0; }

 private:
  void sleep_while_blocked(bool exclusive);
  void wake_sleepers();

  std::atomic<u32> state_{0};            // readers inside; the top bit: a writer is inside
  std::atomic<u32> writers_waiting_{0};  // writers that want in
  std::atomic<u32> sleepers_{0};         // threads that sleep on wake_ or are about to
  std::atomic<u32> wake_{0};             // futex word, changed at each release that has sleepers
};

class LK_SCOPED_CAPABILITY Lock {
 public:
  explicit Lock(Mutex& mutex) LK_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~Lock() LK_RELEASE() { mutex_.unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  Mutex& mutex_;
};

class LK_SCOPED_CAPABILITY ExclusiveLock {
 public:
  explicit ExclusiveLock(SharedMutex& mutex) LK_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~ExclusiveLock() LK_RELEASE() { mutex_.unlock(); }
  ExclusiveLock(const ExclusiveLock&) = delete;
  ExclusiveLock& operator=(const ExclusiveLock&) = delete;

 private:
  SharedMutex& mutex_;
};

class LK_SCOPED_CAPABILITY SharedLock {
 public:
  explicit SharedLock(SharedMutex& mutex) LK_ACQUIRE_SHARED(mutex) : mutex_(mutex) {
    mutex_.lock_shared();
  }
  ~SharedLock() LK_RELEASE_GENERIC() { mutex_.unlock_shared(); }
  SharedLock(const SharedLock&) = delete;
  SharedLock& operator=(const SharedLock&) = delete;

 private:
  SharedMutex& mutex_;
};

// Destroyed only when every waiter has returned from its wait.
class CondVar {
 public:
  // Releases `mutex`, waits for a notify, takes it again.
  void wait(Mutex& mutex) LK_REQUIRES(mutex);
  // The same with a bound; false when `timeout_ns` passed without a notify.
  bool wait_for(Mutex& mutex, u64 timeout_ns) LK_REQUIRES(mutex);
  void notify_one();
  void notify_all();

 private:
  std::atomic<u32> sequence_{0};  // futex word, changed at each notify
  std::atomic<u32> waiters_{0};   // threads between their look at sequence_ and their return
};

}  // namespace latchkey
