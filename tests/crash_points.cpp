// crash_points: the crash states of all sequences of one and two operations, then of sampled
// sequences of three (tests/support/crash_points.h), for hours if need be.
//
//   crash_points [--seconds N] [--sequences N] [--seed S] [--jobs N] [--resume FILE] [--only N]
//
// Sequences are numbered, the same ones for each seed: of one, of two (each with and without a sync
// between, ended by a sync or by the fsync of one of the files), of three without end. Without
// --seconds and --sequences it ends after those of two. FILE keeps how far it came; a run that is
// begun with it goes on there. --only runs one, as a finding names it. Exit code 1 if there were
// findings.

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "tests/support/arguments.h"
#include "tests/support/crash_points.h"

namespace latchkey::tests {
namespace {

struct Settings {
  u64 seconds = 0, sequences = 0;
  u64 seed = 1;
  u64 jobs = 1;
  std::string resume;
  std::optional<u64> only;
};

std::optional<Settings> parse(std::span<char* const> words) {
  Settings settings;
  const Argument known[] = {
      number("--seconds", settings.seconds), number("--sequences", settings.sequences),
      number("--seed", settings.seed),       number("--jobs", settings.jobs),
      text("--resume", settings.resume),     number("--only", settings.only)};
  if (!parse_arguments(words, known) || settings.jobs == 0) return std::nullopt;
  return settings;
}

// How a sequence ends: something makes it durable.
constexpr std::array<std::string_view, 3> kEnds{"sync", "fsync A/foo", "fsync B/bar"};
constexpr u64 kVariants = 2 * kEnds.size();  // with and without a sync in the middle

// Empty: the model refuses it.
PointSequence sequence_of(u64 number, u64 seed) {
  const auto rows = point_operations();
  const u64 count = rows.size();
  const PointOperation* sync = &point_operation("sync");
  PointSequence sequence;
  if (number < count) {
    sequence = {&rows[number], sync};
  } else if (number - count < kVariants * count * count) {
    const u64 pair = (number - count) / kVariants, variant = (number - count) % kVariants;
    sequence = {&rows[pair / count], &rows[pair % count]};
    if (variant >= kEnds.size()) sequence.insert(sequence.begin() + 1, sync);
    sequence.push_back(&point_operation(kEnds[variant % kEnds.size()]));
  } else {
    std::mt19937_64 random(seed * 1'000'003 + number);
    for (int i = 0; i < 3; ++i) sequence.push_back(&rows[random() % count]);
    sequence.push_back(&point_operation(kEnds[random() % kEnds.size()]));
  }
  return is_worthwhile(sequence) ? sequence : PointSequence{};
}

u64 count_up_to_two() {
  const u64 count = point_operations().size();
  return count + kVariants * count * count;
}

class Run {
 public:
  explicit Run(const Settings& settings) : settings_(settings) { load(); }

  int all() {
    const auto started = std::chrono::steady_clock::now();
    const auto seconds = [&] {
      return static_cast<u64>(std::chrono::duration_cast<std::chrono::seconds>(
                                  std::chrono::steady_clock::now() - started)
                                  .count());
    };
    u64 last = settings_.seconds == 0 ? count_up_to_two() : ~u64{0};
    if (settings_.sequences != 0) last = settings_.sequences;
    std::vector<std::thread> threads;
    for (u64 job = 0; job < settings_.jobs; ++job)
      threads.emplace_back([&] {
        for (;;) {
          const u64 number = next_++;
          if (number >= last || (settings_.seconds != 0 && seconds() >= settings_.seconds)) return;
          one(number);
        }
      });
    for (std::thread& thread : threads) thread.join();
    Lock lock(mutex_);
    return finish(seconds());
  }

  int only(u64 number) {
    one(number);
    Lock lock(mutex_);
    return finish(0);
  }

 private:
  void one(u64 number) {
    const PointSequence sequence = sequence_of(number, settings_.seed);
    PointTotals totals;
    if (!sequence.empty()) {
      PointOptions options;
      options.seed = settings_.seed * 1'000'003 + number;
      totals = CrashPoints(options).run(sequence);
    }
    Lock lock(mutex_);
    for (const std::string& finding : totals.findings)
      fmt::print("FINDING --seed {} --only {}: {}\n", settings_.seed, number, finding);
    totals_ += totals;
    done_.push_back(number);
    const auto now = std::chrono::steady_clock::now();
    if (now - told_ < std::chrono::seconds(10)) return;
    told_ = now;
    fmt::print("crash points: at sequence {}: {}\n", number, text());
    std::fflush(stdout);
    save();
  }

  std::string text() LK_REQUIRES(mutex_) {
    return fmt::format(
        "{} sequences, {} states ({} of them inside recoveries), {} images, {} opened; {} findings",
        totals_.sequences, totals_.states, totals_.recovery_states, totals_.images, totals_.opened,
        totals_.findings.size());
  }

  // Every sequence below `lowest` has been looked at.
  void save() LK_REQUIRES(mutex_) {
    if (settings_.resume.empty()) return;
    std::ranges::sort(done_);
    u64 lowest = from_;
    for (const u64 number : done_) lowest += number == lowest ? 1 : 0;
    std::ofstream(settings_.resume, std::ios::trunc)
        << settings_.seed << ' ' << lowest << ' ' << totals_.sequences << ' ' << totals_.states
        << ' ' << totals_.images << ' ' << totals_.opened << ' ' << totals_.recovery_states << '\n';
  }
  void load() {
    std::ifstream file(settings_.resume);
    u64 seed = 0;
    PointTotals before;
    if (!(file >> seed >> from_ >> before.sequences >> before.states >> before.images >>
          before.opened >> before.recovery_states) ||
        seed != settings_.seed) {
      from_ = 0;
      return;
    }
    next_ = from_;
    Lock lock(mutex_);
    totals_ = before;
  }
  int finish(u64 seconds) LK_REQUIRES(mutex_) {
    save();
    fmt::print("crash points: {} in {} s\n", text(), seconds);
    return totals_.findings.empty() ? 0 : 1;
  }

  const Settings settings_;
  std::atomic<u64> next_{0};
  u64 from_ = 0;
  Mutex mutex_;
  PointTotals totals_ LK_GUARDED_BY(mutex_);
  std::vector<u64> done_ LK_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point told_ LK_GUARDED_BY(mutex_) =
      std::chrono::steady_clock::now();
};

}  // namespace
}  // namespace latchkey::tests

int main(int argc, char** argv) {
  using namespace latchkey::tests;  // NOLINT: this is all that there is
  const auto settings = parse({argv + 1, static_cast<std::size_t>(argc - 1)});
  if (!settings) {
    fmt::print(stderr,
               "usage: crash_points [--seconds N] [--sequences N] [--seed S] [--jobs N]\n"
               "                    [--resume FILE] [--only N]\n");
    return 2;
  }
  Run run(*settings);
  return settings->only ? run.only(*settings->only) : run.all();
}
