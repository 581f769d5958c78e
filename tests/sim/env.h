#pragma once
// Time and chance of a simulated machine: the scheduler's clock, and bytes that follow a seed.

#include <algorithm>
#include <cstring>

#include "base/env.h"
#include "tests/support/random.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {

class SimEnv final : public Env {
 public:
  // `clock` (of the machine that runs now) may be changed with set_clock(); it starts at zero.
  explicit SimEnv(u64 seed) : random_(seed) {}
  void set_clock(SimClock* clock) { clock_ = clock; }

  u64 monotonic_ns() override { return clock_ == nullptr ? 0 : clock_->now_ns(); }
  u64 realtime_ns() override { return kBegin + monotonic_ns(); }
  void random(MutableBytes bytes) override {
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(u64)) {
      const u64 word = random_();
      std::memcpy(bytes.data() + at, &word, std::min(sizeof word, bytes.size() - at));
    }
  }

 private:
  static constexpr u64 kBegin = 1'700'000'000'000'000'000;
  SimClock* clock_ = nullptr;
  SplitMix64 random_;
};

}  // namespace latchkey::tests
