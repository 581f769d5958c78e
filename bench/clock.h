#pragma once
// The core's real clock, for figures in bytes a cycle: time stamp counters tick at another rate.

#include "base/env.h"
#include "base/types.h"

namespace latchkey::bench {

// Cycles a nanosecond just now, 0 where no such loop is known: multiplications that wait for each
// other take three cycles each on every x86-64 core of the last twenty years (instruction tables of
// Agner Fog; additions are no measure, because newer cores do them while renaming). Some
// microseconds long, so that it can be taken right before and after what is measured.
inline double cycles_per_ns() {
#if defined(__x86_64__)
  constexpr u64 kRounds = 200, kEach = 32, kLatency = 3;
  u64 left = kRounds, value = 3;
  const u64 start = system_env().monotonic_ns();
  asm volatile(
      "1:\n"
      ".rept 32\n"
      "imul %1, %1\n"
      ".endr\n"
      "dec %0\n"
      "jnz 1b"
      : "+r"(left), "+r"(value));
  const u64 ns = system_env().monotonic_ns() - start;
  return static_cast<double>(kRounds * kEach * kLatency) / static_cast<double>(ns);
#else
  return 0;
#endif
}

}  // namespace latchkey::bench
