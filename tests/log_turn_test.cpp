// Goal: data and the block of the log that tells of it may go down beside each other: what the end
// of the turn acknowledged is there after a crash, entered or not; what did not land never counts,
// nor makes anything else count; and a turn is not had where only a commit would do. Method: the
// turn's I/O by hand, on a store on a simulated device.

#include "engine/log_turn.h"

#include <gtest/gtest.h>

#include <optional>

#include "tests/support/logged_store.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

class LogTurns : public LoggedStore {
 protected:
  // One insert, step by step.
  struct Insert {
    u64 name = 0;
    Reservation space;
    BlockRun run;
    std::array<Le64, 2> value;
    u32 checksum = 0;
    Op data;
    std::optional<LogTurn> turn;

    Bytes bytes() const { return std::as_bytes(std::span(value)); }
    LogRecord record() const {
      return {
          kFirstSubvolume, name, {{run, 1, 0, {}, {checksum}}}, {bytes().begin(), bytes().end()}};
    }
  };

  void prepare(Insert& insert, u64 name, u64 tag) {
    insert.name = name;
    auto space = store_->reserve({1, 3, 128});
    ASSERT_TRUE(space);
    insert.space = std::move(*space);
    insert.run = store_->allocate(insert.space, 1);
    insert.value = {insert.run.block, tag};
    fill(io_->buffer(), tag);
    insert.checksum = crc32c(io_->buffer());
  }
  bool take(Insert& insert) {
    if (auto turn = LogTurn::take(*store_, insert.record())) insert.turn.emplace(std::move(*turn));
    return insert.turn.has_value();
  }
  void submit(Insert& insert, const Op* refused = nullptr) {
    insert.data.kind = OpKind::write;
    insert.data.offset = insert.run.block * kBlockBytes;
    insert.data.data = io_->buffer();
    for (Op* op : {&insert.data, &insert.turn->op()}) {
      op->done = [](Op&) {};
      if (op == refused) device_.inject({});
      io_->submit(*op);
      // In order only where one is refused.
      if (refused != nullptr) {
        ASSERT_TRUE(io_->tick(1));
      }
    }
  }
  Result<u64> finish(Insert& insert) {
    while (io_->pending() != 0) LK_TRYV(io_->tick(1));
    return insert.turn->end(*io_, insert.data.result >= 0);
  }
  void enter_it(Insert& insert, u64 logged) {
    auto transaction = store_->begin(std::move(insert.space));
    ASSERT_TRUE(transaction);
    const Bytes bytes = insert.bytes();
    transaction->declare_insert(kFirstSubvolume, insert.name, {bytes.begin(), bytes.end()}, 1);
    transaction->already_logged(logged);
    ASSERT_TRUE(enter(*transaction, insert.name, bytes, insert.record().extents[0]));
  }
  // All steps up to the flush; answers in which generation's log it is.
  Result<u64> log(Insert& insert, u64 name, u64 tag) {
    prepare(insert, name, tag);
    EXPECT_TRUE(take(insert));
    submit(insert);
    return finish(insert);
  }
  void expect_no_turn(u64 name) {
    Insert insert;
    prepare(insert, name, 1);
    EXPECT_FALSE(take(insert)) << name;
    store_->cancel(insert.run);
  }
  u64 flushes() const { return device_.counters().flushes; }
};

TEST_F(LogTurns, data_and_its_block_are_durable_with_one_flush) {
  const u64 commits = store_->commits(), blocks = store_->log_blocks(), before = flushes();
  for (u64 tag = 100; tag < 103; ++tag) {
    Insert insert;
    const auto logged = log(insert, 3, tag);
    ASSERT_TRUE(logged);
    EXPECT_EQ(*logged, store_->running_transaction());
    enter_it(insert, *logged);
    ASSERT_TRUE(sync(3));  // is done already
  }
  EXPECT_EQ(flushes() - before, 3U);
  EXPECT_EQ(store_->log_blocks() - blocks, 3U);
  EXPECT_EQ(store_->commits(), commits);
  crash(1);
  open();
  EXPECT_EQ(tag(3), 102U);
  expect_clean();
}

TEST_F(LogTurns, what_its_end_acknowledged_is_there_though_it_was_never_entered) {
  Insert insert;
  ASSERT_TRUE(log(insert, 3, 100));
  insert.space = {};
  crash(2);
  open();
  EXPECT_EQ(store_->facts().log_replayed, 1U);
  EXPECT_EQ(tag(3), 100U);
  expect_clean();
}

