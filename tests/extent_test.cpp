// extent/: contexts and map records against malformed bytes, punch and replace against an array
// with one cell for each block of the file, seal and open against known answers and against
// crypto/.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "base/checksum.h"
#include "base/hex.h"
#include "base/secret.h"
#include "crypto/hkdf.h"
#include "extent/context.h"
#include "extent/map.h"
#include "extent/seal.h"
#include "tests/support/seed.h"

namespace latchkey::extent {
namespace {

template <class T>
Bytes bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

Context example_context() {
  Context context;
  EXPECT_TRUE(from_hex("8699c2c53707405da5aba5ae4d8583c0", context.key_id.bytes));
  EXPECT_TRUE(from_hex("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", context.nonce.bytes));
  return context;
}

TEST(ExtentContext, bytes_equal_the_34_bytes_of_the_btrfs_series) {
  // fscrypt_extent_context of btrfs series v6/v7: version, mode, identifier, nonce.
  EXPECT_EQ(to_hex(bytes_of(encode(example_context()))),
            "01018699c2c53707405da5aba5ae4d8583c0a0a1a2a3a4a5a6a7a8a9aaabacadaeaf");
}

TEST(ExtentContext, round_trip) {
  const ContextDisk disk = encode(example_context());
  const auto back = decode_context(bytes_of(disk));
  ASSERT_TRUE(back.has_value() && back->has_value());
  EXPECT_EQ(**back, example_context());
}

TEST(ExtentContext, empty_is_a_clear_extent) {
  const auto clear = decode_context({});
  ASSERT_TRUE(clear.has_value());
  EXPECT_FALSE(clear->has_value());
}

TEST(ExtentContext, malformed_bytes_are_refused) {
  const ContextDisk good = encode(example_context());
  std::vector<std::byte> bytes(40);
  store_disk(bytes, good);
  for (std::size_t size = 1; size <= bytes.size(); ++size) {
    const auto result = decode_context(Bytes(bytes).first(size));
    EXPECT_EQ(result.has_value(), size == sizeof good) << size;
    if (!result) {
      EXPECT_EQ(result.error().code, Errc::malformed);
    }
  }
  for (int value = 0; value < 256; ++value) {
    ContextDisk bad = good;
    bad.version = static_cast<u8>(value);
    EXPECT_EQ(decode_context(bytes_of(bad)).has_value(), value == 1) << value;
    bad = good;
    bad.mode = static_cast<u8>(value);
    EXPECT_EQ(decode_context(bytes_of(bad)).has_value(), value == 1) << value;
  }
}

TEST(MapRecord, round_trip_and_bytes) {
  const MapEntry entry{.file_block = 5, .disk_block = 0x0102030405, .blocks = 7};
  const MapDisk disk = encode(entry);
  EXPECT_EQ(to_hex(bytes_of(disk)), "05040302010000000700000000000000");
  const auto back = decode_map(5 * 4096, bytes_of(disk));
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(*back, entry);
}

TEST(MapRecord, malformed_records_are_refused) {
  constexpr u64 kBlocksMax = u64{1} << 51;
  struct Case {
    u64 offset;
    u64 disk_block;
    u32 blocks;
    u32 flags;
    bool good;
  };
  const Case cases[] = {
      {0, 0, 1, 0, true},
      {4096, 9, 0, 0, false},
      {4095, 9, 1, 0, false},
      {1, 9, 1, 0, false},
      {4096, 9, 1, 1, true},
      {4096, ~u64{0}, 1, 1, true},  // a promise names a tree
      {4096, 9, 1, 2, false},
      {4096, 9, 1, 3, false},
      {4096, 9, 1, 0x80000000u, false},
      {(kBlocksMax - 1) * 4096, 9, 1, 0, true},
      {(kBlocksMax - 1) * 4096, 9, 2, 0, false},
      {~u64{4095}, 9, 1, 0, false},
      {0, kBlocksMax - 1, 1, 0, true},
      {0, kBlocksMax - 1, 2, 0, false},
      {0, ~u64{0}, 1, 0, false},
  };
  for (const Case& c : cases) {
    const MapDisk disk{c.disk_block, c.blocks, c.flags};
    const auto result = decode_map(c.offset, bytes_of(disk));
    EXPECT_EQ(result.has_value(), c.good) << c.offset << " " << c.disk_block << " " << c.blocks;
    if (!result) {
      EXPECT_EQ(result.error().code, Errc::malformed);
    }
  }
  const MapDisk good{9, 1, 0};
  for (std::size_t size = 0; size < sizeof good; ++size)
    EXPECT_FALSE(decode_map(0, bytes_of(good).first(size)).has_value());
  const std::array<std::byte, 17> longer{};
  EXPECT_FALSE(decode_map(0, longer).has_value());
}

// A file as an array: cell b is the disk block of file block b, 0 a hole. Beside it the records as
// a tree would hold them, changed by the edits only.
class MapModel {
 public:
  static constexpr u64 kBlocks = 96;

