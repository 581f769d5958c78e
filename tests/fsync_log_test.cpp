// Goal: a sync of an object is one block of the log and one flush, what was synced survives
// whatever else the power takes, and whatever is not declared as an insert makes it a commit; a log
// that is not whole is told. Method: a store on a simulated device, with counts of commits and
// blocks; then it loses what was not flushed, or rots.

#include "engine/fsync_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <ranges>

#include "base/checksum.h"
#include "engine/free_space_format.h"
#include "engine/io_buffer.h"
#include "engine/repair.h"
#include "engine/store.h"
#include "tests/support/logged_store.h"
#include "tests/support/seed.h"
#include "tests/support/sim_device.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

class FsyncLog : public LoggedStore {};

TEST_F(FsyncLog, sync_is_two_writes_and_one_flush) {
  ASSERT_TRUE(put(3, 100));
  const SimCounters before = device_.counters();
  ASSERT_TRUE(sync(3));
  const SimCounters after = device_.counters();
  EXPECT_EQ(after.flushes - before.flushes, 1U);
  EXPECT_EQ(after.writes - before.writes, 1U);
  EXPECT_EQ(after.bytes_written - before.bytes_written, kBlockBytes);
  ASSERT_TRUE(sync(3));  // nothing is left to do
  ASSERT_TRUE(sync(4));
  EXPECT_EQ(device_.counters().flushes, after.flushes);
}

TEST_F(FsyncLog, what_was_synced_is_there_and_what_was_not_is_not_needed) {
  for (u64 seed : seeds(20)) {
    for (u64 i = 0; i < 5; ++i) {
      ASSERT_TRUE(put(i, seed * 100 + i));
      ASSERT_TRUE(put(i + 5, seed));
      ASSERT_TRUE(sync(i));
    }
    crash(seed);
    open();
    EXPECT_EQ(store_->facts().log_replayed, 5U);
    for (u64 i = 0; i < 5; ++i) EXPECT_EQ(tag(i), seed * 100 + i);
    expect_clean();
  }
}

TEST_F(FsyncLog, whatever_else_changed_an_object_makes_its_sync_a_commit) {
  expect_logged([&] { EXPECT_TRUE(put(1, 50) && sync(1)); }, true);
  expect_logged([&] { EXPECT_TRUE(put(1, 51, false) && put(1, 52) && sync(1)); }, false);
  expect_logged([&] { EXPECT_TRUE(put(1, 53) && put(2, 54, false) && sync(1)); }, true);
  expect_logged([&] { EXPECT_TRUE(sync(2)); }, false);
  const auto change = [&](const std::function<Result<void>(Transaction&)>& fn) {
    auto space = store_->reserve({0, 4, 400, 0, true}, true);
    ASSERT_TRUE(space);
    auto transaction = store_->begin(std::move(*space));
    ASSERT_TRUE(transaction);
    EXPECT_TRUE(fn(*transaction));
  };
  const auto put_other = [&](Transaction& t) { return t.put(kFirstSubvolume, {1, 9, 9}, {}); };
  const auto erase_other = [&](Transaction& t) -> Result<void> {
    LK_TRYV(t.erase(kFirstSubvolume, {1, 9, 9}));
    return {};
  };
  expect_logged(
      [&] {
        change(put_other);
        EXPECT_TRUE(put(1, 55) && sync(1));
      },
      false);
  expect_logged(
      [&] {
        EXPECT_TRUE(put(1, 56));
        change(erase_other);
        EXPECT_TRUE(sync(1));
      },
      false);
  // A clone of the tree, and its end.
  const auto clone = [](Transaction& t) { return t.clone_tree(kFirstSubvolume, 300); };
  expect_logged(
      [&] {
        EXPECT_TRUE(put(1, 57));
        change(clone);
        EXPECT_TRUE(sync(1));
      },
      false);
  expect_logged([&] { EXPECT_TRUE(put(1, 58) && sync(1)); }, true);
  ASSERT_TRUE(store_->commit());
  expect_clean();
}

