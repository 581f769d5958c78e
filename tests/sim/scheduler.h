#pragma once
// The simulator's scheduler (design T2): every actor is a fiber, one of them runs at a time, a seed
// says which is next at each place where a thread may stop, and virtual time moves.
//
// Scheduling points
//   - every wait and wake of base/wait.h: contended locks, CondVar, the key's gate, pauses
//   - before each lock is taken and after each is given back, contended or not, and at the gate:
//     calls that lock_points.cpp puts around those functions when a program is linked with lk_sim,
//     so the product's code is the one that ships
//   - the wait of a simulated Io (sleep_until), the start and the join of a thread
//
// Time: a step costs a little by seed; when all wait, the clock goes on to the first deadline. That
// all wait without any deadline is a deadlock and stops the process.
//
// Two runs with the same seed and the same bodies make the same choices: nothing here depends on an
// address, but for whether two are equal. trace() is a hash of all choices.

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "base/wait.h"
#include "tests/sim/fiber.h"
#include "tests/support/random.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {

struct SchedulerOptions {
  u64 seed = 1;
  u32 preempt_in_1024 = 64;  // of the points where nobody must wait: how often another goes on
  u32 spurious_in_1024 = 8;  // waits that return for no reason
  bool by_priority = false;  // the same fiber goes on as long as it can; now and then it falls back
  u64 step_ns_max = 400;     // what a step costs at most
  u64 steps_max = 40'000'000;  // of one run: more is a livelock, which stops the process
};

// Who hears of the places that lock_points.cpp knows: there another fiber may go on.
class PointScheduler : public Scheduler {
 public:
  // The first three come before what they name, the others after it.
  enum class Place : u8 { lock, lock_shared, enter_or_try, unlock, leave };
  virtual void at(Place place, const void* object) = 0;
  // The one whose fiber calls, or nullptr.
  static PointScheduler* current() { return current_; }

 protected:
  static inline PointScheduler* current_ = nullptr;
};

class FiberScheduler final : public PointScheduler, public SimClock {
 public:
  explicit FiberScheduler(const SchedulerOptions& options);
  ~FiberScheduler() override;
  FiberScheduler(const FiberScheduler&) = delete;
  FiberScheduler& operator=(const FiberScheduler&) = delete;

  // Installs itself, runs `body` as a fiber, returns when it and all that it started have ended.
  // The clock and the choices go on from the last run.
  void run(std::function<void()> body);

  // Of SimClock. In a fiber these sleep; outside the clock goes there at once.
  u64 now_ns() override { return now_ns_; }
  void sleep(std::atomic<u32>& word, u32 seen, u64 ns) override;
  void sleep_until(u64 ns);
  // A place where another fiber may go on; nothing outside of fibers.
  void point();
  bool inside() const { return running_ != nullptr; }
  // For what the run did besides the choices made here: it becomes part of the trace.
  void note(u64 value) { trace_ = (trace_ ^ value) * 0x9e3779b97f4a7c15U + (trace_ >> 29U); }
  u64 trace() const { return trace_; }
  u64 steps() const { return steps_; }

  void at(Place, const void*) override { point(); }
  bool wait_on(std::atomic<u32>& word, u32 expected, u64 timeout_ns) override;
  void wake(std::atomic<u32>& word, u32 count_max) override;
  u64 start_thread(std::function<void()> body) override;
  void join_thread(u64 thread) override;

 private:
  enum class Wait : u8 { none, word, time, join };
  struct Actor {
    u64 name = 0;
    std::unique_ptr<Fiber> fiber;
    u64 priority = 0;
    Wait wait = Wait::none;
    const std::atomic<u32>* word = nullptr;
    u64 join = 0;
    u64 deadline_ns = kForever;
    bool timed_out = false;
  };

  u64 add(std::function<void()> body);
  Actor* find(u64 name);
  std::vector<Actor*> ready();
  Actor& choose();
  void wake_due();
  void block(Wait wait, u64 deadline_ns);  // of the running actor
  void draw_next_point();
  u64 below(u64 bound) { return random_() % bound; }

  const SchedulerOptions options_;
  SplitMix64 random_;
  std::vector<std::unique_ptr<Actor>> actors_;  // in the order of their start
  Actor* running_ = nullptr;
  u64 next_name_ = 1;
  u64 now_ns_ = 0;
  u64 steps_ = 0;
  u64 steps_begun_ = 0;
  u64 points_left_ = 0;  // until one of point() switches
  u64 trace_ = 0;
};

}  // namespace latchkey::tests
