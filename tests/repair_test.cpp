// Goal: a repair mends what can be derived, changes nothing where it cannot, does nothing twice,
// and may be cut off anywhere. Method: damage made in a SimDevice; afterwards check, the files, and
// the space are as before.

#include <algorithm>
#include <cstring>
#include <map>

#include "engine/format.h"
#include "engine/free_space_format.h"
#include "engine/slot_map.h"
#include "engine/superblock.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using engine::kBlockBytes;
using namespace volume;  // NOLINT: the whole file is about it

class Repair : public VolumeTest {
 protected:
  static constexpr u32 kFiles = 400;

  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
    vault();
    for (u32 i = 0; i < kFiles; ++i) put("/vault/" + std::to_string(i), text_of(i));
    ASSERT_TRUE(volume_->sync());
    for (u32 i = 0; i < kFiles; i += 7)
      ASSERT_TRUE(volume_->unlink(*resolve(*volume_, "/vault"), std::to_string(i)));
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    used_ = used_blocks();
  }
  void TearDown() override { EXPECT_FALSE(volume_); }

  static std::string text_of(u32 i) {
    return std::string(1 + i * 37, static_cast<char>('a' + i % 26));
  }

  u64 used_blocks() {
    options_.read_only = true;
    open_again();
    options_.read_only = false;
    const u64 used = volume_->facts().space.blocks_used;
    volume_.reset();
    return used;
  }
  std::vector<u64> blocks_with(const char* magic) {
    std::vector<u64> blocks;
    for (u64 block = 0; block < device_.info().size_bytes / kBlockBytes; ++block) {
      std::array<std::byte, 8> bytes;
      device_.peek(block * kBlockBytes, bytes);
      if (std::memcmp(bytes.data(), magic, std::strlen(magic)) == 0) blocks.push_back(block);
    }
    return blocks;
  }
  std::vector<engine::Finding> findings() {
    auto check = check_volume(device_, {.data = true, .progress = {}}, system_env());
    EXPECT_TRUE(check) << check.error().what;
    return check ? check->findings : std::vector<engine::Finding>{{"cannot be opened", "", false}};
  }
  Result<RepairFindings> repair() { return repair_volume(device_, system_env()); }
  // Twice: the second finds nothing to do and writes nothing.
  void expect_repaired() {
    auto first = repair();
    ASSERT_TRUE(first) << first.error().what;
    EXPECT_FALSE(first->mended.empty());
    for (const engine::Finding& finding : findings())
      ADD_FAILURE() << finding.what << finding.where;
    const u64 writes = device_.counters().writes;
    auto second = repair();
    ASSERT_TRUE(second) << second.error().what;
    EXPECT_TRUE(second->mended.empty());
    EXPECT_EQ(device_.counters().writes, writes);
    expect_all_there();
  }
  // Files, the space that they take, and that it goes on.
  void expect_all_there() {
    EXPECT_EQ(used_blocks(), used_);
    open_again();
    add_key();
    for (u32 i = 0; i < kFiles; ++i) {
      if (i % 7 != 0) {
        ASSERT_EQ(content("/vault/" + std::to_string(i)), text_of(i));
      }
    }
    put("/vault/new", "text");
    ASSERT_TRUE(volume_->sync());
    ASSERT_TRUE(volume_->unlink(*resolve(*volume_, "/vault"), "new"));
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    EXPECT_TRUE(findings().empty());
  }
  // Changes the bit of `block` in every bitmap and makes its checksum right.
  void set_bit(u64 block, bool used) {
    for (const u64 slot : blocks_with("lkbitmap")) {
      std::vector<std::byte> bytes(kBlockBytes);
      device_.peek(slot * kBlockBytes, bytes);
      auto header = load_disk<engine::BitmapSlotDisk>(bytes);
      const u64 bit = block % engine::kRegionBlocks;
      const std::byte mask{static_cast<u8>(1U << (bit % 8))};
      std::byte& byte = bytes[engine::kBitmapHeaderBytes + bit / 8];
      if (((byte & mask) != std::byte{}) == used) continue;
      byte ^= mask;
      header.used_count = header.used_count + (used ? 1U : ~u32{0});
      store_disk(bytes, header);
      header.checksum = engine::block_checksum(bytes, offsetof(engine::BitmapSlotDisk, checksum));
      store_disk(bytes, header);
      device_.overwrite(slot * kBlockBytes, bytes);
    }
  }
  // What every copy says, with its checksum right.
  void change_superblocks(const std::function<void(engine::Superblock&)>& change) {
    auto io = device_.make_io({});
    ASSERT_TRUE(io);
    const u64 size = device_.info().size_bytes;
    const auto scan = engine::scan_superblocks(**io, size);
    ASSERT_TRUE(scan);
    for (u32 place = 0; place < 4; ++place) {
      ASSERT_TRUE(scan->copies[place].superblock);
      engine::Superblock superblock = *scan->copies[place].superblock;
      change(superblock);
      const auto disk = engine::encode_superblock(superblock, place);
      device_.overwrite(engine::superblock_place(place, size) * kBlockBytes,
                        std::as_bytes(std::span(&disk, 1)));
    }
  }
  u64 data_block() {
    open_again();
    add_key();
    const HandleId handle = open("/vault/20", {});
    const u64 block = volume_->map(handle)->front().device_offset / kBlockBytes;
    close(handle);
    EXPECT_TRUE(volume_->close());
    volume_.reset();
    return block;
  }
  u64 used_ = 0;
};

TEST_F(Repair, of_a_sound_store_does_nothing) {
  const u64 writes = device_.counters().writes;
  auto repaired = repair();
  ASSERT_TRUE(repaired);
  EXPECT_TRUE(repaired->mended.empty());
  EXPECT_EQ(device_.counters().writes, writes);
  expect_all_there();
}