  explicit MapModel(u64 seed) : random_(seed), cells_(kBlocks, 0) {}

  void step() {
    FileRange range{pick(kBlocks), 0};
    range.blocks = pick(kBlocks - range.first_block + 1);
    const std::vector<MapEntry> fresh = pick(3) == 0 ? std::vector<MapEntry>() : entries(range);
    // A caller may also hand over neighbours that only end where the range begins.
    const u64 slack = pick(2);
    const std::vector<MapEntry> before = touching(range, slack);
    apply(fresh.empty() ? punch(before, range) : replace(before, range, fresh), range);
    for (u64 b = range.first_block; b < range.end(); ++b) cells_[b] = 0;
    for (const MapEntry& e : fresh)
      for (u32 i = 0; i < e.blocks; ++i) cells_[e.file_block + i] = e.disk_block + i;
    compare();
  }

 private:
  u64 pick(u64 limit) { return std::uniform_int_distribution<u64>(0, limit - 1)(random_); }

  std::vector<MapEntry> entries(FileRange range) {
    std::vector<MapEntry> fresh;
    u64 at = range.first_block;
    while (at < range.end()) {
      at += pick(4) == 0 ? pick(range.end() - at + 1) : 0;
      if (at >= range.end()) break;
      const u32 blocks = static_cast<u32>(1 + pick(std::min<u64>(range.end() - at, 12)));
      fresh.push_back({at, next_disk_block_, blocks});
      next_disk_block_ += blocks + pick(2);
      at += blocks;
    }
    return fresh;
  }

  std::vector<MapEntry> touching(FileRange range, u64 slack) const {
    std::vector<MapEntry> found;
    for (const auto& [key, entry] : records_)
      if (entry.file_end() + slack > range.first_block && entry.file_block < range.end() + slack)
        found.push_back(entry);
    return found;
  }

  void apply(const MapEdit& edit, FileRange range) {
    for (u64 key : edit.erase) {
      EXPECT_EQ(records_.erase(key), 1u);
      for (const MapEntry& e : edit.put) EXPECT_NE(e.file_block, key);
    }
    for (const MapEntry& e : edit.put) records_[e.file_block] = e;
    std::vector<u64> gone;
    for (const DiskRun& run : edit.release)
      for (u32 i = 0; i < run.blocks; ++i) gone.push_back(run.block + i);
    std::vector<u64> expected;
    for (u64 b = range.first_block; b < range.end(); ++b)
      if (cells_[b] != 0) expected.push_back(cells_[b]);
    EXPECT_EQ(gone, expected);
  }

  void compare() const {
    std::vector<u64> seen(kBlocks, 0);
    u64 end = 0;
    for (const auto& [key, e] : records_) {
      EXPECT_EQ(key, e.file_block);
      EXPECT_GE(e.file_block, end) << "records overlap";
      EXPECT_GT(e.blocks, 0u);
      end = e.file_end();
      ASSERT_LE(end, kBlocks);
      for (u32 i = 0; i < e.blocks; ++i) seen[e.file_block + i] = e.disk_block + i;
    }
    EXPECT_EQ(seen, cells_);
  }

  std::mt19937_64 random_;
  std::vector<u64> cells_;
  std::map<u64, MapEntry> records_;
  u64 next_disk_block_ = 1000;
};

TEST(Map, punch_and_replace_agree_with_an_array_of_blocks) {
  for (const u64 seed : tests::seeds(200)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    MapModel model(seed);
    for (int i = 0; i < 60; ++i) model.step();
    if (testing::Test::HasFailure()) return;
  }
}

TEST(Map, punch_in_the_middle_cuts_an_entry_in_two) {
  const MapEdit edit = punch({{10, 500, 10}}, {13, 4});
  EXPECT_TRUE(edit.erase.empty());
  EXPECT_EQ(edit.put, (std::vector<MapEntry>{{10, 500, 3}, {17, 507, 3}}));
  EXPECT_EQ(edit.release, (std::vector<DiskRun>{{503, 4}}));
}

TEST(Map, a_promise_is_cut_as_data_is_and_frees_no_block) {
  const MapEntry promise{.file_block = 10, .disk_block = 256, .blocks = 10, .promised = true};
  const MapEdit edit = replace({promise}, {13, 4}, {{14, 500, 2}});
  EXPECT_EQ(edit.put,
            (std::vector<MapEntry>{{10, 256, 3, true}, {17, 256, 3, true}, {14, 500, 2}}));
  EXPECT_TRUE(edit.release.empty());
  EXPECT_EQ(edit.ended, (std::vector<EndedPromise>{{256, 4}}));
  const auto back = decode_map(10 * 4096, bytes_of(encode(promise)));
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, promise);
}

TEST(Map, an_empty_range_changes_nothing) {
  const MapEdit edit = punch({{10, 500, 10}}, {13, 0});
  EXPECT_TRUE(edit.erase.empty() && edit.put.empty() && edit.release.empty());
}

TEST(MapDeathTest, entries_out_of_order_or_outside_the_range_stop_the_process) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(punch({{10, 500, 10}, {15, 600, 2}}, {0, 40}), "entry.file_block >= previous_end");
  EXPECT_DEATH(replace({}, {10, 5}, {{14, 500, 2}}), "range.end");
}

