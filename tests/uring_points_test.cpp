// Goal: the crash points hold on the real path, too: io_uring, a file, threads of the volume's own,
// completions in the kernel's order. Method: the sequences of crash_points_test run on a file, what
// is submitted and completed is recorded on its way to io_uring, and a write is taken for durable
// only when a flush that was submitted after its completion has answered (dm-log-writes' rule).
// The states of that log are made and looked at as the others are.

#include <gtest/gtest.h>

#include <cstdio>
#include <random>

#include "tests/support/crash_points.h"
#include "tests/support/seed.h"
#include "tests/support/temp_file.h"

namespace latchkey::tests {
namespace {

class UringPoints : public testing::TestWithParam<bool> {
 protected:
  // False: the kernel refuses io_uring.
  bool run(const PointSequence& sequence, u64 seed) {
    PointOptions options;
    options.seed = seed;
    options.recoveries = 0;
    options.budget.random_subsets = 128;
    auto totals = CrashPoints(options).run_on_file(sequence, folder_.file("device"), GetParam());
    if (!totals && totals.error().code == Errc::unavailable) return false;
    EXPECT_TRUE(totals) << totals.error().what;
    if (!totals) return true;
    for (const std::string& finding : totals->findings) ADD_FAILURE() << finding;
    totals_ += *totals;
    return true;
  }

  TempFolder folder_;
  PointTotals totals_;
};

TEST_P(UringPoints, every_state_of_recorded_runs_is_good) {
  const auto operations = point_operations();
  std::vector<PointSequence> sequences;
  for (const PointOperation& operation : operations)
    sequences.push_back({&operation, &point_operation("sync")});
  for (const u64 seed : seeds(20)) {
    std::mt19937_64 random(seed);
    sequences.push_back({&operations[random() % operations.size()],
                         &operations[random() % operations.size()],
                         &point_operation("fsync B/bar")});
  }
  u64 seed = seed_base();
  for (const PointSequence& sequence : sequences) {
    if (!is_worthwhile(sequence)) continue;
    if (!run(sequence, ++seed)) GTEST_SKIP() << "the kernel refuses io_uring to this process";
  }
  std::printf("%llu sequences: %llu states, %llu images, %llu opened\n",
              static_cast<unsigned long long>(totals_.sequences),
              static_cast<unsigned long long>(totals_.states),
              static_cast<unsigned long long>(totals_.images),
              static_cast<unsigned long long>(totals_.opened));
  EXPECT_GT(totals_.states, 10U * totals_.sequences) << "nothing was recorded";
}

INSTANTIATE_TEST_SUITE_P(by, UringPoints, testing::Bool(),
                         [](const auto& chosen) { return chosen.param ? "workers" : "callers"; });

}  // namespace
}  // namespace latchkey::tests