TEST_F(Repair, writes_bitmaps_anew) {
  for (const u64 slot : blocks_with("lkbitmap")) device_.rot(slot * kBlockBytes + 1000, 8, slot);
  EXPECT_FALSE(findings().empty());
  expect_repaired();
}

TEST_F(Repair, writes_slot_maps_anew) {
  for (const u64 map : blocks_with("lksltmap")) device_.rot(map * kBlockBytes + 100, 8, map);
  EXPECT_FALSE(Volume::open(device_, options_, system_env()));
  EXPECT_FALSE(findings().empty());
  expect_repaired();
}

// What the newest bitmap's slot held before verifies by itself, and calls used blocks free.
TEST_F(Repair, writes_anew_a_bitmap_whose_last_write_was_lost) {
  const auto bitmaps = [&] {
    std::map<u64, std::vector<std::byte>> found;
    for (const u64 slot : blocks_with("lkbitmap"))
      device_.peek(slot * kBlockBytes, found.try_emplace(slot, kBlockBytes).first->second);
    return found;
  };
  const auto generation_of = [](const std::vector<std::byte>& image) -> u64 {
    return load_disk<engine::BitmapSlotDisk>(image).generation;
  };
  open_again();
  add_key();
  std::map<u64, std::vector<std::byte>> before;
  for (u32 i = 0; i < 4; ++i) {
    before = bitmaps();
    put("/vault/more", text_of(i));
    ASSERT_TRUE(volume_->sync());
  }
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  used_ = used_blocks();
  const auto after = bitmaps();
  const auto [newest, image] = *std::ranges::max_element(
      after, {}, [&](const auto& bitmap) { return generation_of(bitmap.second); });
  ASSERT_TRUE(before.contains(newest));
  ASSERT_LT(generation_of(before[newest]), generation_of(image));
  device_.overwrite(newest * kBlockBytes, before[newest]);

  const auto found = findings();
  EXPECT_TRUE(std::ranges::any_of(found, [](const engine::Finding& finding) {
    return finding.what == "a bitmap is not the one that the slot map means";
  }));
  expect_repaired();
}

TEST_F(Repair, gives_back_a_block_that_nobody_refers_to) {
  set_bit(20000, true);
  EXPECT_FALSE(findings().empty());
  expect_repaired();
}

// The worst kind: the next writer would overwrite it.
TEST_F(Repair, takes_a_block_in_use_out_of_free_space) {
  set_bit(data_block(), false);
  EXPECT_FALSE(findings().empty());
  expect_repaired();
}

TEST_F(Repair, writes_places_of_nodes_from_their_twins) {
  for (const u64 block : blocks_with("LKND")) {
    std::array<std::byte, sizeof(engine::NodeHeader)> bytes;
    device_.peek(block * kBlockBytes, bytes);
    if (load_disk<engine::NodeHeader>(bytes).place == block)
      device_.rot(block * kBlockBytes + 200, 8, block);
  }
  EXPECT_FALSE(findings().empty());
  expect_repaired();
}

TEST_F(Repair, counts_nodes_anew) {
  for (const u64 wrong : {u64{0}, u64{3}, u64{1} << 40}) {
    change_superblocks([&](engine::Superblock& superblock) { superblock.node_count = wrong; });
    EXPECT_FALSE(findings().empty());
    expect_repaired();
    change_superblocks([&](engine::Superblock& superblock) {
      superblock.extent_node_count = superblock.node_count - 1;
    });
    EXPECT_FALSE(findings().empty());
    expect_repaired();
  }
}

// With a node lost nobody knows which blocks it referred to: the bitmaps stay as they are.
TEST_F(Repair, leaves_free_space_alone_where_a_node_is_lost) {
  for (const u64 block : blocks_with("LKND")) {
    std::array<std::byte, sizeof(engine::NodeHeader)> bytes;
    device_.peek(block * kBlockBytes, bytes);
    const auto header = load_disk<engine::NodeHeader>(bytes);
    if (header.tree == engine::kExtentTree && header.level == 0)
      device_.rot(block * kBlockBytes + 200, 8, block);
  }
  for (const u64 slot : blocks_with("lkbitmap")) device_.rot(slot * kBlockBytes + 1000, 8, slot);
  const u64 writes = device_.counters().writes;
  auto repaired = repair();
  ASSERT_TRUE(repaired);
  EXPECT_TRUE(repaired->mended.empty());
  EXPECT_EQ(device_.counters().writes, writes);
}

TEST_F(Repair, goes_on_after_a_crash_anywhere) {
  for (const u64 map : blocks_with("lksltmap")) device_.rot(map * kBlockBytes + 100, 8, map);
  for (const u64 block : blocks_with("LKND")) {
    std::array<std::byte, sizeof(engine::NodeHeader)> bytes;
    device_.peek(block * kBlockBytes, bytes);
    if (load_disk<engine::NodeHeader>(bytes).place != block)
      device_.rot(block * kBlockBytes + 200, 8, block);
  }
  const SimImage damaged = device_.snapshot();
  bool finished = false;
  for (u64 cut = 0; !finished; ++cut) {
    ASSERT_LT(cut, 2000U);
    device_.restore(damaged);
    device_.cut_after(cut);
    finished = repair().has_value() && !device_.power_off();
    device_.crash(cut);
    device_.clear_faults();
    auto repaired = repair();
    ASSERT_TRUE(repaired) << cut << ": " << repaired.error().what;
    for (const engine::Finding& finding : findings())
      ADD_FAILURE() << cut << ": " << finding.what << " " << finding.where;
  }
  expect_all_there();
}

}  // namespace
}  // namespace latchkey::tests
