// Goal: what a promise of space is where subvolumes share their maps: one file's, in one subvolume.
// A snapshot has a hole there, nobody's promise ends twice or stays behind, and a read-only
// snapshot is not changed by any call on a file's space. A nearly full store with many snapshots
// still takes what fits. Method: a volume on a SimDevice, checked offline when each test ends;
// promises that are counted wrong are put into the records by hand, and a repair counts them anew.

#include "engine/format.h"
#include "engine/slot_map.h"
#include "engine/superblock.h"
#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr u64 kPage = 4096;
constexpr u64 kNone = ~u64{0};

class VolumePromise : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
  }
  void write(HandleId handle, u64 offset, u64 size, char fill = 'x') {
    const auto wrote = volume_->write(handle, offset, bytes_of(std::string(size, fill)));
    ASSERT_TRUE(wrote) << wrote.error().what;
  }
  InodeId snapshot(std::string_view name, bool read_only = false) {
    const auto made = volume_->snapshot(kUser, kRootInode, kRootInode, name, read_only);
    EXPECT_TRUE(made) << made.error().what;
    return made.value_or(InodeId{});
  }
  void flush() {
    const auto synced = volume_->sync();
    ASSERT_TRUE(synced) << synced.error().what;
  }
  u64 promised() { return volume_->facts().space.blocks_promised; }
  u64 blocks(HandleId handle) { return volume_->stat(handle)->blocks; }
  u64 seek(HandleId handle, u64 offset, Seek what) {
    const auto found = volume_->seek(handle, offset, what);
    EXPECT_TRUE(found) << found.error().what;
    return found ? found->value_or(kNone) : kNone;
  }
};

TEST_F(VolumePromise, is_a_hole_in_a_snapshot) {
  vault();
  const HandleId file = open("/vault/file");
  ASSERT_TRUE(volume_->allocate(file, 0, 100 * kPage));
  write(file, 0, 10 * kPage, 'a');
  write(file, 20 * kPage, kPage, 'b');  // drawn, and dirty when the snapshot is made
  snapshot("then");
  EXPECT_EQ(promised(), 89U);
  const HandleId then = open("/then/vault/file", {.write = true});
  EXPECT_EQ(blocks(file), 100U);
  EXPECT_EQ(blocks(then), 11U);
  EXPECT_EQ(seek(then, 10 * kPage, Seek::data), 20 * kPage);
  EXPECT_EQ(content(then), content(file));
  // Data in the hole, in place of the record that it has from the other: no promise ends by that.
  write(then, 40 * kPage, 20 * kPage, 'c');
  flush();
  EXPECT_EQ(promised(), 89U);
  EXPECT_EQ(blocks(then), 31U);
  ASSERT_TRUE(volume_->punch(then, 70 * kPage, 10 * kPage));
  ASSERT_TRUE(volume_->truncate(then, 90 * kPage));
  EXPECT_EQ(promised(), 89U);
  // One of its own is another.
  ASSERT_TRUE(volume_->allocate(then, 60 * kPage, 30 * kPage));
  EXPECT_EQ(promised(), 89U + 30);
  EXPECT_EQ(blocks(then), 61U);
  write(file, 0, 100 * kPage, 'd');
  flush();
  EXPECT_EQ(promised(), 30U);
  EXPECT_EQ(content(file), std::string(100 * kPage, 'd'));
  close(file);
  close(then);
  reopen();
  add_key();
  EXPECT_EQ(promised(), 30U);
  std::string expected(90 * kPage, '\0');
  expected.replace(0, 10 * kPage, 10 * kPage, 'a');
  expected.replace(20 * kPage, kPage, kPage, 'b');
  expected.replace(40 * kPage, 20 * kPage, 20 * kPage, 'c');
  EXPECT_EQ(content("/then/vault/file"), expected);
}

TEST_F(VolumePromise, goes_with_the_subvolume_that_made_it) {
  const auto live = volume_->create_subvolume(kUser, kRootInode, "live", 0755);
  ASSERT_TRUE(live);
  const HandleId file = open("/live/file");
  ASSERT_TRUE(volume_->allocate(file, 0, 200 * kPage));
  write(file, 0, 50 * kPage, 'a');
  close(file);
  ASSERT_TRUE(volume_->snapshot(kUser, *live, kRootInode, "copy", false));
  const HandleId copy = open("/copy/file", {.write = true});
  ASSERT_TRUE(volume_->allocate(copy, 0, 60 * kPage));
  EXPECT_EQ(promised(), 150U + 10);
  close(copy);
  ASSERT_TRUE(volume_->remove_subvolume(kRootInode, "live"));
  ASSERT_TRUE(volume_->finish_removals());
  EXPECT_EQ(promised(), 10U);
  EXPECT_EQ(content("/copy/file"), std::string(50 * kPage, 'a') + std::string(150 * kPage, '\0'));
  ASSERT_TRUE(volume_->remove_subvolume(kRootInode, "copy"));
  ASSERT_TRUE(volume_->finish_removals());
  EXPECT_EQ(promised(), 0U);
}

