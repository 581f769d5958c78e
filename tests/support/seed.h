#pragma once
// Where a test begins to count its seeds. ./run soak sets LATCHKEY_SEED to a new number each time
// round; without it every run of the suite is the same. With what a failed soak printed there the
// test does the same again.

#include <cstdlib>

#include "base/types.h"

namespace latchkey::tests {

// 0 unless LATCHKEY_SEED says otherwise; add it to a seed of the test's own.
inline u64 seed_base() {
  const char* given = std::getenv("LATCHKEY_SEED");
  return given == nullptr ? 0 : std::strtoull(given, nullptr, 10);
}

}  // namespace latchkey::tests
