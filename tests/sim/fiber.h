#pragma once
// A stack of its own for each actor of the simulator, and the switch between it and the stack of
// who runs it. x86-64; known to the address and the thread sanitizer.
//
// What product code keeps for each thread (base/no_wait.h, base/secret_work.h) is kept for each
// fiber. One thread runs all fibers of a process, so nothing here is thread-safe.

#include <functional>
#include <span>

#include "base/types.h"

namespace latchkey::tests {

class Fiber {
 public:
  explicit Fiber(std::function<void()> body);  // runs at the first resume(); throws nothing
  ~Fiber();                                    // ended, or never begun
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // From outside of all fibers: runs it until it pauses or ends.
  void resume();
  // From inside of it: back to resume()'s caller, until the next one.
  void pause();
  bool ended() const { return ended_; }
  // From outside, while it pauses: what its body has on the stack. Fibers that begin in one order
  // while no other one lives get the same stacks, so two runs can be compared byte by byte.
  std::span<const std::byte> live_stack() const;
  // Zeroes so much of the stack as lies below that, which nobody reads again.
  void wipe_dead_stack(u64 bytes);

 private:
  static void enter(Fiber* self);
  void leave_for_good();
  void swap_thread_state();

  std::function<void()> body_;
  std::byte* stack_ = nullptr;
  void* own_top_ = nullptr;      // where its stack was left
  void* outside_top_ = nullptr;  // where the resumer's was
  bool begun_ = false;
  bool ended_ = false;
  u32 no_wait_depth_ = 0;
  u32 secret_work_depth_ = 0;
  // What the sanitizers want to know at a switch; unused without them.
  struct Watched {
    void* own_fake_stack = nullptr;
    void* outside_fake_stack = nullptr;
    const void* outside_bottom = nullptr;
    std::size_t outside_size = 0;
    void* own_context = nullptr;
    void* outside_context = nullptr;
  };
  Watched watched_;
};

}  // namespace latchkey::tests
