#pragma once
// Two sides of a ratio, measured in one run: they alternate pass by pass, each begins every other
// pass, and the ratio is that of the medians. So a clock that moves, or a neighbour on the machine,
// meets both.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"

namespace latchkey::bench {

// Nanoseconds that fn() takes.
template <class Fn>
u64 timed(Fn&& fn) {
  const u64 start = system_env().monotonic_ns();
  std::forward<Fn>(fn)();
  return system_env().monotonic_ns() - start;
}

inline double median(std::vector<u64> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return static_cast<double>(*middle);
}

// The benchmark is one of UseManualTime(): its own time is the first side's.
class Beside {
 public:
  Beside(benchmark::State& state, std::string first, std::string second)
      : state_(state), names_{std::move(first), std::move(second)} {}

  // One pass: each side answers how many nanoseconds it took; 0 is a failure.
  template <class First, class Second>
  bool pass(First&& first, Second&& second) {
    u64 ns[2] = {};
    swapped_ = !swapped_;
    if (swapped_) ns[1] = second();
    ns[0] = first();
    if (!swapped_) ns[1] = second();
    if (ns[0] == 0 || ns[1] == 0) {
      state_.SkipWithError("a side failed");
      return false;
    }
    for (int side = 0; side < 2; ++side) {
      // A bound on memory; the oldest go first.
      if (ns_[side].size() < kPassesKept)
        ns_[side].push_back(ns[side]);
      else
        ns_[side][passes_ % kPassesKept] = ns[side];
    }
    ++passes_;
    state_.SetIterationTime(static_cast<double>(ns[0]) / 1e9);
    return true;
  }

  // `work` of each pass and side, in the unit that the counters are to be named after.
  // The ratio is the first side's rate to the second's.
  void report(double work, const std::string& unit) {
    if (passes_ == 0) return;
    const double first = median(ns_[0]), second = median(ns_[1]);
    state_.counters[names_[0] + "_" + unit] = work * 1e9 / first;
    state_.counters[names_[1] + "_" + unit] = work * 1e9 / second;
    state_.counters["ratio"] = second / first;
  }
  // The first side's work a nanosecond.
  double first_rate(double work) const { return passes_ == 0 ? 0 : work / median(ns_[0]); }
  // Times, where there is no work to divide by; the ratio is the first side's to the second's.
  void report_us() {
    if (passes_ == 0) return;
    const double first = median(ns_[0]), second = median(ns_[1]);
    state_.counters[names_[0] + "_us"] = first / 1e3;
    state_.counters[names_[1] + "_us"] = second / 1e3;
    state_.counters["ratio"] = first / second;
  }

 private:
  static constexpr std::size_t kPassesKept = 65536;
  benchmark::State& state_;
  const std::string names_[2];
  std::vector<u64> ns_[2];
  u64 passes_ = 0;
  bool swapped_ = false;
};

}  // namespace latchkey::bench
