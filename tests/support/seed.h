#pragma once
// Where the tests begin to count their seeds. ./run soak sets LATCHKEY_SEED to a new number in each
// round; without it every run of the suite is the same.

#include <cstdlib>
#include <ranges>

#include "base/check.h"
#include "base/types.h"

namespace latchkey::tests {

// 0 unless LATCHKEY_SEED says otherwise; add it to a seed of the test's own.
inline u64 seed_base() {
  const char* given = std::getenv("LATCHKEY_SEED");
  return given == nullptr ? 0 : std::strtoull(given, nullptr, 10);
}

// How many random cases a test tries: `quick` unless LATCHKEY_CASES says otherwise.
inline u64 cases(u64 quick) {
  const char* given = std::getenv("LATCHKEY_CASES");
  const u64 count = given == nullptr ? quick : std::strtoull(given, nullptr, 10);
  LK_CHECK_MSG(count > 0, "LATCHKEY_CASES is no number above 0");
  return count;
}

// The seeds of a test that runs `count` times: from 1 on, or from where the soak begins.
inline auto seeds(u64 count) { return std::views::iota(seed_base() + 1, seed_base() + 1 + count); }

}  // namespace latchkey::tests
