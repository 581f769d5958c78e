// Goal: the fsync log's format, and what counts of a chain of its blocks: nothing stale, nothing
// torn, nothing out of order; and damage among what was acknowledged is told. Method: chains made
// by hand, each spoiled in one way.

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

#include "base/checksum.h"
#include "engine/fsync_log.h"
#include "tests/support/sim_image.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

constexpr u64 kSize = 16 * kMiB;

Checksum sum_of(u8 tag) {
  Checksum sum{};
  sum.fill(std::byte{tag});
  return sum;
}

class FsyncLogChain : public ::testing::Test {
 protected:
  FsyncLogChain() {
    superblock_.generation = 7;
    superblock_.volume_id.fill(std::byte{9});
    superblock_.size_bytes = kSize;
    superblock_.root.checksum = sum_of(3);
    superblock_.log_head = {places_[0], places_[1]};
  }

  static LogRecord record_of(u64 number, u64 block, Bytes data) {
    LogRecord record;
    record.tree = kFirstSubvolume;
    record.object = number;
    record.note = seeded_bytes(number, 20);
    record.extents.push_back({{block, 1}, 1, 5, std::vector<std::byte>(34), {crc32c(data)}});
    return record;
  }

  // Block `sequence` with one record, whose data it writes too; `change` spoils it before its
  // checksum is made.
  using Change = std::function<void(LogBlock&, VolumeId&)>;
  void add(u64 sequence, const Change& change = {}) {
    const std::vector<std::byte> data = seeded_bytes(sequence + 50, kBlockBytes);
    const u64 block = 3000 + sequence;
    image_.write(block * kBlockBytes, data);
    std::vector<std::byte> body;
    encode_log_record(record_of(sequence, block, data), body);
    VolumeId volume = superblock_.volume_id;
    LogBlock head{superblock_.generation,
                  sequence,
                  {places_[sequence + 1], places_[sequence + 2]},
                  last_,
                  superblock_.root.checksum};
    if (change) change(head, volume);
    std::vector<std::byte> bytes(kBlockBytes);
    last_ = encode_log_block(volume, head, 1, body, bytes);
    image_.write(places_[sequence] * kBlockBytes, bytes);
  }
  void spoil(u64 block, u64 offset = 700) {
    std::byte byte{};
    image_.read(block * kBlockBytes + offset, {&byte, 1});
    byte ^= std::byte{1};
    image_.write(block * kBlockBytes + offset, {&byte, 1});
  }
  Result<LogFound> found() {
    return read_log(superblock_, [this](u64 block, MutableBytes into) -> Result<void> {
      image_.read(block * kBlockBytes, into);
      return {};
    });
  }
  void expect(std::size_t records, bool damaged = false, std::optional<bool> unfinished = false) {
    const auto log = found();
    ASSERT_TRUE(log) << log.error().what;
    EXPECT_EQ(log->records.size(), records);
    EXPECT_EQ(log->places.size(), records);
    EXPECT_EQ(log->damaged, damaged);
    if (unfinished) {
      EXPECT_EQ(log->unfinished, *unfinished);
    }
    for (std::size_t i = 0; i < log->records.size(); ++i) EXPECT_EQ(log->records[i].object, i);
    EXPECT_EQ(log->next, (std::array{places_[records], places_[records + 1]}));
  }

  const std::vector<u64> places_ = {2000, 2011, 2005, 2006, 2030, 2031, 2040};
  Superblock superblock_;
  SimImage image_;
  Checksum last_{};
};

TEST_F(FsyncLogChain, chain_is_read_to_its_end) {
  expect(0);
  for (u64 i = 0; i < 4; ++i) {
    add(i);
    expect(i + 1);
  }
  const auto log = found();
  EXPECT_EQ(log->records[2].extents.at(0).run, (BlockRun{3002, 1}));
  EXPECT_EQ(log->records[2].extents.at(0).first_unit, 5U);
  EXPECT_EQ(log->records[2].note, seeded_bytes(2, 20));
}

// The first read of each block, of the log or of data, shows other bytes.
TEST_F(FsyncLogChain, what_is_read_wrongly_once_is_read_again) {
  for (u64 i = 0; i < 3; ++i) add(i);
  std::set<u64> seen;
  const auto log = read_log(superblock_, [&](u64 block, MutableBytes into) -> Result<void> {
    image_.read((seen.insert(block).second ? 1 : block) * kBlockBytes, into);
    return {};
  });
  ASSERT_TRUE(log);
  EXPECT_EQ(log->records.size(), 3U);
  EXPECT_FALSE(log->damaged || log->unfinished);
  EXPECT_TRUE(seen.contains(3002));
}

TEST_F(FsyncLogChain, superblock_without_a_place_has_no_log) {
  add(0);
  superblock_.log_head = {};
  const auto log = found();
  ASSERT_TRUE(log);
  EXPECT_TRUE(log->records.empty() && !log->damaged);
}

