// Goal: space that was promised is there (design D7). Whatever the shape of what is free, a
// transaction that reserved does not fail, a full store says so before, and deleting always works.
// Method: stores filled to the brim, in the worst shapes and by seeded random operations; any
// failure of a transaction stops the store, which the tests look for.

#include <algorithm>
#include <cerrno>

#include "tests/support/seed.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

class SpaceTest : public StoreTest {
 protected:
  void fill(std::vector<BlockRun>& runs, u32 blocks) {
    for (;;) {
      const auto added = add_extents(blocks, runs);
      if (added) continue;
      ASSERT_EQ(added.error().code, Errc::no_space) << added.error().what;
      break;
    }
  }
  // To the block.
  void expect_available_is_what_reserve_promises() {
    EXPECT_FALSE(store_->reserve({1ULL << 40, 0, 0})) << "it commits twice: nothing is pinned";
    const u64 available = store_->space().blocks_available;
    if (available != 0) {
      EXPECT_TRUE(store_->reserve({available, 0, 0})) << available;
    }
    EXPECT_EQ(store_->space().blocks_available, available);
    const auto more = store_->reserve({available + 1, 0, 0});
    ASSERT_FALSE(more) << available;
    EXPECT_EQ(more.error().code, Errc::no_space);
  }
  void expect_running() {
    const auto failure = store_->failure();
    ASSERT_FALSE(failure) << failure->what;
  }
};

// Every other block is freed, so nothing that is free has room for a node of four blocks but what
// was kept for it.
TEST_F(SpaceTest, nodes_find_room_where_only_single_blocks_are_free) {
  make(16 * kMiB, 16384);
  std::vector<BlockRun> runs;
  fill(runs, 1);
  std::vector<BlockRun> blocks;
  for (const BlockRun& run : runs)
    for (u64 block = run.block; block < run.end(); ++block) blocks.push_back({block, 1});
  std::sort(blocks.begin(), blocks.end(),
            [](const BlockRun& a, const BlockRun& b) { return a.block < b.block; });
  for (std::size_t i = 0; i < blocks.size(); i += 2) {
    const auto released = release(blocks[i]);
    ASSERT_TRUE(released) << released.error().what;
  }
  ASSERT_TRUE(store_->commit());
  ASSERT_TRUE(store_->commit());
  // Single blocks and records go in until the store says that it is full, and it says so in time.
  for (u64 i = 0;; ++i) {
    std::vector<BlockRun> more;
    const auto added = add_extents(1, more);
    const auto written = put({i * 7919 % 4001, 1, i}, seeded_bytes(i, 200));
    ASSERT_NO_FATAL_FAILURE(expect_running());
    if (!added && !written) break;
    ASSERT_LT(i, 100000U);
  }
  for (std::size_t i = 1; i < blocks.size(); i += 2) {
    const auto released = release(blocks[i]);
    ASSERT_TRUE(released) << released.error().what;
  }
  ASSERT_TRUE(store_->commit());
  expect_clean();
}

// The trees grow, and with them what commits may need, after all the rest was promised to data.
TEST_F(SpaceTest, blocks_that_were_promised_to_data_are_not_set_aside_for_nodes) {
  make(16 * kMiB, 4096);
  auto tree = store_->reserve({0, 400, u64{400} * 500});
  ASSERT_TRUE(tree);
  Reservation data;
  for (const u64 blocks : {64, 1}) {
    for (;;) {
      auto more = store_->reserve({blocks, 0, 0});
      if (!more) break;
      data.merge(std::move(*more));
    }
  }
  const u64 promised = data.data_blocks();
  for (u64 i = 0; i < 400; ++i) {
    auto transaction = store_->begin(tree->take(0, store_->tree_blocks_for(1, 500)));
    ASSERT_TRUE(transaction);
    ASSERT_TRUE(transaction->put(kFirstSubvolume, {i, 1, 0}, seeded_bytes(i, 500)));
  }
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(store_->reserve({1, 0, 0})) << "and commits are tried";
  u64 given = 0;
  while (data.data_blocks() > 0) {
    const BlockRun run = store_->allocate(data, 64);
    if (run.count == 0) break;
    given += run.count;
  }
  EXPECT_EQ(given, promised);
  ASSERT_NO_FATAL_FAILURE(expect_running());
}

TEST_F(SpaceTest, what_is_available_can_be_reserved_and_no_block_more) {
  make(16 * kMiB, 16384);
  ASSERT_NO_FATAL_FAILURE(expect_available_is_what_reserve_promises());
  std::vector<BlockRun> runs;
  ASSERT_TRUE(add_extents(100, runs));
  ASSERT_NO_FATAL_FAILURE(expect_available_is_what_reserve_promises());
  const auto tree = store_->reserve({7, 3, 1000});
  ASSERT_TRUE(tree);
  ASSERT_NO_FATAL_FAILURE(expect_available_is_what_reserve_promises());
  ASSERT_TRUE(release(runs[0]));
  ASSERT_NO_FATAL_FAILURE(expect_available_is_what_reserve_promises());
}

