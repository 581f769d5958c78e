// Goal: what torture counts is what the device lost, no more and no less.
// Method: files of a volume are made to hold what a loss leaves (old bytes, holes, a shorter file,
// other bytes, no file at all), and the counts are compared with what was done.

#include "cli/torture_ledger.h"

#include <gtest/gtest.h>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using cli::TortureCount;
using cli::TortureFile;
using cli::TortureRecord;

class TortureLedger : public VolumeTest {
 protected:
  static constexpr u32 kSize = 20'000;  // no multiple of a page: records share pages

  void SetUp() override {
    VolumeTest::SetUp();
    file_.name = "file";
    handle_ = open("/file");
    for (u32 i = 0; i < 4; ++i) append(100 + i);
  }
  void TearDown() override {
    if (volume_) close(handle_);
    VolumeTest::TearDown();
  }
  static std::vector<std::byte> made_from(u32 seed, u64 size = kSize) {
    std::vector<std::byte> bytes(size);
    cli::fill_from_seed(bytes, seed);
    return bytes;
  }
  void append(u32 seed) {
    const auto offset = volume_->append(handle_, made_from(seed));
    ASSERT_TRUE(offset);
    file_.appended(*offset, kSize, seed);
  }
  void write(u64 offset, Bytes bytes) { ASSERT_TRUE(volume_->write(handle_, offset, bytes)); }
  // Reported and silently lost.
  std::pair<u64, u64> count(u64 bytes_told = 0) {
    TortureCount count(*volume_, kUser, bytes_told);
    const auto looked = count.look_for(file_, "/file");
    EXPECT_TRUE(looked) << looked.error().what;
    return {count.reported_lost, count.silently_lost};
  }
  using Lost = std::pair<u64, u64>;

  TortureFile file_;
  volume::HandleId handle_{};
};

TEST_F(TortureLedger, nothing_is_lost_when_the_last_acknowledged_bytes_are_there) {
  EXPECT_EQ(count(), Lost(0, 0));
  TortureRecord& record = file_.records[2];
  write(record.offset, made_from(7));
  TortureFile::overwritten(record, 7);
  EXPECT_EQ(count(), Lost(0, 0));
}

TEST_F(TortureLedger, old_bytes_are_a_loss_unless_the_new_ones_were_refused) {
  TortureRecord& record = file_.records[1];
  TortureFile::overwrite_refused(record, 7);
  EXPECT_EQ(count(), Lost(0, 0)) << "the old bytes are the last acknowledged";
  write(record.offset, Bytes(made_from(7)).first(4096 * 5 - record.offset % 4096));
  EXPECT_EQ(count(), Lost(0, 0)) << "of a refused one each page is old or new";
  TortureFile::overwritten(record, 8);
  EXPECT_EQ(count(), Lost(0, 1));
  EXPECT_EQ(count(kSize), Lost(1, 0)) << "the removals' reports cover it";
  EXPECT_EQ(count(kSize - 1), Lost(0, 1));
  file_.loss_told = true;
  EXPECT_EQ(count(), Lost(1, 0)) << "a handle said so";
}

TEST_F(TortureLedger, one_lost_page_is_one_lost_write_call_of_one_page) {
  const TortureRecord& record = file_.records[1];
  write(record.offset / 4096 * 4096 + 8192, std::vector<std::byte>(4096));
  EXPECT_EQ(count(4096), Lost(1, 0));
  EXPECT_EQ(count(4095), Lost(0, 1));
}

TEST_F(TortureLedger, a_shorter_file_has_lost_what_reached_beyond_its_end) {
  ASSERT_TRUE(volume_->truncate(handle_, kSize + 10));
  EXPECT_EQ(count(), Lost(0, 3));
  EXPECT_EQ(count(3 * kSize), Lost(3, 0));
  append(200);  // where the end is now: three records are gone for good
  ASSERT_EQ(file_.records.size(), 2U);
  EXPECT_EQ(file_.cut_bytes, 3 * kSize - 10);
  EXPECT_EQ(count(), Lost(0, 3));
  EXPECT_EQ(count(3 * kSize - 10), Lost(3, 0));
}

TEST_F(TortureLedger, bytes_that_nobody_wrote_are_lost_silently_whatever_was_told) {
  file_.loss_told = true;
  const TortureRecord& record = file_.records[3];
  const std::byte wrong = ~made_from(record.seed)[5000];
  write(record.offset + 5000, {&wrong, 1});
  EXPECT_EQ(count(kGiB), Lost(0, 1));
}

TEST_F(TortureLedger, a_file_that_vanished_is_lost_silently) {
  file_.loss_told = true;
  ASSERT_TRUE(volume_->unlink(volume::kRootInode, "file"));
  EXPECT_EQ(count(kGiB), Lost(0, 4));
}

TEST_F(TortureLedger, damage_is_a_loss_and_a_failing_device_is_an_error) {
  ASSERT_TRUE(volume_->sync());
  const auto rows = volume_->map(handle_);
  ASSERT_TRUE(rows);
  const u64 at = rows->front().device_offset;
  device_.bad_range(at, 4096);
  const auto looked = TortureCount(*volume_, kUser, kGiB).look_for(file_, "/file");
  device_.clear_faults();
  EXPECT_EQ(code_of(looked), Errc::io);
  device_.flip_bit(at, 3);
  EXPECT_EQ(count(kGiB), Lost(0, 1));
  device_.flip_bit(at, 3);
  EXPECT_EQ(count(), Lost(0, 0));
}

}  // namespace
}  // namespace latchkey::tests
