#pragma once
// Whole lives of a volume in which something fails: over 200 of them, as rows; each opens the image
// of the crash points, does some operations, closes. Whoever runs one makes the n-th thing fail,
// whatever it is; here is what must be so all the same: no operation lies, no key stays in memory,
// and after a power failure the volume opens, is clean, and holds what was acknowledged.

#include <functional>
#include <string>
#include <vector>

#include "tests/support/crash_points.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {

struct FailureScenario {
  std::string name;
  PointSequence sequence;
  bool check = false, repair = false;  // offline, before the volume is opened
};
const std::vector<FailureScenario>& failure_scenarios();  // the same ones, in every run

// Through this every call is made that may fail. An exception that fits becomes an error.
using FailureCall = std::function<Result<void>(const std::function<Result<void>()>& call)>;

struct FailureRun {
  SimDevice& medium;       // has the image
  engine::Device& device;  // the medium, or what lies over it
  FailureCall call;
  u64 seed = 1;                         // of the crash at the end
  std::function<void()> cured = [] {};  // from here on nothing fails
  // The volume, nothing fails any more, before it is closed: what else is wrong.
  std::function<std::string(volume::Volume&)> look = {};
};
// What is wrong, or nothing. `errors`: how many calls failed that the model had foreseen to work.
std::string run_failure_scenario(const FailureScenario& scenario, const FailureRun& run,
                                 u64& errors);

}  // namespace latchkey::tests