TEST_F(FsyncLog, insert_that_brings_more_or_less_than_it_says_is_not_logged) {
  expect_logged(
      [&] {
        auto space = store_->reserve({2, 6, 256});
        const BlockRun run = store_->allocate(*space, 2);
        const std::vector<std::byte> value(16);
        {
          auto transaction = store_->begin(std::move(*space));
          transaction->declare_insert(kFirstSubvolume, 1, value, 1);
          EXPECT_TRUE(transaction->put(kFirstSubvolume, {1, 2, 0}, value));
          EXPECT_TRUE(transaction->insert_extent(run, 0, {}, std::vector<u32>(run.count)));
        }
        EXPECT_TRUE(sync(1));
      },
      false);
}

TEST_F(FsyncLog, log_that_is_full_ends_with_a_commit_and_gives_its_blocks_back) {
  const u64 commits = store_->commits();
  u64 most = 0;
  for (u64 i = 0; i < 400; ++i) {
    ASSERT_TRUE(put(i % kNames, i) && sync(i % kNames));
    most = std::max(most, store_->space().blocks_log);
  }
  EXPECT_GE(store_->commits() - commits, 5U);
  EXPECT_LE(store_->commits() - commits, 7U);
  EXPECT_LE(most, 2 * 64 + 8U);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(put(1, 1, false));
    ASSERT_TRUE(store_->commit());
  }
  EXPECT_LE(store_->space().blocks_log, 8U);
  expect_clean();
}

// Whoever needs room gets what the log has: to the block.
TEST_F(FsyncLog, what_statfs_promises_is_there_although_the_log_holds_some) {
  for (u64 i = 0; i < 20; ++i) ASSERT_TRUE(put(1, i) && sync(1));
  EXPECT_GT(store_->space().blocks_log, 20U);
  ASSERT_TRUE(store_->commit() && put(2, 1, false) && store_->commit() && put(2, 1, false) &&
              store_->commit());
  const SpaceFacts facts = store_->space();
  const auto all = store_->reserve({facts.blocks_available, 0, 0});
  EXPECT_TRUE(all) << facts.blocks_available << " of " << facts.blocks_log;
  EXPECT_FALSE(store_->reserve({1, 0, 0}));
}

TEST_F(FsyncLog, store_with_a_log_is_not_opened_without_a_replay) {
  ASSERT_TRUE(put(1, 70) && sync(1));
  crash(1);
  const auto opened = Store::open(device_, {}, system_env());
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::unsupported);
  OpenOptions options;
  options.read_only = true;
  open(options);  // as of the last commit, and it says so
  EXPECT_EQ(store_->logged().size(), 1U);
  EXPECT_EQ(tag(1), 1U);
  const auto check = check_store(*store_, {});
  ASSERT_TRUE(check);
  EXPECT_TRUE(check->findings.empty());
  EXPECT_EQ(check->notes.size(), 1U);
}

TEST_F(FsyncLog, opened_read_only_it_is_replayed_in_memory) {
  ASSERT_TRUE(put(1, 70) && sync(1));
  crash(1);
  const u64 writes = device_.counters().writes;
  OpenOptions options = with_replay();
  options.read_only = true;
  for (int i = 0; i < 2; ++i) {
    open(options);
    EXPECT_EQ(tag(1), 70U);
  }
  store_.reset();
  EXPECT_EQ(device_.counters().writes, writes);
  options.previous_generation = true;
  open(options);
  EXPECT_EQ(store_->facts().log_replayed, 0U);
}

