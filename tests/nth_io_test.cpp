// Goal: whatever single request the device refuses, once or from then on, no call lies about it, no
// key stays in memory, and after a power failure everything acknowledged is there and clean. A
// flush that failed once stops the volume: no later sync claims what it could not (D4, R14).
// Method: over 200 scenarios, each run with its n-th read, write or flush refused, for every n, or
// for some of them here; LATCHKEY_CASES says how many.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "tests/support/failure_scenarios.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

using engine::OpKind;

struct Fault {
  std::size_t scenario = 0;
  OpKind kind{};
  bool sticky = false;
  u64 after = 0;
};

const char* name_of(OpKind kind) {
  return kind == OpKind::read ? "read" : kind == OpKind::write ? "write" : "flush";
}
u64 count_of(const SimCounters& counters, OpKind kind) {
  return kind == OpKind::read    ? counters.reads
         : kind == OpKind::write ? counters.writes
                                 : counters.flushes;
}

// Every request of the scenario, by running it once with nothing refused.
SimCounters requests_of(const FailureScenario& scenario, std::string& wrong) {
  SimDevice device({.size_bytes = kPointDeviceBytes});
  device.restore(point_image());
  SimCounters counters;
  FailureRun run{device, device, [](const auto& call) { return call(); }};
  run.cured = [&] { counters = device.counters(); };
  u64 errors = 0;
  wrong = run_failure_scenario(scenario, run, errors);
  if (wrong.empty() && errors != 0) wrong = "fails although nothing does";
  return counters;
}

std::string run_with(const Fault& fault, u64 seed) {
  SimDevice device({.size_bytes = kPointDeviceBytes, .seed = seed});
  device.restore(point_image());
  device.inject({.kind = fault.kind, .after = fault.after, .sticky = fault.sticky});
  FailureRun run{device, device, [](const auto& call) { return call(); }};
  run.seed = seed;
  run.cured = [&] { device.clear_faults(); };
  run.look = [&](volume::Volume& volume) -> std::string {
    const bool refused = count_of(device.counters(), fault.kind) > fault.after;
    if (fault.kind != OpKind::flush || !refused) return "";
    if (!fault.sticky) device.clear_faults();
    return volume.sync() ? "a sync succeeds after a flush has failed" : "";
  };
  u64 errors = 0;
  return run_failure_scenario(failure_scenarios()[fault.scenario], run, errors);
}

std::vector<Fault> all_faults() {
  std::vector<Fault> faults;
  for (std::size_t i = 0; i < failure_scenarios().size(); ++i) {
    std::string wrong;
    const SimCounters requests = requests_of(failure_scenarios()[i], wrong);
    EXPECT_EQ(wrong, "") << failure_scenarios()[i].name;
    for (const OpKind kind : {OpKind::read, OpKind::write, OpKind::flush})
      for (const bool sticky : {false, true})
        for (u64 after = 0; after < count_of(requests, kind); ++after)
          faults.push_back({i, kind, sticky, after});
  }
  return faults;
}

TEST(NthIo, refused_in_any_scenario_leaves_what_was_acknowledged) {
  std::vector<Fault> faults = all_faults();
  const std::size_t all = faults.size();
  std::mt19937_64 random(seed_base() + 1);
  std::ranges::shuffle(faults, random);
  faults.resize(std::min<std::size_t>(all, cases(1200)));
  int bad = 0;
  for (const Fault& fault : faults) {
    const std::string wrong = run_with(fault, seed_base() + fault.after + 1);
    if (wrong.empty()) continue;
    ADD_FAILURE() << failure_scenarios()[fault.scenario].name << ": "
                  << (fault.sticky ? "every " : "the ") << name_of(fault.kind) << " after "
                  << fault.after << ": " << wrong;
    if (++bad == 20) break;
  }
  std::printf("%zu scenarios, %zu of %zu faults\n", failure_scenarios().size(), faults.size(), all);
  EXPECT_GT(failure_scenarios().size(), 200U);
}

}  // namespace
}  // namespace latchkey::tests