TEST_F(SpaceTest, what_is_freed_is_discarded_once_before_it_is_reused) {
  make(16 * kMiB, 4096);
  std::vector<BlockRun> runs;
  ASSERT_TRUE(add_extents(100, runs));
  OpenOptions options;
  options.discard = true;
  ASSERT_TRUE(store_->close());
  open(options);
  ASSERT_EQ(runs.size(), 1U);
  const u64 before = store_->space().blocks_discarded;
  ASSERT_TRUE(release({runs[0].block, 40}));
  ASSERT_TRUE(store_->commit());
  EXPECT_LT(store_->space().blocks_discarded, before + 40) << "the previous set leads to them";
  {
    const ReadPin reader = store_->pin();
    ASSERT_TRUE(release({runs[0].block + 60, 40}));
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(put({1, 1, static_cast<u64>(i)}, {}));
      ASSERT_TRUE(store_->commit());
    }
    EXPECT_GE(store_->space().blocks_discarded, before + 40);
    EXPECT_LT(store_->space().blocks_discarded, before + 80) << "a reader may be at them";
  }
  ASSERT_TRUE(put({1, 1, 9}, {}));
  ASSERT_TRUE(store_->commit());
  EXPECT_GE(store_->space().blocks_discarded, before + 80);
  std::vector<std::byte> block(kBlockBytes);
  device_->peek((runs[0].block + 1) * kBlockBytes, block);
  EXPECT_TRUE(std::ranges::all_of(block, [](std::byte b) { return b == std::byte{0}; }));
  expect_clean();
}

TEST_F(SpaceTest, a_device_that_refuses_discards_is_not_asked_again) {
  make(16 * kMiB, 4096);
  OpenOptions options;
  options.discard = true;
  open(options);
  device_->inject({OpKind::discard, 0, EOPNOTSUPP, true});
  for (u64 i = 0; i < 6; ++i) {
    ASSERT_TRUE(put({1, 1, i}, seeded_bytes(i, 500)));
    ASSERT_TRUE(store_->commit());
  }
  EXPECT_EQ(store_->space().blocks_discarded, 0U);
  const u64 asked = device_->counters().discards;
  EXPECT_NE(asked, 0U);
  ASSERT_TRUE(put({1, 1, 7}, {}));
  ASSERT_TRUE(store_->commit());
  EXPECT_EQ(device_->counters().discards, asked);
  ASSERT_NO_FATAL_FAILURE(expect_running());
  // Another error is no reason to stop either, nor to ask no more.
  device_->clear_faults();
  ASSERT_TRUE(store_->close());
  open(options);
  device_->inject({OpKind::discard, 0, EIO, false});
  for (u64 i = 0; i < 6; ++i) {
    ASSERT_TRUE(put({2, 1, i}, seeded_bytes(i, 500)));
    ASSERT_TRUE(store_->commit());
  }
  EXPECT_NE(store_->space().blocks_discarded, 0U);
}

class SpaceChurn : public SpaceTest, public ::testing::WithParamInterface<u32> {};

TEST_P(SpaceChurn, a_store_that_stays_full_never_fails_a_transaction) {
  const u64 seed = seed_base() + 77;
  make(16 * kMiB, GetParam());
  std::mt19937_64 random(seed);
  std::vector<BlockRun> runs;
  std::vector<Key> keys;
  int refused = 0;
  for (int step = 0; step < 6000; ++step) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", step " << step);
    const u64 dice = random() % 100;
    if (dice < 40) {
      const auto added = add_extents(1 + static_cast<u32>(random() % 24), runs);
      refused += added ? 0 : 1;
      ASSERT_TRUE(added || added.error().code == Errc::no_space) << added.error().what;
    } else if (dice < 65) {
      const Key key{random() % 500, 1, random() % 50};
      const auto written = put(key, seeded_bytes(step, random() % 900));
      refused += written ? 0 : 1;
      if (written) keys.push_back(key);
      ASSERT_TRUE(written || written.error().code == Errc::no_space) << written.error().what;
    } else if (dice < 85 && !runs.empty()) {
      const std::size_t i = random() % runs.size();
      BlockRun& run = runs[i];
      // Sometimes one block out of the middle: the record is split, and deleting needs space.
      const u32 first = random() % 3 == 0 ? static_cast<u32>(random() % run.count) : 0;
      const BlockRun part{run.block + first, first == 0 ? run.count : 1};
      const auto released = release(part);
      ASSERT_TRUE(released) << released.error().what;
      const BlockRun tail{part.end(), static_cast<u32>(run.end() - part.end())};
      run.count = first;
      if (run.count == 0) runs.erase(runs.begin() + static_cast<std::ptrdiff_t>(i));
      if (tail.count != 0) runs.push_back(tail);
    } else if (dice < 95 && !keys.empty()) {
      const std::size_t i = random() % keys.size();
      const auto erased = erase(keys[i]);
      ASSERT_TRUE(erased) << erased.error().what;
      keys.erase(keys.begin() + static_cast<std::ptrdiff_t>(i));
    } else if (dice < 98) {
      ASSERT_NO_FATAL_FAILURE(expect_available_is_what_reserve_promises());
    } else if (random() % 20 == 0) {
      ASSERT_TRUE(store_->close());
      open();
    }
    ASSERT_NO_FATAL_FAILURE(expect_running());
  }
  EXPECT_GT(refused, 100) << "the store never was full";
  for (const BlockRun& run : runs) {
    const auto released = release(run);
    ASSERT_TRUE(released) << released.error().what;
  }
  ASSERT_TRUE(store_->commit());
  expect_clean();
}

INSTANTIATE_TEST_SUITE_P(Nodes, SpaceChurn, ::testing::Values(4096U, 16384U));

}  // namespace
}  // namespace latchkey::tests