// The power goes at every write while one of two subvolumes that share promises is dropped.
TEST_F(VolumePromise, is_counted_right_whenever_the_power_goes) {
  const auto live = volume_->create_subvolume(kUser, kRootInode, "live", 0755);
  ASSERT_TRUE(live);
  const HandleId file = open("/live/file");
  for (u64 page = 0; page < 400; page += 2) {
    ASSERT_TRUE(volume_->allocate(file, page * kPage, kPage));
    write(file, (page + 1) * kPage, kPage);
  }
  close(file);
  flush();
  volume_.reset();
  const SimImage start = device_.snapshot();
  bool done = false;
  for (u64 cut = 0; !done; cut += 1 + cut / 16) {
    SCOPED_TRACE(testing::Message() << "power cut after " << cut);
    device_.restore(start);
    open_again();
    device_.cut_after(cut);
    const auto made = volume_->snapshot(kUser, *live, kRootInode, "copy", false);
    const auto copy = open_path(*volume_, kUser, "/copy/file", {.write = true});
    done = made && copy && volume_->allocate(*copy, 0, 40 * kPage) && volume_->fsync(*copy) &&
           volume_->punch(*copy, 10 * kPage, 10 * kPage) && volume_->fsync(*copy) &&
           volume_->remove_subvolume(kRootInode, "live") && volume_->finish_removals() &&
           volume_->sync();
    volume_.reset();
    device_.crash(cut);
    open_again();
    ASSERT_TRUE(volume_->finish_removals());
    const auto left = resolve(*volume_, "/live/file");
    const auto cloned = resolve(*volume_, "/copy/file");
    const u64 of_copy = cloned ? volume_->stat(*cloned)->blocks - 200 : 0;  // and its data
    // 20 gaps in 40 pages; in what was punched there were 5, and as much data.
    EXPECT_TRUE(!cloned || of_copy == 0 || of_copy == 20 || of_copy == 20 - 10) << of_copy;
    const u64 promises_of_copy = of_copy == 10 ? 15 : of_copy;
    EXPECT_EQ(promised(), (left ? 200U : 0U) + promises_of_copy);
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    expect_clean();
    if (HasFailure()) break;
  }
  open_again();
}

TEST_F(VolumePromise, a_read_only_snapshot_is_not_changed_by_calls_on_space) {
  vault();
  const HandleId file = open("/vault/file");
  write(file, 0, 8 * kPage);
  snapshot("frozen", true);
  for (const char* path : {"/frozen/vault/file", "/frozen/vault/new"})
    EXPECT_EQ(code_of(open_path(*volume_, kUser, path, {.write = true, .create = true})),
              Errc::read_only);
  const HandleId frozen = open("/frozen/vault/file", {});
  EXPECT_EQ(code_of(volume_->punch(frozen, 0, kPage)), Errc::bad_handle);
  EXPECT_EQ(code_of(volume_->allocate(frozen, 0, 16 * kPage)), Errc::bad_handle);
  EXPECT_EQ(code_of(volume_->clone_range(file, 0, frozen, 0, 0)), Errc::bad_handle);
  // A source it may be: the clone lies in another subvolume than what it is of.
  write(file, 0, 8 * kPage, 'y');
  const HandleId to = open("/vault/to");
  ASSERT_TRUE(volume_->clone_range(frozen, 0, to, 0, 0));
  EXPECT_EQ(content(to), std::string(8 * kPage, 'x'));
  EXPECT_EQ(volume_->map(to)->front().device_offset, volume_->map(frozen)->front().device_offset);
  for (const HandleId handle : {file, frozen, to}) close(handle);
}

// --- counted wrong, counted anew -----------------------------------------------------------------

