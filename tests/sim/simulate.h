#pragma once
// A schedule, from its plan to its outcome: the same plan and the same commit give the same one,
// bit by bit. Not thread-safe: one at a time in a process.

#include <map>

#include "tests/sim/plan.h"

namespace latchkey::tests {

struct SimOutcome {
  std::string failure;  // empty: nothing is wrong
  u64 trace = 0;        // hash of every choice, result and device op's time
  u64 steps = 0;        // fibers that went on
  u64 calls = 0;        // operations of callers
  u64 crashes = 0;      // images that were recovered and checked
  u64 faults_met = 0;   // device ops that a planned fault met
  u64 virtual_ns = 0;
  std::map<SimOpKind, u64> done;  // library calls that succeeded, by the operation they were for
  bool detected = false;          // a fault was answered by an error or a finding
};
SimOutcome simulate(const SimPlan& plan);

}  // namespace latchkey::tests
