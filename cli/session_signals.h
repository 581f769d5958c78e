#pragma once
// A handler for SIGUSR1 that counts and keeps what the kernel saved of the vector registers, so
// that a scan finds a key that any of its frames held. On an alternative stack where a thread has
// one. What is kept is kept by phases, so that a busy one takes no room from those that follow.

#include <cstddef>
#include <memory>
#include <vector>

#include "base/types.h"

namespace latchkey::cli {

struct SignalPhase {
  u64 kept = 0, dropped = 0;  // dropped: there was no room
};

// The next phase begins, with room of its own; the handler is there from the first on. False: no
// phase is left, the last one goes on. One thread calls this.
bool begin_signal_phase();
std::vector<SignalPhase> signal_phases();  // those that began, in order
u64 signals_counted();                     // by all threads

// While one lives its thread's frames are kept.
class KeptFrames {
 public:
  KeptFrames();
  ~KeptFrames();
  KeptFrames(const KeptFrames&) = delete;
  KeptFrames& operator=(const KeptFrames&) = delete;
};

// The alternative stack of the thread that makes it, until it is destroyed.
class SignalStack {
 public:
  SignalStack();
  ~SignalStack();
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;

 private:
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace latchkey::cli