// Whichever of the two writes the power takes: old or new, and never another's.
TEST_F(LogTurns, cut_before_its_flush_leaves_old_or_new) {
  u32 there = 0, gone = 0;
  for (const u64 seed : seeds(60)) {
    const u64 old = tag(3);
    Insert insert;
    prepare(insert, 3, 1000 + seed % 1000);
    ASSERT_TRUE(take(insert));
    submit(insert);
    while (io_->pending() != 0) ASSERT_TRUE(io_->tick(1));
    const SimImage cut = device_.crash_image(seed);
    ASSERT_TRUE(finish(insert));
    insert.space = {};
    store_.reset();
    io_.reset();
    device_.restore(cut);
    open();
    const u64 now = tag(3);
    EXPECT_TRUE(now == old || now == 1000 + seed % 1000) << now << " with seed " << seed;
    ++(now == old ? gone : there);
    expect_clean();
  }
  EXPECT_GT(there, 0U);
  EXPECT_GT(gone, 0U);
}

TEST_F(LogTurns, block_beside_lost_data_never_counts_and_nothing_behind_it) {
  ASSERT_TRUE(put(5, 50));  // waits, and goes into the same block
  Insert insert;
  prepare(insert, 3, 100);
  ASSERT_TRUE(take(insert));
  submit(insert, &insert.data);
  const auto logged = finish(insert);
  ASSERT_TRUE(logged) << logged.error().what;
  EXPECT_EQ(*logged, 0U);
  EXPECT_LT(insert.data.result, 0);
  EXPECT_FALSE(store_->failure());
  store_->cancel(insert.run);
  insert.space = {};
  expect_no_turn(4);
  expect_logged([&] { EXPECT_TRUE(put(5, 51) && sync(5)); }, false);
  // The next log begins with the commit.
  expect_logged([&] { EXPECT_TRUE(put(5, 52) && sync(5)); }, true);
  crash(3);
  open();
  EXPECT_EQ(tag(3), 3U);
  EXPECT_EQ(tag(5), 52U);
  expect_clean();
}

TEST_F(LogTurns, where_the_block_cannot_be_written_a_commit_does) {
  Insert insert;
  prepare(insert, 3, 100);
  ASSERT_TRUE(take(insert));
  submit(insert, &insert.turn->op());
  const auto logged = finish(insert);
  ASSERT_TRUE(logged) << logged.error().what;
  EXPECT_EQ(*logged, 0U);
  enter_it(insert, *logged);
  expect_logged([&] { EXPECT_TRUE(sync(3)); }, false);
  crash(5);
  open();
  EXPECT_EQ(tag(3), 100U);
  expect_clean();
}

TEST_F(LogTurns, refused_flush_stops_the_store) {
  Insert insert;
  prepare(insert, 3, 100);
  ASSERT_TRUE(take(insert));
  submit(insert);
  device_.inject({.kind = OpKind::flush});
  EXPECT_FALSE(finish(insert));
  EXPECT_TRUE(store_->failure());
}

TEST_F(LogTurns, is_not_had_where_only_a_commit_would_do) {
  ASSERT_TRUE(put(1, 50, false));  // not as an insert
  expect_no_turn(1);
  Insert first;
  prepare(first, 2, 60);
  ASSERT_TRUE(take(first));
  expect_no_turn(3);  // somebody has it
  submit(first);
  const auto logged = finish(first);
  ASSERT_TRUE(logged);
  enter_it(first, *logged);
  {
    auto space = store_->reserve({0, 4, 400, 0, true}, true);
    auto transaction = store_->begin(std::move(*space));
    ASSERT_TRUE(transaction->clone_tree(kFirstSubvolume, 300));
  }
  expect_no_turn(4);
}

// A commit that came in between has ended the log that it was in.
TEST_F(LogTurns, what_is_entered_after_another_commit_is_logged_again) {
  Insert insert;
  const auto logged = log(insert, 3, 100);
  ASSERT_TRUE(logged);
  ASSERT_TRUE(put(4, 40, false) && store_->commit());
  enter_it(insert, *logged);
  expect_logged([&] { EXPECT_TRUE(sync(3)); }, true);
  crash(4);
  open();
  EXPECT_EQ(tag(3), 100U);
  expect_clean();
}

TEST_F(LogTurns, object_changed_after_it_was_logged_is_committed_by_its_next_sync) {
  Insert insert;
  const auto logged = log(insert, 3, 100);
  ASSERT_TRUE(logged);
  {
    auto transaction = store_->begin(*store_->reserve({0, 1, 64}));
    ASSERT_TRUE(transaction->put(kFirstSubvolume, {3, 9, 9}, {}));
  }
  enter_it(insert, *logged);
  expect_logged([&] { EXPECT_TRUE(sync(3)); }, false);
}

}  // namespace
}  // namespace latchkey::tests
