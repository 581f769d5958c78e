// The real kernel beside us: random sequences of calls on its fscrypt and on the library, compared
// step by step (tests/support/live_plan.h). Needs root, a loop device, mkfs.ext4 and a kernel with
// CONFIG_FS_ENCRYPTION; without them it says what is missing.
//
//   live_compare [--sequences N] [--minutes M] [--seed FIRST]
//       a line a minute, the story of each sequence that differs, and a line with the sums
//   live_compare --replay "add A k0; open A h0 a0 rwc; ..." [--without RULE]
//       that one, with what each call answers
//
// Exit code: 0 nothing differs, 1 something does, 2 an argument is wrong, 77 it cannot run here.

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/env.h"
#include "tests/support/arguments.h"
#include "tests/support/live_compare.h"
#include "tests/support/live_kernel.h"
#include "tests/support/live_latchkey.h"

namespace latchkey::tests {
namespace {

constexpr u64 kDifferencesMax = 10;   // then it ends
constexpr u64 kBatch = 500;           // sequences of one process
constexpr unsigned kSecondsMax = 30;  // of one sequence
constexpr int kSkipped = 77;

struct Options {
  std::optional<u64> sequences;
  std::optional<u64> minutes;
  u64 seed = 1;
  std::optional<std::string> replay;
  LiveRules rules;
};

void say(const std::string& text) {
  std::fputs((text + "\n").c_str(), stdout);
  std::fflush(stdout);
}

bool leave_out(std::string_view name, LiveRules& rules) {
  for (const LiveRule& rule : live_rules()) {
    if (rule.name != name) continue;
    rules.*rule.on = false;
    return true;
  }
  return false;
}

std::optional<Options> parse(std::span<char* const> words) {
  Options options;
  const Argument known[] = {
      number("--sequences", options.sequences), number("--minutes", options.minutes),
      number("--seed", options.seed), text("--replay", options.replay),
      Argument{"--without", [&](std::string_view rule) { return leave_out(rule, options.rules); }}};
  if (!parse_arguments(words, known)) return std::nullopt;
  return options;
}

// What processes of this program tell each other: the library stops its process where an invariant
// breaks, and its secrets do not survive a fork. So each batch is a process, with a volume of its
// own on the mount of all.
struct Shared {
  u64 seed = 0;  // of the sequence under way
  LiveCounts counts;
};

class Comparison {
 public:
  Comparison(const Options& options, LiveKernel& kernel) : options_(options), kernel_(kernel) {
    void* const memory =
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    LK_CHECK(memory != MAP_FAILED);
    shared_ = new (memory) Shared;
  }

  int run_one(const LivePlan& plan) {
    return in_a_process([&] { return one(plan, say); }, true) == 0 ? 0 : 1;
  }

  int run_many() {
    const u64 begun = now();
    const u64 count = options_.sequences ? *options_.sequences : options_.minutes ? ~u64{0} : 1000;
    ends_ = options_.minutes ? begun + *options_.minutes * 60'000'000'000 : ~u64{0};
    u64 differences = 0, said = begun, done = 0;
    while (done < count && now() < ends_ && differences < kDifferencesMax) {
      const u64 first = options_.seed + done, size = std::min(kBatch, count - done);
      shared_->seed = first;
      if (in_a_process([&] { return batch(first, size); }, true) == 0) {
        done += size;
      } else {
        ++differences;
        report(shared_->seed);
        done = shared_->seed + 1 - options_.seed;
      }
      if (now() - said < 60'000'000'000) continue;
      said = now();
      say(sums(begun));
    }
    say(fmt::format("{}; {} differ", sums(begun), differences));
    return differences == 0 ? 0 : 1;
  }

 private:
  static u64 now() { return system_env().monotonic_ns(); }

  std::string sums(u64 begun) const {
    const LiveCounts& counts = shared_->counts;
    std::string text = fmt::format("{} sequences, {} calls in {} s:", counts.sequences,
                                   counts.calls, (now() - begun) / 1'000'000'000);
    for (std::size_t i = 0; i < kLiveAnswers.size(); ++i)
      text += fmt::format(" {} {}{}", counts.answers[i], kLiveAnswers[i],
                          i + 1 == kLiveAnswers.size() ? "" : ",");
    return text;
  }

  // Its exit code, or minus the signal that ended it.
  template <class Work>
  static int in_a_process(const Work& work, bool heard) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    LK_CHECK(child >= 0);
    if (child == 0) {
      if (!heard && std::freopen("/dev/null", "w", stderr) == nullptr) ::_exit(1);
      ::_exit(work());
    }
    int status = 0;
    LK_CHECK(::waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  int one(const LivePlan& plan, const std::function<void(const std::string&)>& tell) {
    ::alarm(kSecondsMax);
    LiveLatchkey ours(options_.rules);
    LiveCounts counts;
    const auto difference = compare(plan, kernel_, ours, counts, tell);
    const std::string wrong = ours.finish();
    if (tell && !wrong.empty()) tell("  a check of the volume afterwards: " + wrong);
    return difference || !wrong.empty() ? 1 : 0;
  }

  int batch(u64 first, u64 count) {
    LiveLatchkey ours(options_.rules);
    for (u64 seed = first; seed < first + count && now() < ends_; ++seed) {
      ::alarm(kSecondsMax);
      shared_->seed = seed;
      if (compare(make_live_plan(seed), kernel_, ours, shared_->counts)) return 1;
    }
    const std::string wrong = ours.finish();
    if (!wrong.empty()) say("a check of the volume after the last sequence: " + wrong);
    return wrong.empty() ? 0 : 1;
  }

  void report(u64 seed) {
    const LivePlan plan = make_live_plan(seed);
    say(fmt::format("seed {}: {} calls; making it shorter", seed, plan.size()));
    const auto differs = [&](const LivePlan& shorter) {
      return in_a_process([&] { return one(shorter, {}); }, false) != 0;
    };
    const LivePlan least = differs(plan) ? shrink(plan, differs) : plan;
    const int code = in_a_process([&] { return one(least, say); }, true);
    if (code == 0) say("it does not differ when it is run again");
    if (code < 0) say(fmt::format("the process was ended by signal {}", -code));
    say(fmt::format("repeat:\nbuild/release/tests/live_compare --replay \"{}\"", text_of(least)));
  }

  const Options& options_;
  LiveKernel& kernel_;
  Shared* shared_ = nullptr;
  u64 ends_ = ~u64{0};
};

int run(const Options& options) {
  std::optional<LivePlan> plan;
  if (options.replay) {
    plan = live_plan_from(*options.replay);
    if (!plan) {
      std::fputs("live_compare: that is not a sequence\n", stderr);
      return 2;
    }
  }
  LiveKernel kernel(options.rules);
  if (const std::string missing = kernel.make(); !missing.empty()) {
    say("live_compare: skipped: " + missing);
    return kSkipped;
  }
  Comparison comparison(options, kernel);
  return plan ? comparison.run_one(*plan) : comparison.run_many();
}

}  // namespace
}  // namespace latchkey::tests

int main(int count, char** words) {
  using namespace latchkey::tests;  // NOLINT: it is the program
  const auto options = parse({words + 1, static_cast<std::size_t>(count - 1)});
  if (!options) {
    std::fputs(
        "usage: live_compare [--sequences N] [--minutes M] [--seed FIRST]\n"
        "       live_compare --replay \"CALL; CALL; ...\" [--without RULE]\n",
        stderr);
    return 2;
  }
  return run(*options);
}