class Seal : public testing::Test {
 protected:
  // The extent key of fscrypt-facts' known answers: master 00..3f, nonce a0..af.
  void SetUp() override {
    auto master = SecretBytes::create(64);
    auto state = Secret<crypto::HkdfState>::create();
    auto key = Secret<crypto::XtsKey>::create();
    ASSERT_TRUE(master && state && key);
    for (int i = 0; i < 64; ++i) master->bytes()[i] = std::byte(i);
    crypto::hkdf_extract(master->bytes(), **state);
    crypto::derive_extent_key(**state, example_context().nonce, **key);
    key_ = std::move(*key);
    for (std::size_t i = 0; i < plain_.size(); ++i) plain_[i] = std::byte((7 * i + 3) & 255);
  }

  Bytes block(u64 index) const { return Bytes(plain_).subspan(index * kBlockBytes, kBlockBytes); }

  Secret<crypto::XtsKey> key_;
  std::vector<std::byte> plain_ = std::vector<std::byte>(4 * kBlockBytes);
};

TEST_F(Seal, known_answers_of_units_0_and_1) {
  std::vector<std::byte> sealed(2 * kBlockBytes);
  std::array<u32, 2> checksums{};
  seal_blocks(*key_, 0, std::array{block(0).data(), block(1).data()}, sealed, checksums);
  const auto target = MutableBytes(sealed);
  EXPECT_EQ(to_hex(target.first(16)), "2b660ca38b088d51b3336c86d3fa41fe");
  EXPECT_EQ(to_hex(target.subspan(kBlockBytes, 16)), "42f92676fb37fb5c30a8c12b269508e1");
  EXPECT_EQ(checksums[0], crc32c(target.first(kBlockBytes)));
  EXPECT_EQ(checksums[1], crc32c(target.subspan(kBlockBytes)));
}

TEST_F(Seal, blocks_from_anywhere_equal_one_run_of_the_cipher) {
  // In an order of their own, one of them twice.
  const std::vector<u64> order{3, 0, 2, 2, 1, 3, 0};
  std::vector<const std::byte*> blocks;
  std::vector<std::byte> joined;
  for (const u64 index : order) {
    blocks.push_back(block(index).data());
    joined.insert(joined.end(), block(index).begin(), block(index).end());
  }
  for (const u64 first_unit : {u64{0}, u64{5}, (u64{1} << 32) - 2, ~u64{0} - 3}) {
    std::vector<std::byte> run(joined.size()), apart(joined.size()), opened(joined.size());
    std::vector<u32> checksums(order.size());
    crypto::xts_seal(*key_, {first_unit, kBlockBytes}, joined, run);
    seal_blocks(*key_, first_unit, blocks, apart, checksums);
    EXPECT_EQ(apart, run) << first_unit;
    EXPECT_NE(apart, joined);
    EXPECT_EQ(first_mismatch(apart, checksums), -1);
    open_blocks(*key_, first_unit, apart, opened);
    EXPECT_EQ(opened, joined);
    open_blocks(*key_, first_unit, apart, apart);  // in place
    EXPECT_EQ(apart, joined);
  }
}

TEST_F(Seal, clear_extents_take_the_same_path_with_a_copy) {
  std::vector<std::byte> target(2 * kBlockBytes);
  std::array<u32, 2> checksums{};
  copy_blocks(std::array{block(1).data(), block(3).data()}, target, checksums);
  EXPECT_EQ(checksums, (std::array{crc32c(block(1)), crc32c(block(3))}));
  EXPECT_TRUE(std::ranges::equal(MutableBytes(target).first(kBlockBytes), block(1)));
  EXPECT_TRUE(std::ranges::equal(MutableBytes(target).subspan(kBlockBytes), block(3)));
}

TEST_F(Seal, the_first_block_that_does_not_match_is_named) {
  std::vector<u32> checksums;
  for (u64 i = 0; i < 4; ++i) checksums.push_back(crc32c(block(i)));
  EXPECT_EQ(first_mismatch(plain_, checksums), -1);
  EXPECT_EQ(first_mismatch({}, {}), -1);
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    const u64 at = random() % plain_.size();
    const auto bit = std::byte(1u << (random() % 8));
    plain_[at] ^= bit;
    EXPECT_EQ(first_mismatch(plain_, checksums), static_cast<i64>(at / kBlockBytes)) << at;
    plain_[at] ^= bit;
  }
  plain_[3 * kBlockBytes] ^= std::byte{1};
  plain_[2 * kBlockBytes] ^= std::byte{1};
  EXPECT_EQ(first_mismatch(plain_, checksums), 2);
}

}  // namespace
}  // namespace latchkey::extent
