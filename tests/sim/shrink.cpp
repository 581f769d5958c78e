#include "tests/sim/shrink.h"

#include <fmt/format.h>

#include <algorithm>

namespace latchkey::tests {

namespace {

// Leaving things out shifts every later choice of the scheduler: a race may need another seed.
constexpr u64 kSchedules = 4;

template <class T>
std::vector<u32> numbers_of(const std::vector<T>& list) {
  std::vector<u32> numbers;
  for (const T& item : list) numbers.push_back(item.number);
  return numbers;
}

class Shrinker {
 public:
  Shrinker(const SimPlan& plan, const SimJudge& fails, u64 tries_max)
      : best_{plan, 0}, fails_(fails), tries_max_(tries_max) {}

  Shrunk run() {
    std::size_t before = 0;
    do {
      before = best_.plan.ops.size() + best_.plan.faults.size();
      leave_out_faults();
      leave_out_all_of([](const SimOp& op) { return op.caller; });
      leave_out_all_of([](const SimOp& op) { return op.life; });
      leave_out_ops();
    } while (best_.plan.ops.size() + best_.plan.faults.size() < before);
    return best_;
  }

 private:
  bool better(SimPlan plan) {
    const u64 first = plan.schedule;
    for (u64 i = 0; i < kSchedules && best_.tries < tries_max_; ++i) {
      plan.schedule = i == 0 ? first : i;
      ++best_.tries;
      if (!fails_(plan)) continue;
      best_.plan = plan;
      return true;
    }
    return false;
  }

  void leave_out_faults() {
    for (const u32 number : numbers_of(best_.plan.faults)) {
      SimPlan plan = best_.plan;
      std::erase_if(plan.faults, [&](const SimFaultPlan& f) { return f.number == number; });
      better(std::move(plan));
    }
  }

  template <class Group>
  void leave_out_all_of(Group group) {
    u32 groups = 0;
    for (const SimOp& op : best_.plan.ops) groups = std::max(groups, group(op) + 1);
    for (u32 i = 0; i < groups; ++i) {
      SimPlan plan = best_.plan;
      std::erase_if(plan.ops, [&](const SimOp& op) { return group(op) == i; });
      if (plan.ops.size() != best_.plan.ops.size()) better(std::move(plan));
    }
  }

  // Runs of operations, halved down to single ones; from the end, where most do not matter.
  void leave_out_ops() {
    for (std::size_t run = std::max<std::size_t>(1, best_.plan.ops.size() / 2);; run /= 2) {
      for (std::size_t end = best_.plan.ops.size(); end > 0;) {
        const std::size_t begin = end > run ? end - run : 0;
        SimPlan plan = best_.plan;
        plan.ops.erase(plan.ops.begin() + static_cast<std::ptrdiff_t>(begin),
                       plan.ops.begin() + static_cast<std::ptrdiff_t>(end));
        better(std::move(plan));
        end = begin;
      }
      if (run == 1) return;
    }
  }

  Shrunk best_;
  const SimJudge& fails_;
  const u64 tries_max_;
};

}  // namespace

Shrunk shrink(const SimPlan& plan, const SimJudge& fails, u64 tries_max) {
  return Shrinker(plan, fails, tries_max).run();
}

std::string arguments_of(const SimPlan& plan) {
  return fmt::format("--seed {} --schedule {} --ops {} --faults {}", plan.seed, plan.schedule,
                     numbers_to_text(numbers_of(plan.ops)),
                     numbers_to_text(numbers_of(plan.faults)));
}

}  // namespace latchkey::tests
