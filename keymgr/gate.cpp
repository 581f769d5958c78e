#include "keymgr/gate.h"

#include "base/check.h"
#include "base/wait.h"

namespace latchkey::keymgr {

bool Gate::enter() {
  for (;;) {
    const State state = try_enter();
    if (state != State::held) return state == State::open;
    wait_while_held();
  }
}

Gate::State Gate::try_enter() {
  u32 word = word_.load(std::memory_order_relaxed);
  while (state_of(word) == State::open) {
    LK_CHECK((word & kCountMask) != kCountMask);
    // Acquire pairs with set(): who enters after a removal went back sees what it left.
    if (word_.compare_exchange_weak(word, word + 1, std::memory_order_acquire,
                                    std::memory_order_relaxed))
      break;
  }
  return state_of(word);
}

void Gate::wait_while_held() {
  for (;;) {
    const u32 word = word_.load(std::memory_order_acquire);
    if (state_of(word) != State::held) return;
    wait_on(word_, word);
  }
}

void Gate::leave() {
  // Release pairs with the acquire in drain(): what was done inside happened before the drain ends.
  const u32 before = word_.fetch_sub(1, std::memory_order_release);
  LK_CHECK((before & kCountMask) != 0);
  if (state_of(before) != State::open && (before & kCountMask) == 1) wake_all(word_);
}

void Gate::set(State state) {
  u32 word = word_.load(std::memory_order_relaxed);
  u32 changed;
  do {
    changed = (word & kCountMask) | (static_cast<u32>(state) << kStateShift);
  } while (!word_.compare_exchange_weak(word, changed, std::memory_order_acq_rel,
                                        std::memory_order_relaxed));
  wake_all(word_);
}

void Gate::drain() {
  for (;;) {
    const u32 word = word_.load(std::memory_order_acquire);
    if ((word & kCountMask) == 0 || state_of(word) == State::open) return;
    wait_on(word_, word);
  }
}

}  // namespace latchkey::keymgr
