#pragma once
// One of two systems that are given the same sequence of calls (live_plan.h).

#include <string>

#include "tests/support/live_plan.h"

namespace latchkey::tests {

// What the comparison does so that both sides can be compared at all; docs/conformance.md has the
// table. Without one of them they differ, by a sequence that the row names.
struct LiveRules {
  bool moved_name = true;
  bool lost_name = true;
  bool used_directory = true;
};
struct LiveRule {
  std::string_view name;
  std::string_view what;
  std::string_view reason;
  std::string_view differs;  // a sequence that does without it
  bool LiveRules::* on;
};
std::span<const LiveRule> live_rules();

class LiveSide {
 public:
  virtual ~LiveSide() = default;
  // Four empty directories, their keys absent, nothing open, whatever was before.
  virtual void begin(const LivePlan& plan) = 0;
  // What it answers. "-": the slot is taken, or has nothing.
  virtual std::string run(const LiveOp& op) = 0;
  // Whether a rule leaves this call out, on both sides.
  virtual bool skips(const LiveOp& /*op*/) const { return false; }
  // Nothing is left of the sequence.
  virtual void end() = 0;
};

}  // namespace latchkey::tests
