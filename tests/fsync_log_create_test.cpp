// Goal: a new object's sync is a block of the log only where its transaction declared all that it
// did, names have changed in no other way, and the superblock says that such records may be there;
// what a crash leaves of the log are all that were made before it. Method: as fsync_log_test;
// objects here are an entry in their directory, a record of their own and a count.

#include <gtest/gtest.h>

#include "engine/superblock.h"
#include "tests/support/logged_store.h"

namespace latchkey::tests {
namespace {

constexpr u64 kDirectory = 500, kCounts = 400;
constexpr u8 kEntry = 3, kItem = 2;

Result<void> make_object(Transaction& transaction, u64 object, Bytes note) {
  LK_TRYV(transaction.put(kFirstSubvolume, {kDirectory, kEntry, object}, note));
  LK_TRYV(transaction.put(kFirstSubvolume, {object, kItem, 0}, note));
  LK_TRY(const auto count, transaction.get(kFirstSubvolume, {kCounts, kItem, 0}));
  const Le64 after(count ? load_disk<Le64>(count->value) + 1 : 1);
  return transaction.put(kFirstSubvolume, {kCounts, kItem, 0}, std::as_bytes(std::span(&after, 1)));
}

class FsyncLogCreate : public LoggedStore {
 protected:
  void SetUp() override {
    LoggedStore::SetUp();
    open(options());
    ASSERT_TRUE(change({kDirectory, kItem, 0}));
    ASSERT_TRUE(store_->commit());
  }
  static OpenOptions options() {
    OpenOptions options = with_replay();
    options.is_name = [](const Key& key) { return key.type == kEntry; };
    options.replay = [](Transaction& transaction, const LogRecord& record) {
      return record.kind == LogKind::create ? make_object(transaction, record.object, record.note)
                                            : replay(transaction, record);
    };
    return options;
  }
  Result<void> make(u64 object, const std::function<Result<void>(Transaction&)>& more = {},
                    u32 changes = 2) {
    LK_TRY(auto space, store_->reserve({0, 4, 400}));
    const std::vector<std::byte> note(100, std::byte{7});
    LK_TRY(Transaction transaction, store_->begin(std::move(space)));
    transaction.declare_create({kFirstSubvolume, object, kDirectory, kCounts, changes}, note);
    LK_TRYV(make_object(transaction, object, note));
    if (more) LK_TRYV(more(transaction));
    return {};
  }
  Result<void> change(Key key) {
    LK_TRY(auto space, store_->reserve({0, 2, 100}));
    LK_TRY(Transaction transaction, store_->begin(std::move(space)));
    return transaction.put(kFirstSubvolume, key, {});
  }
  void expect_made(u64 object, bool logged) {
    expect_logged([&] { EXPECT_TRUE(make(object) && sync(object)); }, logged);
  }
  bool is_there(u64 object) {
    const auto record = store_->view().get(kFirstSubvolume, {object, kItem, 0});
    return record && record->has_value();
  }
  u64 count() {
    const auto record = store_->view().get(kFirstSubvolume, {kCounts, kItem, 0});
    return record && *record ? u64{load_disk<Le64>((*record)->value)} : 0;
  }
  void change_features(const std::function<u64(u64)>& fn) {
    store_.reset();
    for (u32 place = 0; place < 4; ++place) {
      const u64 at = superblock_place(place, kSize) * kBlockBytes;
      std::vector<std::byte> block(kBlockBytes);
      device_.peek(at, block);
      auto disk = load_disk<SuperblockDisk>(block);
      disk.features_incompat = fn(disk.features_incompat);
      disk.checksum = {};
      disk.checksum = checksum128(std::as_bytes(std::span(&disk, 1)));
      store_disk(block, disk);
      device_.overwrite(at, block);
    }
  }
};

TEST_F(FsyncLogCreate, each_sync_brings_along_what_was_made_before) {
  for (u64 i = 0; i < 6; ++i) ASSERT_TRUE(make(600 + i));
  expect_logged([&] { EXPECT_TRUE(sync(603)); }, true);
  const u64 blocks = store_->log_blocks();
  ASSERT_TRUE(sync(601));
  EXPECT_EQ(store_->log_blocks(), blocks);
  crash(1);
  open(options());
  for (u64 i = 0; i < 6; ++i) EXPECT_EQ(is_there(600 + i), i <= 3) << i;
  EXPECT_EQ(count(), 4U);
  expect_clean();
}

// The block that one sync writes has what others wait for, each as far as all of it fits.
TEST_F(FsyncLogCreate, objects_that_were_inserted_into_go_with_the_files_before_them) {
  ASSERT_TRUE(make(600));
  ASSERT_TRUE(make(601) && put(601, 77));
  ASSERT_TRUE(put(2, 88));
  expect_logged([&] { EXPECT_TRUE(sync(601)); }, true);
  crash(2);
  OpenOptions read_only = options();
  read_only.read_only = true;
  read_only.replay = {};
  open(read_only);
  const auto logged = store_->logged();
  ASSERT_EQ(logged.size(), 3U);
  EXPECT_EQ(std::pair(logged[0].kind, logged[0].object), std::pair(LogKind::create, u64{600}));
  EXPECT_EQ(std::pair(logged[1].kind, logged[1].object), std::pair(LogKind::create, u64{601}));
  EXPECT_EQ(std::pair(logged[2].kind, logged[2].object), std::pair(LogKind::insert, u64{601}));
}

TEST_F(FsyncLogCreate, what_is_changed_before_and_after_it) {
  expect_made(600, true);
  ASSERT_TRUE(change({3, 9, 0}));  // no name
  expect_made(601, true);
  ASSERT_TRUE(change({3, kEntry, 0}));  // a name, elsewhere
  expect_made(602, false);
  ASSERT_TRUE(change({kDirectory, 9, 0}));  // the directory, no name
  expect_made(603, false);
  ASSERT_TRUE(make(604));
  ASSERT_TRUE(change({3, kEntry, 1}));
  expect_logged([&] { EXPECT_TRUE(sync(604)); }, true);  // it came before
  expect_made(605, false);
  ASSERT_TRUE(make(606) && change({606, 9, 0}));
  expect_logged([&] { EXPECT_TRUE(sync(606)); }, false);
  ASSERT_TRUE(make(607) && change({607, 9, 0}));
  expect_made(608, true);  // which was made behind 607, whatever became of that
  crash(3);
  open(options());
  EXPECT_TRUE(is_there(607) && is_there(608));
  EXPECT_EQ(count(), 9U);
  expect_clean();
}

// A build that does not know of such records must not meet one.
TEST_F(FsyncLogCreate, superblock_says_first_that_they_may_be_there) {
  expect_made(600, true);
  ASSERT_TRUE(store_->commit());
  change_features([](u64 features) {
    EXPECT_EQ(features, kFeatureLoggedCreates);
    return u64{0};
  });
  open(options());
  expect_logged([&] { EXPECT_TRUE(put(2, 20) && sync(2)); }, true);
  expect_made(601, false);
  expect_made(602, true);
  store_.reset();
  change_features([](u64 features) { return features; });
  open(options());
  EXPECT_EQ(store_->facts().features_incompat, kFeatureLoggedCreates);
  EXPECT_TRUE(is_there(602));
}

// Without it any record may be a name.
TEST_F(FsyncLogCreate, where_nobody_says_what_a_name_is_anything_may_be_one) {
  OpenOptions without = options();
  without.is_name = {};
  open(without);
  expect_made(600, true);
  ASSERT_TRUE(change({3, 9, 0}));
  expect_made(601, false);
}

TEST_F(FsyncLogCreate, more_or_less_than_was_declared_is_not_logged) {
  expect_made(600, true);
  const auto made_with = [&](u64 object, const std::function<Result<void>(Transaction&)>& more,
                             u32 changes) {
    expect_logged([&] { EXPECT_TRUE(make(object, more, changes) && sync(object)); }, false);
    expect_made(object + 1, true);
  };
  const auto also = [](Key key) {
    return [key](Transaction& transaction) { return transaction.put(kFirstSubvolume, key, {}); };
  };
  made_with(610, also({610, 9, 0}), 2);
  made_with(620, also({kDirectory, 9, 0}), 2);
  made_with(630, also({3, 9, 0}), 2);
  made_with(640, also({3, 9, 1}), 3);
  made_with(650, {}, 3);
  made_with(660, [](Transaction& t) { return t.create_tree(300); }, 2);
}

}  // namespace
}  // namespace latchkey::tests
