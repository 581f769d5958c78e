// Goal: what another version of latchkey wrote is refused, read or ignored as its feature words
// say (design D2), and a store that opens an older generation than it may have had says so.
// Method: superblocks of a simulated device are changed and their checksums made right again.
// What the command answers is in bad_input_test.py.

#include <gtest/gtest.h>

#include <string>

#include "engine/superblock.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

constexpr u64 kSize = 16 * kMiB;
constexpr u64 kUnknown = u64{1} << 63;

class FormatTest : public StoreTest {
 protected:
  // Generations 1, 2 and 3 are committed: both sets are written, set 1 is the newer.
  void SetUp() override {
    make(kSize, 4096);
    for (u64 i = 2; i <= 3; ++i) {
      ASSERT_TRUE(put({1, 1, i}, seeded_bytes(i, 100)));
      ASSERT_TRUE(store_->commit());
    }
    ASSERT_EQ(store_->facts().generation, 3U);
    store_.reset();
  }
  static u64 at(u32 place) { return superblock_place(place, kSize) * kBlockBytes; }
  template <class Change>
  void rewrite(u32 place, Change change) {
    std::vector<std::byte> block(kBlockBytes);
    device_->peek(at(place), block);
    auto disk = load_disk<SuperblockDisk>(block);
    change(disk);
    disk.checksum = {};
    disk.checksum = checksum128(std::as_bytes(std::span(&disk, 1)));
    store_disk(block, disk);
    device_->overwrite(at(place), block);
  }
  template <class Change>
  void rewrite_all(Change change) {
    for (u32 place = 0; place < 4; ++place) rewrite(place, change);
  }
  Result<std::unique_ptr<Store>> try_open(bool read_only, bool previous = false) {
    OpenOptions options;
    options.read_only = read_only;
    options.previous_generation = previous;
    return Store::open(*device_, options, system_env());
  }
  void expect_refused(Errc code, const std::string& why) {
    for (const bool read_only : {false, true}) {
      auto opened = try_open(read_only);
      ASSERT_FALSE(opened) << read_only;
      EXPECT_EQ(opened.error().code, code) << opened.error().what;
      EXPECT_NE(std::string(opened.error().what).find(why), std::string::npos)
          << opened.error().what;
    }
    auto opened = try_open(true, true);
    ASSERT_FALSE(opened) << "for rescue";
    EXPECT_EQ(opened.error().code, code);
  }
  bool has(u64 generation) {
    auto record = store_->view().get(kFirstSubvolume, {1, 1, generation});
    return record && record->has_value();
  }
};

TEST_F(FormatTest, an_unknown_incompatible_feature_is_refused) {
  rewrite_all([](SuperblockDisk& disk) { disk.features_incompat = kUnknown; });
  expect_refused(Errc::format_version, "a feature that is not known");
}

TEST_F(FormatTest, another_version_is_refused) {
  rewrite_all([](SuperblockDisk& disk) { disk.format_version = 3; });
  expect_refused(Errc::format_version, "version is not known");
}

// A newer latchkey committed once: its commit is not undone by opening the one before.
TEST_F(FormatTest, what_the_newest_commit_needs_is_not_gone_around) {
  const SimImage image = device_->snapshot();
  for (const u32 place : {1U, 3U})
    rewrite(place, [](SuperblockDisk& disk) { disk.features_incompat = kUnknown; });
  expect_refused(Errc::format_version, "a feature that is not known");
  device_->restore(image);
  rewrite(3, [](SuperblockDisk& disk) { disk.features_incompat = kUnknown; });
  device_->rot(at(1), kBlockBytes, 7);
  expect_refused(Errc::format_version, "a feature that is not known");
  device_->restore(image);
  for (const u32 place : {1U, 3U})
    rewrite(place, [](SuperblockDisk& disk) { disk.format_version = 3; });
  expect_refused(Errc::format_version, "version is not known");
}

// The feature went with the last commit; the older set still names it.
TEST_F(FormatTest, a_feature_of_the_older_set_alone_is_no_matter) {
  for (const u32 place : {0U, 2U})
    rewrite(place, [](SuperblockDisk& disk) { disk.features_incompat = kUnknown; });
  open();
  EXPECT_EQ(store_->facts().generation, 3U);
  EXPECT_TRUE(has(3));
}

// A commit that was cut short wrote one copy of its set: what the other one leads to was reused.
TEST_F(FormatTest, an_older_copy_in_the_newest_set_is_no_generation_before) {
  rewrite(3, [](SuperblockDisk& disk) { disk.generation = 1; });
  auto opened = try_open(true, true);
  ASSERT_TRUE(opened) << opened.error().what;
  EXPECT_EQ((*opened)->facts().generation, 2U);
  for (const u32 place : {0U, 2U}) device_->rot(at(place), kBlockBytes, place + 1);
  opened = try_open(true, true);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Errc::wrong_device) << opened.error().what;
}

TEST_F(FormatTest, an_unknown_read_only_compatible_feature_opens_for_reading_alone) {
  rewrite_all([](SuperblockDisk& disk) { disk.features_ro_compat = kUnknown; });
  auto refused = try_open(false);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::format_version);
  EXPECT_NE(std::string(refused.error().what).find("only be read"), std::string::npos);
  const u64 writes = device_->counters().writes;
  open({.read_only = true});
  EXPECT_TRUE(has(2) && has(3));
  EXPECT_EQ(store_->facts().features_ro_compat, kUnknown);
  EXPECT_FALSE(store_->reserve({0, 1, 10}));
  EXPECT_TRUE(store_->close());
  EXPECT_EQ(device_->counters().writes, writes);
}

