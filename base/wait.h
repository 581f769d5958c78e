#pragma once
// The one place below Mutex, SharedMutex, CondVar, the key's gate and pauses where a thread stops:
// a futex in production, a scheduling point when a Scheduler is installed (the simulator's fibers).

#include <atomic>
#include <functional>

#include "base/types.h"

namespace latchkey {

inline constexpr u64 kForever = ~u64{0};

class Scheduler {
 public:
  virtual ~Scheduler() = default;
  // Returns when woken, when `timeout_ns` has passed (false), or for no reason; at once when
  // `word` does not hold `expected`.
  virtual bool wait_on(std::atomic<u32>& word, u32 expected, u64 timeout_ns) = 0;
  virtual void wake(std::atomic<u32>& word, u32 count_max) = 0;
  // For base/thread.h: runs `body` beside the caller; what is returned is joined once.
  virtual u64 start_thread(std::function<void()> body) = 0;
  virtual void join_thread(u64 thread) = 0;
};

// Not thread-safe: set before any thread waits. nullptr is the kernel, and costs a wait or a wake
// one branch beside its system call; a lock that is free asks nobody.
void install_scheduler(Scheduler* scheduler);
Scheduler* installed_scheduler();

bool wait_on(std::atomic<u32>& word, u32 expected, u64 timeout_ns = kForever);
// Lets the time pass; for retries of what nobody will announce. A signal may lengthen it.
void pause_for(u64 duration_ns);

void wake_one(std::atomic<u32>& word);
void wake_all(std::atomic<u32>& word);

}  // namespace latchkey
