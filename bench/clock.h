#pragma once
// The core's real clock, for figures in bytes a cycle: time stamp counters tick at another rate.

#include <algorithm>

#include "base/env.h"
#include "base/types.h"

namespace latchkey::bench {

// Cycles a nanosecond just now: a loop whose decrements wait for each other takes one a cycle. The
// best of a few short tries, because an interrupt only ever makes one longer.
inline double cycles_per_ns() {
  constexpr u64 kCycles = 2'000'000;
  u64 best_ns = ~u64{0};
  for (int attempt = 0; attempt < 5; ++attempt) {
    const u64 start = system_env().monotonic_ns();
    u64 left = kCycles;
#if defined(__x86_64__)
    asm volatile("1: dec %0\n jnz 1b" : "+r"(left));
#else
    for (; left != 0; --left) asm volatile("" : "+r"(left));
#endif
    best_ns = std::min(best_ns, system_env().monotonic_ns() - start);
  }
  return static_cast<double>(kCycles) / static_cast<double>(best_ns);
}

}  // namespace latchkey::bench