TEST_F(FormatTest, an_unknown_compatible_feature_is_ignored_and_kept) {
  rewrite_all([](SuperblockDisk& disk) { disk.features_compat = kUnknown; });
  open();
  EXPECT_TRUE(has(3));
  for (u64 i = 4; i <= 5; ++i) {  // both sets are written anew
    ASSERT_TRUE(put({1, 1, i}, seeded_bytes(i, 100)));
    ASSERT_TRUE(store_->commit());
  }
  expect_clean();
  open();
  EXPECT_EQ(store_->facts().generation, 5U);
  EXPECT_EQ(store_->facts().features_compat, kUnknown);
}

TEST_F(FormatTest, a_feature_that_a_change_needs_is_of_its_commit_and_all_later_ones) {
  open();
  EXPECT_EQ(store_->facts().features_incompat, kFeatureLoggedCreates);  // each commit's
  const auto change = [this](u64 i, u64 feature) {
    auto space = store_->reserve({0, 1, 100});
    ASSERT_TRUE(space);
    auto transaction = store_->begin(std::move(*space));
    ASSERT_TRUE(transaction);
    if (feature != 0) transaction->need_feature(feature);
    ASSERT_TRUE(transaction->put(kFirstSubvolume, {1, 1, i}, seeded_bytes(i, 100)));
  };
  change(4, kFeatureClearAttributes);
  EXPECT_TRUE(store_->has_feature(kFeatureClearAttributes)) << "at once";
  store_.reset();
  open();
  EXPECT_FALSE(has(4));
  EXPECT_FALSE(store_->has_feature(kFeatureClearAttributes)) << "lost with what needs it";
  change(4, kFeatureClearAttributes);
  ASSERT_TRUE(store_->commit());
  for (u64 i = 5; i <= 6; ++i) {
    change(i, 0);
    ASSERT_TRUE(store_->commit());
    store_.reset();
    open();
    EXPECT_TRUE(has(i));
    EXPECT_EQ(store_->facts().features_incompat, kFeatureClearAttributes | kFeatureLoggedCreates);
  }
  auto before = try_open(true, true);
  ASSERT_TRUE(before);
  EXPECT_TRUE((*before)->has_feature(kFeatureClearAttributes));
}

TEST_F(FormatTest, a_sound_store_did_not_step_back) {
  open();
  EXPECT_FALSE(store_->facts().stepped_back);
  for (u32 place = 0; place < 4; ++place) {  // D2: a rotten copy has its twin
    const SimImage image = device_->snapshot();
    device_->rot(at(place), kBlockBytes, place);
    open();
    EXPECT_FALSE(store_->facts().stepped_back) << place;
    EXPECT_EQ(store_->facts().generation, 3U);
    device_->restore(image);
  }
  make(kSize, 4096);  // one generation, one set
  EXPECT_EQ(store_->facts().generation, 1U);
  EXPECT_FALSE(store_->facts().stepped_back);
}

TEST_F(FormatTest, a_store_whose_newest_set_is_lost_says_so_until_it_is_written_again) {
  for (const u32 place : {1U, 3U}) device_->rot(at(place), kBlockBytes, place);
  open({.read_only = true});
  EXPECT_TRUE(store_->facts().stepped_back);
  EXPECT_EQ(store_->facts().generation, 2U);
  EXPECT_TRUE(has(2) && !has(3));
  open();
  EXPECT_TRUE(store_->facts().stepped_back);
  ASSERT_TRUE(put({1, 1, 9}, seeded_bytes(9, 100)));
  ASSERT_TRUE(store_->commit());
  open();
  EXPECT_FALSE(store_->facts().stepped_back);
  EXPECT_EQ(store_->facts().generation, 3U);
}

// What the device does not give may be the newest generation with its acknowledged writes: no crash
// makes a copy unreadable.
TEST_F(FormatTest, nobody_steps_back_behind_a_set_that_cannot_be_read) {
  const SimImage image = device_->snapshot();
  for (const bool both_unreadable : {true, false}) {
    device_->bad_range(at(1), kBlockBytes);
    if (both_unreadable)
      device_->bad_range(at(3), kBlockBytes);
    else
      device_->rot(at(3), kBlockBytes, 3);
    const u64 writes = device_->counters().writes;
    for (const bool read_only : {false, true}) {
      const auto opened = try_open(read_only);
      ASSERT_FALSE(opened);
      EXPECT_EQ(opened.error().code, Errc::io);
    }
    EXPECT_EQ(device_->counters().writes, writes);
    open({.previous_generation = true});  // on request
    EXPECT_TRUE(store_->facts().stepped_back);
    EXPECT_EQ(store_->facts().generation, 2U);
    EXPECT_TRUE(has(2) && !has(3));
    store_.reset();
    device_->clear_faults();
    device_->restore(image);
    open();
    EXPECT_TRUE(has(3));
    store_.reset();
  }
  // One copy of each set is enough.
  for (const u32 place : {0U, 3U}) device_->bad_range(at(place), kBlockBytes);
  open();
  EXPECT_EQ(store_->facts().generation, 3U);
  EXPECT_FALSE(store_->facts().stepped_back);
}

// Of a store with one generation the other set is blank; anything else in it was a commit.
TEST_F(FormatTest, a_lost_second_generation_is_told_from_none) {
  make(kSize, 4096);
  ASSERT_TRUE(put({1, 1, 2}, seeded_bytes(2, 100)));
  ASSERT_TRUE(store_->commit());
  ASSERT_EQ(store_->facts().generation, 2U);
  store_.reset();
  for (const u32 place : {0U, 2U}) device_->rot(at(place), kBlockBytes, place);
  open();
  EXPECT_EQ(store_->facts().generation, 1U);
  EXPECT_TRUE(store_->facts().stepped_back);
}

}  // namespace
}  // namespace latchkey::tests
