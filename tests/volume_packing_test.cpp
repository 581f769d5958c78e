// Goal: what S2 of the design says of extents: small dirty ranges of a file leave together under
// one key, extents of several files lie side by side each under its own, and blocks die one by one.
// Method: a volume on a SimDevice; Volume::map() says where each block lies and under which nonce.

#include <algorithm>
#include <map>
#include <set>

#include "tests/support/hook_device.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using volume::HandleId;
using volume::MapRow;

constexpr u64 kPage = 4096;

class VolumePacking : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;  // what is dirty stays dirty until the sync
    VolumeTest::SetUp();
    vault();
  }
  void write(HandleId handle, u64 page, u64 pages, char fill) {
    const std::string bytes(pages * kPage, fill);
    ASSERT_TRUE(volume_->write(handle, page * kPage, bytes_of(bytes)));
  }
  std::vector<MapRow> map(HandleId handle) {
    auto rows = volume_->map(handle);
    EXPECT_TRUE(rows);
    return rows ? *rows : std::vector<MapRow>{};
  }
  u64 sealed() { return volume_->facts().extents_sealed; }
};

TEST_F(VolumePacking, small_dirty_ranges_of_a_file_leave_in_one_extent) {
  const HandleId file = open("/vault/file");
  write(file, 0, 64, 'a');
  EXPECT_TRUE(volume_->fsync(file));
  const u64 before = sealed();
  for (u64 page = 1; page < 64; page += 4) write(file, page, 1 + page % 2, 'b');
  EXPECT_TRUE(volume_->fsync(file));
  EXPECT_EQ(sealed(), before + 1);
  std::set<crypto::Nonce> nonces;
  std::map<u64, u64> pieces;  // units by device offset
  for (const MapRow& row : map(file)) {
    if (row.file_offset / kPage % 4 != 1) continue;
    nonces.insert(row.nonce);
    pieces[row.device_offset] = row.first_unit;
  }
  EXPECT_EQ(nonces.size(), 1U);
  ASSERT_EQ(pieces.size(), 16U);
  for (const auto& [offset, unit] : pieces)  // one run of blocks, a tweak for each
    EXPECT_EQ(offset, pieces.begin()->first + unit * kPage);
  close(file);
}

TEST_F(VolumePacking, extents_of_several_files_lie_side_by_side) {
  std::vector<HandleId> files;
  for (int i = 0; i < 8; ++i) {
    files.push_back(open("/vault/" + std::to_string(i)));
    write(files.back(), 0, 4, 'a');
  }
  const u64 before = sealed();
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(sealed(), before + 8);
  std::set<crypto::Nonce> nonces;
  std::set<u64> offsets;
  for (const HandleId file : files) {
    const auto rows = map(file);
    ASSERT_EQ(rows.size(), 1U);
    EXPECT_EQ(rows[0].first_unit, 0U);
    nonces.insert(rows[0].nonce);
    offsets.insert(rows[0].device_offset);
    close(file);
  }
  EXPECT_EQ(nonces.size(), 8U);
  ASSERT_EQ(offsets.size(), 8U);
  EXPECT_EQ(*offsets.rbegin() - *offsets.begin(), 7 * 4 * kPage);
}

TEST_F(VolumePacking, and_leave_in_one_write) {
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  HookDevice hooked(device_);
  auto opened = volume::Volume::open(hooked, options_, system_env());
  ASSERT_TRUE(opened);
  volume_ = std::move(*opened);
  add_key();
  std::vector<HandleId> files;
  for (int i = 0; i < 8; ++i) {
    files.push_back(open("/vault/" + std::to_string(i)));
    write(files.back(), 0, 4, 'a');
  }
  std::map<u64, u64> writes;  // sizes by device offset
  hooked.hook = [&](const engine::Op& op) {
    if (op.kind == engine::OpKind::write) writes[op.offset] = op.data.size();
  };
  ASSERT_TRUE(volume_->sync());
  hooked.hook = nullptr;
  u64 first = ~u64{0};
  for (const HandleId file : files) first = std::min(first, map(file).front().device_offset);
  ASSERT_TRUE(writes.contains(first));
  EXPECT_EQ(writes[first], 8 * 4 * kPage);
  for (const HandleId file : files) close(file);
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  expect_clean();
}

TEST_F(VolumePacking, one_block_of_an_extent_dies_alone) {
  const HandleId file = open("/vault/file");
  write(file, 0, 32, 'a');
  EXPECT_TRUE(volume_->fsync(file));
  const auto whole = map(file);
  ASSERT_EQ(whole.size(), 1U);
  write(file, 5, 1, 'b');
  EXPECT_TRUE(volume_->fsync(file));
  const auto rows = map(file);
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].device_offset, whole[0].device_offset);
  EXPECT_EQ(rows[0].length, 5 * kPage);
  EXPECT_EQ(rows[0].first_unit, 0U);
  EXPECT_EQ(rows[0].nonce, whole[0].nonce);
  EXPECT_NE(rows[1].nonce, whole[0].nonce);
  EXPECT_EQ(rows[1].first_unit, 0U);
  EXPECT_EQ(rows[2].device_offset, whole[0].device_offset + 6 * kPage);
  EXPECT_EQ(rows[2].first_unit, 6U);
  EXPECT_EQ(rows[2].nonce, whole[0].nonce);
  close(file);
  std::string expected(32 * kPage, 'a');
  expected.replace(5 * kPage, kPage, kPage, 'b');
  reopen();
  add_key();
  EXPECT_EQ(content("/vault/file"), expected);
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  const auto check = volume::check_volume(device_, {}, system_env());
  ASSERT_TRUE(check);
  EXPECT_TRUE(check->findings.empty());
  EXPECT_EQ(check->data_blocks, 32U);  // the dead one is free again
  EXPECT_EQ(check->extents, 3U);
  // A part may die whose halves are shared: the clone keeps it alive.
  open_again();
  add_key();
  const HandleId from = open("/vault/file", {.write = true});
  const HandleId to = open("/vault/clone");
  ASSERT_TRUE(volume_->clone_range(from, 0, to, 0, 10 * kPage));
  write(from, 0, 8, 'c');
  EXPECT_TRUE(volume_->fsync(from));
  EXPECT_EQ(content(to), expected.substr(0, 10 * kPage));
  close(from);
  close(to);
}

}  // namespace
}  // namespace latchkey::tests
