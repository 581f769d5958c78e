// The simulator as a program. It runs schedules by seed until their number or the time is over. One
// that fails, or that stops the process, is made shorter and printed as one line that repeats it.
//
//   sim_run [--schedules N] [--minutes M] [--seed FIRST]
//       a line a minute, the story of each failure, and a line with the sums
//   sim_run --first [...]
//       until the first failure, which is only named
//   sim_run --seed N --schedule S --ops 0-4,7 --faults 0
//       that one, with all that it does
//
// Exit code: 0 nothing failed, 1 something did, 2 an argument is wrong.

#include <fmt/format.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "base/env.h"
#include "tests/sim/shrink.h"
#include "tests/sim/simulate.h"
#include "tests/support/arguments.h"

namespace latchkey::tests {
namespace {

constexpr u64 kFailuresMax = 10;  // then it ends
constexpr u64 kBatch = 2000;      // schedules of one process

struct Options {
  std::optional<u64> schedules;
  std::optional<u64> minutes;
  u64 seed = 1;
  std::optional<u64> schedule;
  std::optional<std::string> ops;
  std::optional<std::string> faults;
  bool first = false;
  bool quiet = false;  // what the shrinking asks itself
  u64 batch = 0;       // run so many schedules in this process and print what they did
};

void say(const std::string& text) {
  std::fputs((text + "\n").c_str(), stdout);
  std::fflush(stdout);
}

std::optional<Options> parse(std::span<char* const> words) {
  Options options;
  const Argument known[] = {flag("--quiet", options.quiet),
                            flag("--first", options.first),
                            text("--ops", options.ops),
                            text("--faults", options.faults),
                            number("--schedules", options.schedules),
                            number("--minutes", options.minutes),
                            number("--seed", options.seed),
                            number("--schedule", options.schedule),
                            number("--batch", options.batch)};
  if (!parse_arguments(words, known)) return std::nullopt;
  return options;
}

SimPlan plan_of(const Options& options) {
  SimPlan plan = make_plan(options.seed);
  if (options.schedule) plan.schedule = *options.schedule;
  if (options.ops) keep_ops(plan, numbers_from_text(*options.ops));
  if (options.faults) keep_faults(plan, numbers_from_text(*options.faults));
  return plan;
}

// This program in a process of its own, because a broken invariant stops the process. The exit code
// of a schedule that fails is 1, of one that stopped the process something else; what it prints is
// shown if `visible`.
int run_self(const std::string& arguments, std::string* output) {
  const std::string command =
      fmt::format("/proc/{}/exe {} 2>{}", getpid(), arguments, output ? "&1" : "/dev/null");
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return -1;
  char line[512];
  while (std::fgets(line, sizeof line, pipe) != nullptr)
    if (output != nullptr) *output += line;
  const int status = ::pclose(pipe);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

int run_one(const Options& options) {
  SimPlan plan = plan_of(options);
  if (!options.quiet) {
    say(describe(plan));
    plan.tell = say;
  }
  const SimOutcome outcome = simulate(plan);
  if (!outcome.failure.empty()) say(outcome.failure);
  if (!options.quiet)
    say(fmt::format("{} calls, {} crashes, {} steps, {} faults met{}, trace {:016x}", outcome.calls,
                    outcome.crashes, outcome.steps, outcome.faults_met,
                    outcome.detected ? ", detected" : "", outcome.trace));
  return outcome.failure.empty() ? 0 : 1;
}

// The numbers of a batch, from and to the line that its process prints at its end.
struct Sums {
  u64 schedules = 0, calls = 0, crashes = 0, steps = 0, faults = 0, detected = 0, cpu_ms = 0;
  u64 trace = 0;

  void add(const Sums& more) {
    schedules += more.schedules;
    calls += more.calls;
    crashes += more.crashes;
    steps += more.steps;
    faults += more.faults;
    detected += more.detected;
    cpu_ms += more.cpu_ms;
    trace ^= more.trace;
  }
  std::string text() const {
    const u64 a_minute = cpu_ms == 0 ? 0 : schedules * 60'000 / cpu_ms;
    return fmt::format(
        "{} schedules, {} calls, {} crashes, {} steps, {} faults met, {} detected, {} a minute of "
        "processor time",
        schedules, calls, crashes, steps, faults, detected, a_minute);
  }
};

u64 cpu_ms() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<u64>(now.tv_sec) * 1000 + static_cast<u64>(now.tv_nsec) / 1'000'000;
}

u64 g_seed = 0;

void name_the_seed(int) {
  char line[64];
  const int size =
      std::snprintf(line, sizeof line, "failed %llu\n", static_cast<unsigned long long>(g_seed));
  [[maybe_unused]] const ssize_t written = ::write(1, line, static_cast<std::size_t>(size));
}

// Schedules in this process until one fails.
int run_batch(const Options& options) {
  std::signal(SIGABRT, name_the_seed);
  std::signal(SIGSEGV, [](int) {
    name_the_seed(0);
    ::_exit(139);
  });
  Sums sums;
  for (g_seed = options.seed; g_seed < options.seed + options.batch; ++g_seed) {
    const SimOutcome outcome = simulate(make_plan(g_seed));
    ++sums.schedules;
    sums.calls += outcome.calls;
    sums.crashes += outcome.crashes;
    sums.steps += outcome.steps;
    sums.faults += outcome.faults_met;
    sums.detected += outcome.detected ? 1 : 0;
    sums.trace ^= outcome.trace;
    if (outcome.failure.empty()) continue;
    name_the_seed(0);
    break;
  }
  sums.cpu_ms = cpu_ms();
  say(fmt::format("sums {} {} {} {} {} {} {} {}", sums.schedules, sums.calls, sums.crashes,
                  sums.steps, sums.faults, sums.detected, sums.cpu_ms, sums.trace));
  return 0;
}

std::optional<u64> read_batch(const std::string& output, Sums& sums) {
  std::optional<u64> failed;
  for (std::size_t at = 0; at < output.size();) {
    const std::size_t end = std::min(output.find('\n', at), output.size());
    const std::string line = output.substr(at, end - at);
    at = end + 1;
    Sums more;
    if (line.starts_with("failed ")) failed = number_of(line.substr(7));
    if (std::sscanf(line.c_str(), "sums %lu %lu %lu %lu %lu %lu %lu %lu", &more.schedules,
                    &more.calls, &more.crashes, &more.steps, &more.faults, &more.detected,
                    &more.cpu_ms, &more.trace) == 8)
      sums.add(more);
  }
  return failed;
}

void report(u64 seed) {
  const SimPlan plan = make_plan(seed);
  say(fmt::format("seed {} failed; making it shorter", seed));
  const Shrunk shrunk = shrink(plan, [](const SimPlan& shorter) {
    return run_self("--quiet " + arguments_of(shorter), nullptr) != 0;
  });
  std::string output;
  run_self(arguments_of(shrunk.plan), &output);
  say(output);
  say(fmt::format(
      "seed {}: {} of {} operations after {} tries; repeat:\n"
      "build/release/tests/sim_run {}",
      seed, shrunk.plan.ops.size(), plan.ops.size(), shrunk.tries, arguments_of(shrunk.plan)));
}

int run_many(const Options& options) {
  const u64 begun = system_env().monotonic_ns();
  const u64 ends = options.minutes ? begun + *options.minutes * 60'000'000'000 : ~u64{0};
  const u64 count = options.schedules ? *options.schedules : options.minutes ? ~u64{0} : 1000;
  Sums sums;
  u64 failures = 0, said = begun;
  for (u64 done = 0; done < count && failures < kFailuresMax;) {
    const u64 now = system_env().monotonic_ns();
    if (now >= ends) break;
    if (now - said >= 60'000'000'000) {
      said = now;
      say(sums.text());
    }
    const u64 batch = std::min(kBatch, count - done);
    std::string output;
    const int code =
        run_self(fmt::format("--seed {} --batch {}", options.seed + done, batch), &output);
    const auto failed = read_batch(output, sums);
    if (!failed && code != 0) {
      say(output + "a batch of schedules ended without a word");
      return 1;
    }
    done = failed ? *failed - options.seed + 1 : done + batch;
    if (!failed) continue;
    ++failures;
    if (options.first) {
      say(fmt::format("schedule {} failed: seed {}", done, *failed));
      break;
    }
    report(*failed);
  }
  say(fmt::format("{}; {} failed, trace {:016x}", sums.text(), failures, sums.trace));
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace latchkey::tests

int main(int count, char** words) {
  using namespace latchkey::tests;  // NOLINT: it is the program
  const auto options = parse({words + 1, static_cast<std::size_t>(count - 1)});
  if (!options) {
    std::fputs(
        "usage: sim_run [--schedules N] [--minutes M] [--seed FIRST] [--first]\n"
        "       sim_run --seed N --schedule S --ops 0-4,7 --faults none\n",
        stderr);
    return 2;
  }
  if (options->batch != 0) return run_batch(*options);
  if (options->ops || options->faults || options->schedule) return run_one(*options);
  return run_many(*options);
}