TEST_F(FsyncLogChain, what_is_of_another_log_does_not_count) {
  const std::vector<Change> changes = {
      [](LogBlock& block, VolumeId&) { --block.generation; },
      [](LogBlock& block, VolumeId&) { ++block.generation; },
      [](LogBlock& block, VolumeId&) { ++block.sequence; },
      [](LogBlock& block, VolumeId&) { block.root = sum_of(4); },
      [](LogBlock& block, VolumeId&) { block.previous = sum_of(4); },
      [](LogBlock& block, VolumeId&) { block.next[0] = 2001; },
      [](LogBlock&, VolumeId& volume) { volume.fill(std::byte{8}); },
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    SCOPED_TRACE(i);
    last_ = {};
    image_ = {};
    add(0);
    add(1);
    add(2, changes[i]);
    if (i == 5) continue;  // below
    expect(2, false, std::nullopt);
  }
  // A place that differs from what the block before it said is seen when there is a block.
  add(3);
  const auto log = found();
  EXPECT_TRUE(!log || log->records.size() == 2);
}

TEST_F(FsyncLogChain, every_torn_block_ends_it) {
  add(0);
  add(1);
  const SimImage before = image_;
  add(2);
  const SimImage after = image_;
  for (u32 mask = 0; mask < 255; ++mask) {  // not all eight sectors
    std::vector<std::byte> old(kBlockBytes), bytes(kBlockBytes);
    before.read(places_[2] * kBlockBytes, old);
    after.read(places_[2] * kBlockBytes, bytes);
    bool whole = true;
    for (u32 sector = 0; sector < 8; ++sector) {
      if ((mask >> sector & 1) != 0) continue;
      const auto part = std::span(old).subspan(u64{sector} * 512, 512);
      whole = whole && std::ranges::equal(part, std::span(bytes).subspan(u64{sector} * 512, 512));
      std::ranges::copy(part, bytes.begin() + std::ptrdiff_t{512} * sector);
    }
    image_ = after;
    image_.write(places_[2] * kBlockBytes, bytes);
    SCOPED_TRACE(mask);
    // Once its head was written it must not become whole by another write.
    expect(whole ? 3 : 2, false, whole ? false : (mask & 1) != 0);
  }
}

TEST_F(FsyncLogChain, last_blocks_data_must_be_there) {
  add(0);
  add(1);
  spoil(3001);
  expect(1, false, true);
}

TEST_F(FsyncLogChain, data_of_an_acknowledged_block_that_rots_is_its_readers_affair) {
  for (u64 i = 0; i < 3; ++i) add(i);
  spoil(3000);
  spoil(3001);
  expect(3);
}

TEST_F(FsyncLogChain, damage_before_an_acknowledged_block_is_told) {
  for (u64 i = 0; i < 4; ++i) add(i);
  const SimImage whole = image_;
  for (u64 at : {0, 1, 2}) {
    image_ = whole;
    spoil(places_[at]);
    expect(at, true, std::nullopt);
  }
  image_ = whole;
  spoil(places_[3]);  // nobody can tell that from a torn one
  expect(3, false, true);
}

TEST_F(FsyncLogChain, what_cannot_be_read_is_an_error) {
  add(0);
  const auto log = read_log(superblock_, [this](u64 block, MutableBytes into) -> Result<void> {
    if (block == places_[1]) return fail(Errc::io, "bad sector");
    image_.read(block * kBlockBytes, into);
    return {};
  });
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, Errc::io);
}

TEST(FsyncLogFormat, records_are_decoded_as_they_were_encoded_and_no_part_of_them_is) {
  std::vector<std::byte> bytes;
  LogRecord one = {256, 300, {}, seeded_bytes(1, 120)};
  one.extents.push_back({{77, 3}, 1, 0, std::vector<std::byte>(34, std::byte{1}), {1, 2, 3}});
  one.extents.push_back({{99, 200}, 1, 7, {}, std::vector<u32>(200, 5)});
  encode_log_record(one, bytes);
  const auto records = decode_log_records(bytes, 1);
  ASSERT_TRUE(records);
  const LogRecord& back = records->at(0);
  EXPECT_EQ(back.note, one.note);
  ASSERT_EQ(back.extents.size(), 3U);  // one of 200 blocks is two records
  EXPECT_EQ(back.extents[1].run, (BlockRun{99, 128}));
  EXPECT_EQ(back.extents[2].run, (BlockRun{227, 72}));
  EXPECT_EQ(back.extents[2].first_unit, 135U);
  EXPECT_EQ(back.extents[0].checksums, one.extents[0].checksums);
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(decode_log_records(Bytes(bytes).first(size), 1)) << size;
  EXPECT_FALSE(decode_log_records(bytes, 2));
  EXPECT_FALSE(decode_log_records({}, 0));
}

TEST(FsyncLogFormat, create_has_no_extents_and_an_insert_has) {
  std::vector<std::byte> bytes;
  const LogRecord create = {256, 300, {}, seeded_bytes(2, 150), LogKind::create};
  encode_log_record(create, bytes);
  const auto records = decode_log_records(bytes, 1);
  ASSERT_TRUE(records);
  EXPECT_EQ(records->at(0).kind, LogKind::create);
  EXPECT_EQ(records->at(0).note, create.note);
  const auto spoiled = [&](std::size_t at, u8 value) {
    std::vector<std::byte> other = bytes;
    other.at(at) = std::byte{value};
    return decode_log_records(other, 1).has_value();
  };
  EXPECT_FALSE(spoiled(offsetof(LogRecordDisk, kind), 0));
  EXPECT_FALSE(spoiled(offsetof(LogRecordDisk, kind), 2));
  EXPECT_FALSE(spoiled(offsetof(LogRecordDisk, extents), 1));
  EXPECT_FALSE(spoiled(offsetof(LogRecordDisk, reserved), 1));
}

}  // namespace
}  // namespace latchkey::tests
