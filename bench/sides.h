#pragma once
// Sides of a ratio, measured in one run: they alternate pass by pass, each begins in its turn, and
// what is reported are medians. So a clock that moves, or a neighbour on the machine, meets all.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"
#include "bench/clock.h"

namespace latchkey::bench {

// Nanoseconds that fn() takes.
template <class Fn>
u64 timed(Fn&& fn) {
  const u64 start = system_env().monotonic_ns();
  std::forward<Fn>(fn)();
  return system_env().monotonic_ns() - start;
}

inline double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The benchmark is one of UseManualTime(): its own time is the first side's.
class Sides {
 public:
  enum class Cycles : bool { no, yes };  // whether the clock is taken around each turn

  Sides(benchmark::State& state, std::vector<std::string> names, Cycles cycles = Cycles::no)
      : state_(state), names_(std::move(names)), with_cycles_(cycles == Cycles::yes) {
    ns_.resize(names_.size());
    cycles_.resize(names_.size());
  }

  // One turn of each side: turns[i]() answers how many nanoseconds it took; 0 is a failure.
  bool pass(const std::vector<std::function<u64()>>& turns) {
    for (std::size_t turn = 0; turn < turns.size(); ++turn) {
      const std::size_t side = (turn + passes_) % turns.size();
      const double before = with_cycles_ ? cycles_per_ns() : 0;
      const u64 ns = turns[side]();
      const double after = with_cycles_ ? cycles_per_ns() : 0;
      if (ns == 0) {
        state_.SkipWithError("a side failed");
        return false;
      }
      keep(ns_[side], static_cast<double>(ns));
      // A clock that moved meanwhile gives no figure.
      if (before > 0 && std::abs(after / before - 1) < kClockMoved)
        keep(cycles_[side], static_cast<double>(ns) * (before + after) / 2);
      if (side == 0) state_.SetIterationTime(static_cast<double>(ns) / 1e9);
    }
    ++passes_;
    return true;
  }

  // `work` of each pass and side, in the unit that the counters are to be named after. The ratio is
  // the first side's rate to the best of the others'.
  void report(double work, const std::string& unit) {
    report_each([&](double ns) { return work * 1e9 / ns; }, unit);
    if (passes_ != 0) state_.counters["ratio"] = best_other() / median(ns_[0]);
  }
  // Times, where less is better; the ratio is the first side's to the best of the others'. Of a
  // pass, or of one of `count` equal parts.
  void report_us(double count = 1) {
    report_each([&](double ns) { return ns / 1e3 / count; }, "us");
    if (passes_ != 0) state_.counters["ratio"] = median(ns_[0]) / best_other();
  }
  // Each side's work a cycle of the core's clock, where it stood still often enough.
  void report_cycles(double work, const std::string& unit) {
    for (std::size_t side = 0; side < names_.size(); ++side)
      if (cycles_[side].size() >= passes_ / 4 && !cycles_[side].empty())
        state_.counters[names_[side] + "_" + unit] = work / median(cycles_[side]);
  }

 private:
  static constexpr std::size_t kPassesKept = 65536;  // a bound on memory
  static constexpr double kClockMoved = 0.03;

  static void keep(std::vector<double>& values, double value) {
    if (values.size() < kPassesKept) values.push_back(value);
  }
  template <class Fn>
  void report_each(const Fn& fn, const std::string& unit) {
    if (passes_ == 0) return;
    for (std::size_t side = 0; side < names_.size(); ++side)
      state_.counters[names_[side] + "_" + unit] = fn(median(ns_[side]));
  }
  double best_other() const {
    double best = 0;
    for (std::size_t side = 1; side < ns_.size(); ++side)
      if (const double ns = median(ns_[side]); best == 0 || ns < best) best = ns;
    return best;
  }

  benchmark::State& state_;
  const std::vector<std::string> names_;
  const bool with_cycles_;
  std::vector<std::vector<double>> ns_, cycles_;  // of each side
  u64 passes_ = 0;
};

}  // namespace latchkey::bench
