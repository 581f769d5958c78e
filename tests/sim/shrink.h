#pragma once
// A schedule that fails, made shorter: greedily without faults, lives' operations, callers, single
// operations, as long as some choice of the scheduler still fails. What fails may change on the
// way; the shortest one found is as good a beginning as any.

#include <functional>
#include <string>

#include "tests/sim/plan.h"

namespace latchkey::tests {

// Does this plan fail? Called once for each try.
using SimJudge = std::function<bool(const SimPlan& plan)>;

struct Shrunk {
  SimPlan plan;
  u64 tries = 0;
};
// `plan` fails. Asks at most `tries_max` times.
Shrunk shrink(const SimPlan& plan, const SimJudge& fails, u64 tries_max = 3000);

// The arguments of tests/sim_run that repeat it.
std::string arguments_of(const SimPlan& plan);

}  // namespace latchkey::tests
