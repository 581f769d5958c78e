// Goal: under the simulator's schedules the volume keeps the fault budget (docs/fault_budget.md):
// every acknowledged fsync is there after a crash, what was not acknowledged is whole or absent,
// check and the nonce ledger find nothing, no call fails that may not. And the simulator would
// notice: a device that loses writes makes schedules fail, a seed repeats a run bit by bit, and a
// failure shrinks. Method: schedules by seed; `./run soak` runs very many more of them (sim_run).

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/sim/shrink.h"
#include "tests/sim/simulate.h"
#include "tests/sim/world.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

TEST(Simulation, schedules_keep_the_fault_budget) {
  u64 crashes = 0, faults = 0;
  std::map<SimOpKind, u64> done;
  for (const u64 seed : seeds(cases(300))) {
    const SimPlan plan = make_plan(seed);
    const SimOutcome outcome = simulate(plan);
    EXPECT_EQ(outcome.failure, "") << "build/release/tests/sim_run " << arguments_of(plan);
    crashes += outcome.crashes;
    faults += outcome.faults_met;
    for (const auto& [kind, count] : outcome.done) done[kind] += count;
  }
  EXPECT_GT(crashes, 300U);
  EXPECT_GT(faults, 50U);
  for (u8 kind = 0; kind <= static_cast<u8>(SimOpKind::clone); ++kind) {
    const auto operation = static_cast<SimOpKind>(kind);
    if (operation == SimOpKind::wait) continue;
    EXPECT_GT(done[operation], 0U) << name_of(operation);
  }
}

TEST(Simulation, a_seed_repeats_a_run_bit_by_bit) {
  std::vector<u64> traces;
  for (const u64 seed : seeds(40)) traces.push_back(simulate(make_plan(seed)).trace);
  // In another order, so that nothing which one run leaves in the process reaches the next.
  const auto again = seeds(40);
  for (std::size_t i = traces.size(); i-- > 0;)
    EXPECT_EQ(simulate(make_plan(again[static_cast<std::ptrdiff_t>(i)])).trace, traces[i])
        << "seed " << again[static_cast<std::ptrdiff_t>(i)];
  EXPECT_EQ(std::set<u64>(traces.begin(), traces.end()).size(), traces.size());
}

TEST(Simulation, every_kind_of_operation_and_fault_is_drawn) {
  std::set<SimOpKind> operations;
  std::set<SimFaultKind> faults;
  for (u64 seed = 1; seed <= 400; ++seed) {
    const SimPlan plan = make_plan(seed);
    for (const SimOp& op : plan.ops) operations.insert(op.kind);
    for (const SimFaultPlan& fault : plan.faults) faults.insert(fault.kind);
  }
  EXPECT_EQ(operations.size(), static_cast<std::size_t>(SimOpKind::clone) + 1);
  EXPECT_EQ(faults.size(), static_cast<std::size_t>(SimFaultKind::rotten_mib) + 1);
}

// The promise that nothing is lost, on a device that loses writes.
SimPlan plan_that_must_fail(u64 seed) {
  SimPlan plan = make_plan(seed, {.faults = false});
  plan.held_to = SimPromise::survived;
  for (u32 i = 0; i < 3; ++i)
    plan.faults.push_back({.number = i,
                           .life = 0,
                           .kind = SimFaultKind::lost_write,
                           .after = 3 + u64{i},
                           .sticky = i == 0,
                           .seed = seed});
  return plan;
}

TEST(Simulation, a_device_that_loses_writes_is_noticed) {
  u64 noticed = 0;
  for (const u64 seed : seeds(30))
    noticed += simulate(plan_that_must_fail(seed)).failure.empty() ? 0 : 1;
  EXPECT_GT(noticed, 3U);  // most of what is lost is replaced before anybody looks
}

TEST(Simulation, a_failure_shrinks_to_what_fails) {
  for (const u64 seed : seeds(30)) {
    const SimPlan plan = plan_that_must_fail(seed);
    if (simulate(plan).failure.empty()) continue;
    const SimJudge fails = [](const SimPlan& shorter) {
      return !simulate(shorter).failure.empty();
    };
    const Shrunk shrunk = shrink(plan, fails, 400);
    EXPECT_TRUE(fails(shrunk.plan));
    EXPECT_LT(shrunk.plan.ops.size(), plan.ops.size());
    EXPECT_EQ(shrunk.plan.faults.size(), 1U);
    return;
  }
  ADD_FAILURE() << "no schedule has failed";
}

