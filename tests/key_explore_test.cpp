// Goal: around a removal, in every mode, no order of three callers breaks what docs/removal.md
// promises of a key's life (tests/explore/key_scene.h). Method: of each plan of each mode all
// interleavings of one preemption, of some of two; ./run soak keys takes all there are.

#include <gtest/gtest.h>

#include "tests/explore/key_scene.h"
#include "tests/explore/state_memory.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

class KeyExplore : public testing::TestWithParam<keymgr::RemovalMode> {};

void explore(const KeyPlan& plan, u32 preemptions) {
  SCOPED_TRACE(plan.name);
  // Under a sanitizer states are not compared, and every run is slow.
  const u64 runs_max = StateMemory::works() ? ~u64{0} : 50;
  Explorer explorer([&] { return std::make_unique<KeyScene>(plan); },
                    {.preemptions_max = preemptions, .runs_max = runs_max});
  const Explored explored = explorer.explore();
  EXPECT_EQ(explored.wrong, "");
  for (const std::string& line : explored.story) std::cout << line << '\n';
  EXPECT_TRUE(explored.whole || explored.runs == runs_max);
  EXPECT_GT(explored.steps_max, 20U);
}

TEST_P(KeyExplore, no_order_of_one_preemption_breaks_a_promise) {
  for (const KeyPlan& plan : key_plans(GetParam())) explore(plan, 1);
}

// One that goes back beside one that does not is where two preemptions are needed to see more.
TEST_P(KeyExplore, nor_one_of_two_where_a_removal_goes_back) {
  for (const KeyPlan& plan : key_plans(GetParam()))
    if (plan.name == "its flush fails, another removes" ||
        (plan.name == "all users again, one adds" && GetParam() == keymgr::RemovalMode::sealed))
      explore(plan, 2);
}

// What a read looks at before, during and after a wipe takes three.
TEST_P(KeyExplore, nor_one_of_three_where_a_front_reads_around_the_wipe) {
  for (const KeyPlan& plan : key_plans(GetParam()))
    if (plan.name == "a front's page, added after the removal")
      explore(plan, GetParam() == keymgr::RemovalMode::freeze ? 3 : 2);
}

std::vector<keymgr::RemovalMode> modes() {
  std::vector<keymgr::RemovalMode> all;
  for (const keymgr::RemovalRow& row : keymgr::removal_rows()) all.push_back(row.mode);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Mode, KeyExplore, testing::ValuesIn(modes()), [](const auto& tested) {
  return std::string(keymgr::removal_row(tested.param).name);
});

}  // namespace
}  // namespace latchkey::tests
