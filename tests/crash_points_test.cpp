// Goal: whatever instant the power goes, and whatever of the writes under way it leaves, a volume
// comes back with what it acknowledged, calls whole or absent, clean, and so does one whose
// recovery is cut short (V1, D1 to D3, K1). Method: sequences of one and two operations are run
// once, their writes are recorded, and every prefix, every subset (up to 12 writes, sampled beyond)
// and every torn write is made and looked at (tests/support/crash_points.h). Here: all sequences of
// one, and a sample of those of two; the rest is crash_points' (./run soak).

#include <gtest/gtest.h>

#include <cstdio>
#include <random>

#include "tests/support/crash_points.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

void expect_good(const PointTotals& totals) {
  for (const std::string& finding : totals.findings) ADD_FAILURE() << finding;
  std::printf("%llu sequences: %llu states, %llu images, %llu opened; %llu inside recoveries\n",
              static_cast<unsigned long long>(totals.sequences),
              static_cast<unsigned long long>(totals.states),
              static_cast<unsigned long long>(totals.images),
              static_cast<unsigned long long>(totals.opened),
              static_cast<unsigned long long>(totals.recovery_states));
}

PointSequence ended_by(const char* end, PointSequence sequence) {
  sequence.push_back(&point_operation(end));
  return sequence;
}

TEST(CrashPoints, every_state_of_every_single_operation_is_good) {
  PointTotals totals;
  for (const PointOperation& operation : point_operations()) {
    if (!is_worthwhile({&operation})) continue;
    PointOptions options;
    options.seed = seed_base() + totals.sequences + 1;
    options.recoveries = 1;
    totals += CrashPoints(options).run(ended_by("sync", {&operation}));
  }
  expect_good(totals);
  EXPECT_GT(totals.sequences, 25U);
}

TEST(CrashPoints, every_state_of_some_pairs_is_good) {
  PointTotals totals;
  for (const u64 seed : seeds(60)) {
    std::mt19937_64 random(seed);
    const auto operations = point_operations();
    PointSequence sequence;
    do {
      sequence = {&operations[random() % operations.size()],
                  &operations[random() % operations.size()]};
      if (random() % 2 == 0) sequence.insert(sequence.begin() + 1, &point_operation("sync"));
      sequence = ended_by(random() % 2 == 0 ? "fsync B/bar" : "sync", sequence);
    } while (!is_worthwhile(sequence));
    PointOptions options;
    options.seed = seed;
    options.recoveries = 1;
    totals += CrashPoints(options).run(sequence);
  }
  expect_good(totals);
}

}  // namespace
}  // namespace latchkey::tests
