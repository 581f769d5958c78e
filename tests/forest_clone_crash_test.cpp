// Goal: whatever instant the power goes, a family of trees that share nodes comes back as it was
// after some transaction since the last commit, its counts are right, and a tree whose end was cut
// short can be ended (design S3, D1 to D3). Method: that of store_crash_test.cpp: one seeded
// workload is run once for each write and flush that it makes, cut there; the device drops, keeps
// and tears what was not flushed. One line tells how to repeat a failure.

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "tests/support/clone_family.h"
#include "tests/support/seed.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

constexpr u64 kDeviceBytes = 16 * kMiB;
constexpr CloneFamily::Options kOptions{
    .names = 60, .trees_max = 5, .value_bytes_max = 300, .drop_nodes = 2};

struct State {
  FamilyModel model;
  std::vector<TreeId> dropping;  // may be there, whole, in part, or not
};

class Workload {
 public:
  void run(SimDevice& device, u64 seed, int steps) {
    auto store = Store::open(device, family_options(), system_env());
    if (!store) return;
    CloneFamily family(**store, seed, kOptions);
    states.push_back({family.model(), {}});
    for (int i = 0; i < steps; ++i) {
      if (!step(family)) break;
      states.push_back({family.model(), family.dropping()});
      if (family.random() % 5 == 0) {
        if (!(*store)->commit()) break;
        committed = states.size() - 1;
      }
    }
  }
  std::vector<State> states;
  std::size_t committed = 0;

 private:
  // One transaction.
  static Result<void> step(CloneFamily& family) {
    const u64 what = family.random() % 100;
    const TreeId tree = family.any_tree();
    if (what < 15 && family.model().size() + family.dropping().size() < kOptions.trees_max)
      return family.clone(tree);
    if (what < 20 && tree != kFirstSubvolume) {
      family.begin_drop(tree);
      return {};
    }
    if (what < 40 && !family.dropping().empty()) {
      LK_TRYV(family.drop_step(family.dropping().front()));
      return {};
    }
    if (what < 50) return family.erase_spread(tree, 3);
    const u64 name = family.random() % kOptions.names;
    if (what < 60) return family.erase(tree, name);
    return family.put(tree, name, what < 90);
  }
};

bool is_state(const State& state, FamilyModel found) {
  for (const TreeId tree : state.dropping) found.erase(tree);
  return found == state.model;
}

// Ends every tree but the first and empties that: what is left is an empty store.
void end_all(Store& store, const FamilyModel& found, u64 used_when_empty) {
  CloneFamily family(store, 1, kOptions);
  for (const auto& [tree, records] : found) {
    if (tree == kFirstSubvolume) continue;
    ASSERT_TRUE(family.drop(tree)) << "tree " << tree;
  }
  for (const auto& [name, record] : found.at(kFirstSubvolume))
    ASSERT_TRUE(family.erase(kFirstSubvolume, name));
  ASSERT_TRUE(store.commit());
  EXPECT_EQ(store.space().blocks_used, used_when_empty);
  expect_family_clean(store, true);
}

void look_at(SimDevice& device, const Workload& workload, bool end, u64 used_when_empty) {
  auto opened = Store::open(device, family_options(), system_env());
  ASSERT_TRUE(opened) << opened.error().what;
  Store& store = **opened;
  FamilyModel found;
  expect_family_clean(store, true);
  // A tree whose end was cut short still leads to whole data.
  read_family(store, {}, true, found);
  const auto begin = workload.states.begin() + static_cast<std::ptrdiff_t>(workload.committed);
  ASSERT_TRUE(std::any_of(begin, workload.states.end(), [&](const State& state) {
    return is_state(state, found);
  })) << "not a state that was ever committed or under way";
  if (end) end_all(store, found, used_when_empty);
}

void cut_everywhere(u64 workload_seed, int steps) {
  SimDevice fresh({.size_bytes = kDeviceBytes, .seed = workload_seed});
  FormatOptions format;
  format.node_bytes = 4096;
  ASSERT_TRUE(Store::format(fresh, format));
  u64 used_when_empty = 0;
  {
    auto store = Store::open(fresh, family_options(), system_env());
    ASSERT_TRUE(store);
    used_when_empty = (*store)->space().blocks_used;
  }
  const SimImage formatted = fresh.snapshot();
  u64 cut = 0;
  for (bool survived = false; !survived; ++cut) {
    SimDevice device({.size_bytes = kDeviceBytes, .seed = workload_seed});
    device.restore(formatted);
    device.cut_after(cut);
    Workload workload;
    workload.run(device, workload_seed, steps);
    survived = !device.power_off();
    ASSERT_TRUE(!survived || std::cmp_equal(workload.states.size(), steps + 1));
    if (workload.states.empty()) workload.states.push_back({{{kFirstSubvolume, {}}}, {}});
    const u64 seed = seed_base() + cut * 1000;
    SCOPED_TRACE(testing::Message()
                 << "workload " << workload_seed << ", cut " << cut << ", crash seed " << seed);
    SimDevice after({.size_bytes = kDeviceBytes, .seed = seed});
    after.restore(device.crash_image(seed));
    look_at(after, workload, cut % 5 == 0, used_when_empty);
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(cut, 100U);
}

TEST(ForestCloneCrash, every_cut_recovers_a_committed_state) {
  for (const u64 seed : seeds(3)) {
    cut_everywhere(seed, 70);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace latchkey::tests
