#include "tests/support/live_compare.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace latchkey::tests {

namespace {

constexpr std::array<LiveRule, 3> kRules = {{
    {"moved name",
     "a rename that takes the name of an open file into another directory is left out",
     "the kernel's dentry moves, and with it which directory an open file keeps unlocked; here it "
     "keeps the one that it was opened in",
     "add A k0; open A h1 a1 rwc; rename A a1 b1; remove_all root k0; open A h5 b1 rw",
     &LiveRules::moved_name},
    {"lost name",
     "what takes away the name that a file was opened by, while it has another, is left out",
     "the kernel's dentry goes with it, and the last close of the file evicts it at once; here "
     "what "
     "leaves a key that is incompletely removed stays as long as it has any name",
     "add A k0; open A h3 a2 rwc; open A h0 a0 rwc; link A a2 a1; unlink A a2; remove A k0; "
     "close A h3; open A h1 a1 rw",
     &LiveRules::lost_name},
    {"used directory",
     "after an add, and after an open of a directory, root looks for a name in each directory that "
     "is open",
     "the kernel unlocks a directory when a name is first looked up in it while its key is "
     "present, "
     "and one that was never used does not make the key busy; here an open, or an add, unlocks it",
     "add A k0; open_directory A h0 a; remove A k0", &LiveRules::used_directory},
}};

class Shrinker {
 public:
  Shrinker(LivePlan plan, const LiveJudge& differs) : best_(std::move(plan)), differs_(differs) {}

  LivePlan run() {
    std::size_t before = 0;
    do {
      before = best_.size();
      for (std::size_t run = std::max<std::size_t>(1, best_.size() / 2);; run /= 2) {
        leave_out(run);
        if (run == 1) break;
      }
    } while (best_.size() < before);
    for (std::size_t i = 0; i < best_.size(); ++i) simplify(i);
    return best_;
  }

 private:
  bool better(const LivePlan& plan) {
    if (plan.empty() || !differs_(plan)) return false;
    best_ = plan;
    return true;
  }

  // Runs of so many calls, from the end, where most do not matter.
  void leave_out(std::size_t run) {
    for (std::size_t end = best_.size(); end > 0;) {
      const std::size_t begin = end > run ? end - run : 0;
      LivePlan plan = best_;
      plan.erase(plan.begin() + static_cast<std::ptrdiff_t>(begin),
                 plan.begin() + static_cast<std::ptrdiff_t>(std::min(end, plan.size())));
      better(plan);
      end = begin;
    }
  }

  template <class Change>
  void try_it(std::size_t i, const Change& change) {
    LivePlan plan = best_;
    change(plan[i]);
    if (text_of(plan[i]) != text_of(best_[i])) better(plan);
  }

  void simplify(std::size_t i) {
    try_it(i, [](LiveOp& op) { op.offset = 0; });
    try_it(i, [](LiveOp& op) { op.size = 1; });
    try_it(i, [](LiveOp& op) { op.fill = 0; });
    try_it(i, [](LiveOp& op) { op.user = 1; });
    try_it(i, [](LiveOp& op) { op.flags.append = op.flags.truncate = false; });
    try_it(i, [](LiveOp& op) { op.flags.read = op.flags.write = true; });
  }

  LivePlan best_;
  const LiveJudge& differs_;
};

}  // namespace

std::span<const LiveRule> live_rules() { return kRules; }

std::optional<LiveDifference> compare(const LivePlan& plan, LiveSide& kernel, LiveSide& ours,
                                      LiveCounts& counts,
                                      const std::function<void(const std::string& line)>& tell) {
  std::optional<LiveDifference> difference;
  kernel.begin(plan);
  ours.begin(plan);
  for (std::size_t step = 0; step < plan.size() && !difference; ++step) {
    if (ours.skips(plan[step])) continue;
    LiveDifference answers{step, kernel.run(plan[step]), ours.run(plan[step])};
    const bool same = answers.kernel == answers.ours;
    if (tell)
      tell(fmt::format("  {:<36} {}{}", text_of(plan[step]), answers.kernel,
                       same ? "" : "   BUT OURS: " + answers.ours));
    if (answers.kernel != "-") ++counts.calls;
    for (std::size_t i = 0; i < kLiveAnswers.size(); ++i)
      if (answers.kernel.find(kLiveAnswers[i]) != std::string::npos) ++counts.answers[i];
    if (!same) difference = std::move(answers);
  }
  ours.end();
  kernel.end();
  ++counts.sequences;
  return difference;
}

LivePlan shrink(const LivePlan& plan, const LiveJudge& differs) {
  return Shrinker(plan, differs).run();
}

}  // namespace latchkey::tests