// A snapshot whose removal was refused for a read is there: its caller must not take it for gone.
TEST(Simulation, a_removal_that_fails_leaves_the_snapshot) {
  u64 refused = 0;
  for (u64 after = 0; after < 40; ++after) {
    SimPlan plan = make_plan(1, {.faults = false});
    plan.callers = 1;
    plan.nearly_full = false;
    plan.lives = {{}, {}, {}};
    plan.ops = {{.number = 0, .life = 0, .kind = SimOpKind::snapshot, .seed = 1},
                {.number = 1, .life = 1, .kind = SimOpKind::drop_snapshot, .seed = 2},
                {.number = 2, .life = 1, .kind = SimOpKind::sync, .seed = 3}};
    plan.faults = {
        {.life = 1, .kind = SimFaultKind::read_error, .after = after, .at_opening = true}};
    plan.tell = [&](const std::string& line) {
      refused += line.find("drop_snapshot io") != std::string::npos ? 1 : 0;
    };
    EXPECT_EQ(simulate(plan).failure, "") << after;
  }
  EXPECT_GT(refused, 0U);
}

TEST(Shrink, finds_the_two_operations_and_the_fault_that_matter) {
  SimPlan plan = make_plan(5, {.faults = false});
  while (plan.ops.size() < 40) plan = make_plan(plan.seed + 1, {.faults = false});
  for (u32 i = 0; i < 3; ++i) plan.faults.push_back({.number = i});
  const auto has = [](const auto& list, u32 number) {
    return std::ranges::any_of(list, [&](const auto& item) { return item.number == number; });
  };
  const Shrunk shrunk = shrink(plan, [&](const SimPlan& shorter) {
    return has(shorter.ops, 7) && has(shorter.ops, 31) && has(shorter.faults, 1);
  });
  EXPECT_EQ(arguments_of(shrunk.plan), "--seed " + std::to_string(plan.seed) + " --schedule " +
                                           std::to_string(plan.schedule) +
                                           " --ops 7,31 --faults 1");
}

TEST(Shrink, numbers_are_written_as_they_are_read) {
  for (const char* text : {"none", "0", "0-3", "1,4-5,9", "7,9"})
    EXPECT_EQ(numbers_to_text(numbers_from_text(text)), text);
  SimPlan plan = make_plan(3);
  keep_ops(plan, numbers_from_text("1,3-4"));
  EXPECT_EQ(plan.ops.size(), 3U);
  keep_faults(plan, {});
  EXPECT_TRUE(plan.faults.empty());
}

// What a shared block may show: nothing that a finished write has taken the place of.
TEST(SharedBlocks, show_what_reads_and_crashes_may_leave) {
  SharedBlocks blocks;
  const auto bytes = [](u64 stamp) { return SharedBlocks::bytes_of(stamp); };
  const u64 first = blocks.begin_write(0, 2);
  EXPECT_FALSE(blocks.explain_read(0, 2, blocks.next_event(), bytes(0)));
  EXPECT_FALSE(blocks.explain_read(0, 2, blocks.next_event(), bytes(first)));
  EXPECT_TRUE(blocks.explain_read(0, 3, blocks.next_event(), bytes(first)));  // another block
  blocks.end_write(0, 2, first, true);
  EXPECT_TRUE(blocks.explain_read(0, 2, blocks.next_event(), bytes(0)));
  EXPECT_FALSE(blocks.explain_crash(0, 2, bytes(0)));
  blocks.acknowledge(0, blocks.next_event());
  EXPECT_TRUE(blocks.explain_crash(0, 2, bytes(0)));
  EXPECT_FALSE(blocks.explain_crash(0, 2, bytes(first)));

  const u64 second = blocks.begin_write(0, 2);
  blocks.end_write(0, 2, second, true);
  auto torn = bytes(second);
  std::ranges::copy_n(bytes(first).begin() + 512, 512, torn.begin() + 512);
  EXPECT_TRUE(blocks.explain_crash(0, 2, torn));
  blocks.may_be_lost();
  EXPECT_FALSE(blocks.explain_read(0, 2, blocks.next_event(), bytes(first)));
  EXPECT_TRUE(blocks.explain_read(0, 2, blocks.next_event(), bytes(0)));  // that was durable
  blocks.adopt(0, 2, bytes(first));
  EXPECT_TRUE(blocks.explain_read(0, 2, blocks.next_event(), bytes(second)));
}

}  // namespace
}  // namespace latchkey::tests
