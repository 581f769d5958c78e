// Goal: whatever single allocation fails, or all from some moment on: the process goes on, the call
// says what it met, no key stays in memory, and after a power failure everything acknowledged is
// there and clean. Method: operator new of this program fails the n-th allocation of the calls of
// the volume (not of the simulated device below them, nor of the test), in over 200 scenarios: of
// each place that allocates (the innermost calls) the first one, and others that are drawn;
// LATCHKEY_CASES says how many. Threads of the volume's own are not in play here.

#include <execinfo.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <set>

#include "base/no_memory.h"
#include "tests/support/failure_scenarios.h"
#include "tests/support/own_new.h"
#include "tests/support/seed.h"
#include "tests/support/spare_device.h"

namespace {

// Of one thread: allocations count only while `counting`.
struct Allocations {
  bool counting = false;
  bool sticky = false;
  unsigned long long done = 0;
  unsigned long long fail_at = ~0ULL;  // the first one is 0
  unsigned long long failed = 0;
};
thread_local constinit Allocations allocations;
thread_local constinit std::vector<unsigned long long>* allocation_places = nullptr;

// Who allocates: the innermost calls.
unsigned long long place() {
  constexpr int kCalls = 12;
  void* calls[kCalls];
  const int count = backtrace(calls, kCalls);
  unsigned long long hash = 0;
  for (int i = 0; i < count; ++i)
    hash = (hash ^ reinterpret_cast<std::uintptr_t>(calls[i])) * 0x9e3779b97f4a7c15ULL;
  return hash;
}

bool fails() {
  if (!allocations.counting) return false;
  const unsigned long long number = allocations.done++;
  if (allocation_places != nullptr) {
    allocations.counting = false;
    allocation_places->push_back(place());
    allocations.counting = true;
  }
  const bool fails =
      allocations.sticky ? number >= allocations.fail_at : number == allocations.fail_at;
  allocations.failed += fails ? 1 : 0;
  return fails;
}

}  // namespace

namespace latchkey::tests {

void* own_allocate(std::size_t size, std::size_t align) noexcept {
  return fails() ? nullptr : from_malloc(size, align);
}

// Apart, or a compiler that sees only this half of a pair takes it for a mistake.
[[gnu::noinline]] void own_release(void* memory) noexcept { std::free(memory); }

namespace {

Result<void> counted(const std::function<Result<void>()>& call) {
  allocations.counting = true;
  const Result<void> done = or_no_memory(call);
  allocations.counting = false;
  return done;
}

struct Fault {
  std::size_t scenario = 0;
  bool sticky = false;
  u64 after = 0;
};
Fault current;  // for who looks at a core of it

std::string text_of(const Fault& fault) {
  return failure_scenarios()[fault.scenario].name + ": " + (fault.sticky ? "every" : "the") +
         " allocation after " + std::to_string(fault.after);
}

std::string run_with(const Fault& fault, u64& errors) {
  current = fault;
  SimDevice device({.size_bytes = kPointDeviceBytes, .seed = fault.after});
  device.restore(point_image());
  SpareDevice spare(device, allocations.counting);
  FailureRun run{device, spare, counted};
  run.seed = fault.after;
  run.cured = [] { allocations.fail_at = ~0ULL; };
  allocations = {.sticky = fault.sticky, .fail_at = fault.after};
  return run_failure_scenario(failure_scenarios()[fault.scenario], run, errors);
}

// Of each place that allocates in any scenario the first allocation, which fails once, or from then
// on. `counts`: of each scenario's allocations.
std::vector<Fault> each_place_once(std::vector<u64>& counts) {
  std::vector<Fault> faults;
  std::set<u64> met;
  for (std::size_t scenario = 0; scenario < failure_scenarios().size(); ++scenario) {
    std::vector<unsigned long long> places;
    allocation_places = &places;
    u64 errors = 0;
    const std::string wrong = run_with({scenario, false, ~0ULL}, errors);
    allocation_places = nullptr;
    EXPECT_EQ(wrong, "") << failure_scenarios()[scenario].name;
    EXPECT_EQ(errors, 0U) << failure_scenarios()[scenario].name;
    counts.push_back(places.size());
    for (u64 i = 0; i < places.size(); ++i) {
      if (!met.insert(places[i]).second) continue;
      faults.push_back({scenario, false, i});
      faults.push_back({scenario, true, i});
    }
  }
  return faults;
}

TEST(NthAllocation, failed_in_any_scenario_leaves_what_was_acknowledged) {
  std::set_terminate([] {
    std::fprintf(stderr, "an exception ends the process: %s\n", text_of(current).c_str());
    std::abort();
  });
  std::vector<u64> counts;
  u64 all = 0;
  std::vector<Fault> faults = each_place_once(counts);
  const std::size_t places = faults.size() / 2;
  std::mt19937_64 random(seed_base() + 1);
  for (u64 drawn = cases(400); drawn != 0; --drawn) {
    const std::size_t scenario = random() % counts.size();
    faults.push_back({scenario, random() % 2 == 0, random() % counts[scenario]});
  }
  for (const u64 count : counts) all += 2 * count;
  u64 bad = 0, told = 0, failed = 0;
  for (const Fault& fault : faults) {
    u64 errors = 0;
    const std::string wrong = run_with(fault, errors);
    told += errors != 0 ? 1 : 0;
    failed += allocations.failed;
    if (wrong.empty()) continue;
    ADD_FAILURE() << text_of(fault) << ": " << wrong;
    if (++bad == 20) break;
  }
  std::printf(
      "seed %llu: %zu scenarios, %zu places that allocate, %zu of %llu faults, %llu failed "
      "allocations, %llu faults told to a caller\n",
      static_cast<unsigned long long>(seed_base()), counts.size(), places, faults.size(),
      static_cast<unsigned long long>(all), static_cast<unsigned long long>(failed),
      static_cast<unsigned long long>(told));
  EXPECT_GT(counts.size(), 200U);
  EXPECT_GT(told, faults.size() / 2);
}

}  // namespace
}  // namespace latchkey::tests