class PromiseRepair : public VolumePromise {
 protected:
  void SetUp() override {
    VolumePromise::SetUp();
    const HandleId file = open("/file");
    ASSERT_TRUE(volume_->allocate(file, 0, 64 * kPage));
    close(file);
    ASSERT_TRUE(volume_->snapshot(kUser, kRootInode, kRootInode, "copy", false));
    ASSERT_TRUE(volume_->close());
    volume_.reset();
  }
  void TearDown() override { EXPECT_FALSE(volume_); }
  // In the record of the tree, and in the superblock with it.
  void count(engine::TreeId tree, u64 blocks) {
    auto store = engine::Store::open(device_, {}, system_env());
    ASSERT_TRUE(store) << store.error().what;
    auto space = (*store)->reserve({0, 4, 1000});
    ASSERT_TRUE(space);
    {
      auto transaction = (*store)->begin(std::move(*space));
      ASSERT_TRUE(transaction && transaction->recount_promises(tree, blocks));
    }
    ASSERT_TRUE((*store)->commit());
  }
  std::vector<std::string> findings() {
    std::vector<std::string> all;
    const auto check = check_volume(device_, {.data = true, .progress = {}}, system_env());
    EXPECT_TRUE(check) << check.error().what;
    if (check)
      for (const engine::Finding& finding : check->findings) all.push_back(finding.what);
    return all;
  }
  void expect_mended() {
    const auto repaired = repair_volume(device_, system_env());
    ASSERT_TRUE(repaired) << repaired.error().what;
    ASSERT_EQ(repaired->mended.size(), 1U);
    EXPECT_TRUE(repaired->mended[0].what.starts_with("promises were counted anew"));
    EXPECT_TRUE(findings().empty());
    const u64 writes = device_.counters().writes;
    EXPECT_TRUE(repair_volume(device_, system_env())->mended.empty());
    EXPECT_EQ(device_.counters().writes, writes) << "a second repair finds nothing to do";
    open_again();
    EXPECT_EQ(promised(), 64U);
    const HandleId file = open("/file", {.write = true});
    write(file, 0, 64 * kPage);
    close(file);
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    EXPECT_TRUE(findings().empty());
  }
};

TEST_F(PromiseRepair, a_tree_that_counts_too_few) {
  count(kRootInode.subvolume, 10);
  EXPECT_EQ(findings(),
            std::vector<std::string>{"a tree counts 10 promised blocks, and its maps hold 64"});
  expect_mended();
}

TEST_F(PromiseRepair, a_snapshot_that_counts_what_it_has_not) {
  const engine::TreeId copy = kRootInode.subvolume + 1;
  count(copy, 64);
  EXPECT_EQ(findings(),
            std::vector<std::string>{"a tree counts 64 promised blocks, and its maps hold 0"});
  expect_mended();
}

TEST_F(PromiseRepair, a_superblock_that_counts_another_sum) {
  for (u32 place = 0; place < 4; ++place) {
    const u64 at = engine::superblock_place(place, device_.info().size_bytes) * kPage;
    std::vector<std::byte> block(kPage);
    device_.peek(at, block);
    auto disk = load_disk<engine::SuperblockDisk>(block);
    disk.promised_blocks = disk.promised_blocks + 5;
    store_disk(block, disk);
    disk.checksum = engine::block_checksum(block, offsetof(engine::SuperblockDisk, checksum));
    store_disk(block, disk);
    device_.overwrite(at, block);
  }
  EXPECT_EQ(findings(),
            std::vector<std::string>{"the superblock counts 69 promised blocks, the trees 64"});
  expect_mended();
}

// --- a nearly full store ------------------------------------------------------------------------

// What a write may need at most is far more than what it takes where trees share nodes: dirty pages
// that hold such reservations go down before somebody is refused.
TEST_F(VolumePromise, a_nearly_full_store_with_many_snapshots_takes_what_fits) {
  const HandleId base = open("/base");
  write_map_of_many_nodes(base);
  close(base);
  for (int i = 0; i < 12; ++i) snapshot("then" + std::to_string(i));
  const HandleId file = open("/file");
  const u64 before = volume_->facts().space.blocks_available;
  const std::string bytes(16 * kPage, 'f');
  u64 wrote = 0;
  for (u64 i = 0;; ++i, wrote += 16) {
    const auto done = volume_->write(file, i * 32 * kPage, bytes_of(bytes));
    if (done) continue;
    ASSERT_EQ(done.error().code, Errc::no_space);
    break;
  }
  std::printf("%llu of %llu blocks that were available\n", static_cast<unsigned long long>(wrote),
              static_cast<unsigned long long>(before));
  EXPECT_GT(wrote, before * 9 / 10);
  flush();
  close(file);
}

}  // namespace
}  // namespace latchkey::tests