// A log that was begun but never acknowledged must not come to life when its data is written later.
TEST_F(FsyncLog, unfinished_block_never_counts_later) {
  ASSERT_TRUE(put(1, 70));
  ASSERT_TRUE(sync(1));
  store_.reset();
  // The log's block landed, its data did not.
  SimImage image = device_.snapshot();
  u64 place = 0;
  std::vector<std::byte> data(kBlockBytes);
  {
    SimDevice look({.size_bytes = kSize});
    look.restore(image);
    OpenOptions options;
    options.read_only = true;
    auto opened = Store::open(look, options, system_env());
    const auto logged = (*opened)->logged();
    ASSERT_EQ(logged.size(), 1U);
    place = logged[0].extents[0].run.block;
    look.peek(place * kBlockBytes, data);
    image.set_page(place, nullptr);
  }
  device_.restore(image);
  open();
  EXPECT_EQ(tag(1), 1U);
  store_.reset();
  // Somebody writes the same there, and syncs nothing.
  device_.overwrite(place * kBlockBytes, data);
  open();
  EXPECT_EQ(store_->facts().log_replayed, 0U);
  EXPECT_EQ(tag(1), 1U);
}

TEST_F(FsyncLog, damaged_log_is_not_gone_around_but_for_a_repair) {
  for (u64 i = 0; i < 3; ++i) ASSERT_TRUE(put(i, 70 + i) && sync(i));
  crash(1);
  const auto places = find_places();
  ASSERT_EQ(places.size(), 3U);
  device_.rot(places[1] * kBlockBytes + 100, 8, 1);
  const auto opened = Store::open(device_, with_replay(), system_env());
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::damaged);
  OpenOptions options = with_replay();
  options.read_only = true;
  open(options);
  EXPECT_TRUE(store_->facts().log_damaged);
  options = with_replay();
  options.repair = true;
  open(options);
  const auto repaired = repair_store(*store_);
  ASSERT_TRUE(repaired);
  EXPECT_EQ(std::ranges::count(repaired->mended, "fsync log", &Finding::where), 1);
  EXPECT_EQ(tag(0), 70U);
  EXPECT_EQ(tag(1), 1U);
  open();
  EXPECT_FALSE(store_->facts().log_damaged);
  expect_clean();
}

// Free space that cannot be read keeps a repair from claiming what the log has until it is rebuilt.
TEST_F(FsyncLog, repair_of_free_space_keeps_what_was_synced) {
  for (u64 i = 0; i < 3; ++i) ASSERT_TRUE(put(i, 70 + i) && sync(i));
  crash(1);
  std::vector<std::byte> bytes(kBlockBytes);
  for (u64 block = 0; block < 64; ++block) {
    device_.peek(block * kBlockBytes, bytes);
    if (load_disk<BitmapSlotDisk>(bytes).magic == kBitmapMagic)
      device_.rot(block * kBlockBytes + 100, 8, block);
  }
  OpenOptions options = with_replay();
  options.repair = true;
  open(options);
  const auto repaired = repair_store(*store_);
  ASSERT_TRUE(repaired) << repaired.error().what;
  EXPECT_TRUE(repaired->space_rebuilt);
  open();
  for (u64 i = 0; i < 3; ++i) EXPECT_EQ(tag(i), 70 + i);
  expect_clean();
}

TEST_F(FsyncLog, refused_flush_of_the_log_stops_the_store) {
  ASSERT_TRUE(put(1, 70));
  device_.inject({.kind = OpKind::flush});
  const auto synced = sync(1);
  device_.clear_faults();
  ASSERT_FALSE(synced);
  EXPECT_EQ(synced.error().code, Errc::io);
  EXPECT_TRUE(store_->failure());
  EXPECT_FALSE(sync(1));
  EXPECT_FALSE(store_->commit());
}

TEST_F(FsyncLog, where_a_block_is_refused_a_commit_does) {
  ASSERT_TRUE(put(1, 70));
  device_.inject({});
  expect_logged([&] { EXPECT_TRUE(sync(1)); }, false);
  expect_logged([&] { EXPECT_TRUE(put(1, 71) && sync(1)); }, true);
  ASSERT_TRUE(put(1, 72));
  device_.inject({.sticky = true});
  EXPECT_FALSE(sync(1));  // the commit is refused, too
  EXPECT_TRUE(store_->failure());
  device_.clear_faults();
  crash(1);
  open();
  EXPECT_EQ(tag(1), 71U);
  expect_clean();
}

}  // namespace
}  // namespace latchkey::tests
