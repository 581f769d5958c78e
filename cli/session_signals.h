#pragma once
// A handler for SIGUSR1 that counts and keeps what the kernel saved of the vector registers, so
// that a scan finds a key that any of its frames held. On an alternative stack where a thread has
// one.

#include <cstddef>
#include <memory>

#include "base/types.h"

namespace latchkey::cli {

void keep_signals();    // from now on
u64 signals_counted();  // by all threads

// While one lives its thread's frames are kept, as many as there is room for.
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
