#pragma once
// A section that many may be inside of at once, and that one thread can close and wait to be empty:
// the key's gate (writers) and its uses (derivations).
//
// One word: the state in the top two bits, below them how many are inside. Admission looks at the
// state and counts in one atomic step, so nobody is admitted after a close, and a drain that has
// seen zero stays true while the gate is closed. Uncontended it costs one compare-exchange in and
// one subtraction out.
//
// enter, leave and drain: any thread. set: the caller serialises (the key's mutex).

#include <atomic>

#include "base/types.h"

namespace latchkey::keymgr {

class Gate {
 public:
  enum class State : u32 {
    open = 0,
    held = 1,     // who comes waits
    stopped = 2,  // who comes is turned away
  };

  // Inside, or false: stopped. Waits while held.
  bool enter();
  // Open: inside now. Held, stopped: not inside.
  State try_enter();
  // Returns when the gate is not held any more.
  void wait_while_held();
  void leave();

  void set(State state);
  // Returns when nobody is inside or when somebody has opened the gate again.
  void drain();
  State state() const { return state_of(word_.load(std::memory_order_acquire)); }
  u32 inside() const { return word_.load(std::memory_order_acquire) & kCountMask; }

 private:
  static constexpr u32 kStateShift = 30;
  static constexpr u32 kCountMask = (u32{1} << kStateShift) - 1;
  static State state_of(u32 word) { return static_cast<State>(word >> kStateShift); }

  std::atomic<u32> word_{0};
};

}  // namespace latchkey::keymgr
