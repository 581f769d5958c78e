// Goal: trees that share nodes behave as if each were a copy, and when all are gone nothing is left
// of them (design S1, S3). Method: random operations on a family of clones against maps, with data
// that records refer to, drops in steps, commits and reopens; the counts are compared with what is
// reachable; a seed is printed on failure.

#include <gtest/gtest.h>

#include <array>
#include <iostream>

#include "tests/support/clone_family.h"
#include "tests/support/seed.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

class ForestClone : public StoreTest {
 protected:
  void make_family(u64 size, u32 node_bytes, u64 seed, const CloneFamily::Options& options) {
    make(size, node_bytes);
    open(family_options());
    ASSERT_TRUE(store_->commit());
    used_when_empty_ = store_->space().blocks_used;
    family_.emplace(*store_, seed, options);
  }
  void reopen_family() {
    ASSERT_TRUE(store_->close());
    open(family_options());
    family_->reopened(*store_);
  }
  void expect_equal(bool data) {
    ASSERT_TRUE(store_->commit());  // a check reads the device
    FamilyModel found;
    read_family(*store_, family_->dropping(), data, found);
    EXPECT_TRUE(found == family_->model()) << "the trees are not what the maps are";
    expect_family_clean(*store_, data);
  }
  void expect_empty_at_the_end() {
    const auto emptied = family_->empty();
    ASSERT_TRUE(emptied) << emptied.error().what;
    ASSERT_TRUE(store_->commit());
    EXPECT_EQ(store_->space().blocks_used, used_when_empty_);
    expect_equal(false);
  }

  std::optional<CloneFamily> family_;
  u64 used_when_empty_ = 0;
};

TEST_F(ForestClone, random_operations_agree_with_maps) {
  for (const u64 seed : seeds(6)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    make_family(64 * kMiB, seed % 2 == 0 ? 4096 : 8192, seed, {});
    for (int i = 0; i < 1500; ++i) {
      const auto stepped = family_->step();
      ASSERT_TRUE(stepped) << stepped.error().what;
      if (family_->random() % 40 == 0) {
        ASSERT_TRUE(store_->commit());
      }
      if (family_->random() % 300 == 0) reopen_family();
      if (family_->random() % 150 == 0) expect_equal(false);
      if (HasFatalFailure()) return;
    }
    expect_equal(true);
    expect_empty_at_the_end();
    if (HasFailure()) return;
  }
}

// S3: a clone costs the same whatever the size; a change costs what its path does.
TEST_F(ForestClone, a_clone_of_a_million_records_writes_a_handful_of_nodes) {
  make(192 * kMiB, 16384);
  constexpr u64 kRecords = 1'000'000, kAtOnce = 2000;
  const std::array<std::byte, 8> value{};
  for (u64 first = 0; first < kRecords; first += kAtOnce) {
    auto space = store_->reserve({0, kAtOnce, kAtOnce * value.size()});
    ASSERT_TRUE(space);
    auto transaction = store_->begin(std::move(*space));
    ASSERT_TRUE(transaction);
    for (u64 i = first; i < first + kAtOnce; ++i)
      ASSERT_TRUE(transaction->put(kFirstSubvolume, {i, 1, 0}, value));
  }
  ASSERT_TRUE(store_->commit());
  const auto written_by = [&](const auto& change) {
    const u64 before = device_->counters().bytes_written;
    SpaceNeed need{0, 2, 256};
    need.clone = true;
    auto space = store_->reserve(need);
    EXPECT_TRUE(space);
    if (space) {
      auto transaction = store_->begin(std::move(*space));
      EXPECT_TRUE(transaction && change(*transaction));
    }
    EXPECT_TRUE(store_->commit());
    return (device_->counters().bytes_written - before) / store_->facts().node_bytes;
  };
  // Both places of a leaf of the root tree and of the extent table; less than two nodes' worth are
  // superblocks and bitmaps.
  const TreeId clone = kFirstSubvolume + 1;
  EXPECT_LE(written_by([&](Transaction& t) { return t.clone_tree(kFirstSubvolume, clone); }), 5U);
  // Three levels, and the counts of two nodes' children.
  const u64 path = written_by([&](Transaction& t) { return t.put(clone, {7, 1, 0}, {}); });
  EXPECT_LE(path, 16U);
  std::cout << "nodes written by the first change after the clone: " << path << "\n";
  EXPECT_EQ(store_->view().get(kFirstSubvolume, {7, 1, 0}).value()->value.size(), 8U);
  EXPECT_LE(written_by([&](Transaction& t) { return t.drop_tree_step(clone, 400); }), 16U);
  EXPECT_FALSE(store_->view().tree_exists(clone).value());
  expect_clean();
}

// D7: space runs out before an operation begins or not at all, whatever the trees share. The family
// is grown until the store is full, and then goes on there; in the end everything can be freed.
// Records of one leaf lie in extents far from each other, so that a copy of it touches much.
class FullForest : public ForestClone {
 protected:
  void accept(const Result<void>& result) {
    if (result) return;
    ASSERT_EQ(result.error().code, Errc::no_space) << result.error().what;
    ++refused_;
  }
  void fill(u32 clones_while_filling) {
    while (refused_ == 0 && !HasFatalFailure()) {
      accept(family_->change(family_->any_tree(), 16));
      if (family_->model().size() <= clones_while_filling && family_->random() % 60 == 0)
        accept(family_->clone(family_->any_tree()));
    }
  }
  void go_on(int steps) {
    u64 done = 0;
    for (int i = 0; i < steps && !HasFatalFailure(); ++i) {
      const u64 before = refused_;
      accept(family_->step());
      if (refused_ == before) ++done;
      const auto failure = store_->failure();
      ASSERT_FALSE(failure) << failure->what;
    }
    EXPECT_GT(done, static_cast<u64>(steps / 20));
  }
  // What takes most: erasing from one clone after the other, which frees no data and copies leaves.
  void erase_from_clones(int clones) {
    for (int i = 0; i < clones && !HasFatalFailure(); ++i) {
      accept(family_->clone(kFirstSubvolume));
      for (const auto& [tree, records] : FamilyModel(family_->model()))
        for (int k = 0; k < 6; ++k) accept(family_->erase_spread(tree, 8));
      const auto failure = store_->failure();
      ASSERT_FALSE(failure) << failure->what;
    }
  }
  void run(u64 seed, u32 node_bytes, const CloneFamily::Options& options) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", nodes of " << node_bytes);
    refused_ = 0;
    make_family(16 * kMiB, node_bytes, seed, options);
    fill(2);
    erase_from_clones(12);
    go_on(400);
    expect_equal(false);
    reopen_family();
    expect_empty_at_the_end();
  }

  u64 refused_ = 0;
};

TEST_F(FullForest, never_runs_out_inside_a_transaction) {
  for (const u64 seed : seeds(2)) {
    run(seed, 4096, {.names = 3000, .value_bytes_max = 300, .write_data = false});
    run(seed, 16384, {.names = 3000, .value_bytes_max = 900, .write_data = false});
    run(seed, 4096,
        {.names = 3000, .value_bytes_max = 16, .context_bytes = 64, .write_data = false});
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace latchkey::tests
