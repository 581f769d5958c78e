#pragma once
// A handler for SIGUSR1 that only counts, on an alternative stack where the thread has one: for
// scans that look whether signals put registers where keys may be found.

#include <cstddef>
#include <memory>

#include "base/types.h"

namespace latchkey::cli {

void count_signals();   // from now on
u64 signals_counted();  // by all threads

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
