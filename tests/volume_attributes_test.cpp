// Goal: mode, owner and times are what was set, for good; times of reads follow relatime's rule and
// cost no transaction each; what is said of space is true to the block. Method: a volume on a
// SimDevice, its clock the test's own; whatever a test does ends with a check of the whole store.

#include <atomic>
#include <limits>
#include <thread>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr u64 kSecond = 1'000'000'000, kDay = 86'400 * kSecond;

class SetClock final : public Env {
 public:
  u64 monotonic_ns() override { return system_env().monotonic_ns(); }
  u64 realtime_ns() override { return now; }
  void random(MutableBytes bytes) override { system_env().random(bytes); }
  u64 now = 1'700'000'000 * kSecond;
};

class AttributesTest : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    ASSERT_TRUE(Volume::mkfs(device_, {}, clock_));
    open_with_clock();
  }
  void open_with_clock() {
    if (volume_) {
      EXPECT_TRUE(volume_->close());
    }
    volume_.reset();
    auto opened = Volume::open(device_, options_, clock_);
    ASSERT_TRUE(opened) << opened.error().what;
    volume_ = std::move(*opened);
  }
  InodeId inode(std::string_view path) {
    auto found = resolve(*volume_, path);
    EXPECT_TRUE(found) << path;
    return found.value_or(InodeId{});
  }
  Stat stat(std::string_view path) {
    auto stat = volume_->stat(inode(path));
    EXPECT_TRUE(stat);
    return stat.value_or(Stat{});
  }
  void set(std::string_view path, const AttributeChange& change) {
    clock_.now += kSecond;
    const auto done = volume_->set_attributes(inode(path), change);
    EXPECT_TRUE(done) << done.error().what;
  }
  void read_some(HandleId handle) {
    std::byte byte{};
    EXPECT_TRUE(volume_->read(handle, 0, {&byte, 1}));
  }
  void read_file(std::string_view path) {
    const HandleId handle = open(path, {});
    read_some(handle);
    close(handle);
  }
  SetClock clock_;
};

TEST_F(AttributesTest, each_changes_alone_and_survives_a_reopening) {
  put("/file", "text");
  const Stat before = stat("/file");
  EXPECT_EQ(before.btime_ns, static_cast<i64>(clock_.now));
  set("/file", {.mode = 0640});
  set("/file", {.uid = 7});
  set("/file", {.gid = 8});
  set("/file", {.atime_ns = -5});
  set("/file", {.mtime_ns = 17});
  open_with_clock();
  const Stat after = stat("/file");
  EXPECT_EQ(after.mode, 0640U);
  EXPECT_EQ(after.uid, 7U);
  EXPECT_EQ(after.gid, 8U);
  EXPECT_EQ(after.atime_ns, -5);
  EXPECT_EQ(after.mtime_ns, 17);
  EXPECT_EQ(after.ctime_ns, static_cast<i64>(clock_.now));
  EXPECT_EQ(after.btime_ns, before.btime_ns);
  EXPECT_EQ(after.size, 4U);
  clock_.now += kSecond;
  ASSERT_TRUE(volume_->set_attributes(inode("/file"), {}));
  EXPECT_EQ(stat("/file").ctime_ns, after.ctime_ns) << "nothing was asked for";
  EXPECT_EQ(code_of(volume_->set_attributes(InodeId{engine::kFirstSubvolume, 9999}, {})),
            Errc::not_found);
}

TEST_F(AttributesTest, any_time_round_trips) {
  put("/file", "text");
  for (const i64 time : {std::numeric_limits<i64>::min(), std::numeric_limits<i64>::min() + 1,
                         i64{-1}, i64{0}, i64{1}, std::numeric_limits<i64>::max()}) {
    set("/file", {.atime_ns = time, .mtime_ns = time});
    open_with_clock();
    EXPECT_EQ(stat("/file").atime_ns, time);
    EXPECT_EQ(stat("/file").mtime_ns, time);
    read_file("/file");  // whatever they are, a read overflows nothing
    EXPECT_EQ(stat("/file").mtime_ns, time);
  }
}

TEST_F(AttributesTest, a_new_owner_takes_setuid_away) {
  put("/file", "text");
  set("/file", {.mode = 06755});
  set("/file", {.uid = 9});
  EXPECT_EQ(stat("/file").mode, 0755U);
  set("/file", {.mode = 06745});
  set("/file", {.gid = 9});
  EXPECT_EQ(stat("/file").mode, 02745U) << "setgid without the group's x is no privilege";
  set("/file", {.mode = 06755, .uid = 10});
  EXPECT_EQ(stat("/file").mode, 06755U) << "asked for in the same step";
  ASSERT_TRUE(make_directory(*volume_, kUser, "/directory"));
  set("/directory", {.mode = 02775});
  set("/directory", {.gid = 9});
  EXPECT_EQ(stat("/directory").mode, 02775U);
}

TEST_F(AttributesTest, a_write_by_another_than_root_takes_setuid_away) {
  put("/file", "text");
  const auto open_as = [&](u32 uid, OpenFlags flags) {
    auto handle = open_path(*volume_, Caller{uid}, "/file", flags);
    EXPECT_TRUE(handle);
    return *handle;
  };
  for (const u32 uid : {0U, 1000U}) {
    const u32 left = uid == 0 ? 06755U : 0755U;
    const HandleId handle = open_as(uid, {.write = true});
    set("/file", {.mode = 06755});
    append(handle, "more");
    EXPECT_EQ(stat("/file").mode, left);
    set("/file", {.mode = 06755});
    ASSERT_TRUE(volume_->truncate(handle, 2));
    EXPECT_EQ(stat("/file").mode, left);
    set("/file", {.mode = 06755});
    close(open_as(uid, {.write = true, .truncate = true}));
    EXPECT_EQ(stat("/file").mode, left);
    close(handle);
  }
}

TEST_F(AttributesTest, a_read_moves_atime_when_the_file_has_changed_or_a_day_is_over) {
  put("/file", "text");
  const i64 made = stat("/file").atime_ns;
  clock_.now += kSecond;
  read_file("/file");
  const i64 first = stat("/file").atime_ns;
  EXPECT_EQ(first, static_cast<i64>(clock_.now)) << "as old as mtime before";
  EXPECT_NE(first, made);
  clock_.now += kDay - 1;
  read_file("/file");
  EXPECT_EQ(stat("/file").atime_ns, first) << "not a day yet";
  clock_.now += 1;
  read_file("/file");
  EXPECT_EQ(stat("/file").atime_ns, static_cast<i64>(clock_.now));
  clock_.now += kSecond;
  put("/file", "TEXT");
  clock_.now += kSecond;
  read_file("/file");
  EXPECT_EQ(stat("/file").atime_ns, static_cast<i64>(clock_.now)) << "written since";
  clock_.now += kSecond;
  set("/file", {.mode = 0600});
  clock_.now += kSecond;
  read_file("/file");
  const Stat last = stat("/file");
  EXPECT_EQ(last.atime_ns, static_cast<i64>(clock_.now)) << "changed since";
  EXPECT_LT(last.ctime_ns, last.atime_ns) << "a read changes nothing else";
  open_with_clock();
  EXPECT_EQ(stat("/file").atime_ns, last.atime_ns) << "a close has put it";
}

TEST_F(AttributesTest, reads_of_an_open_file_are_no_transactions) {
  put("/file", "text");
  ASSERT_TRUE(volume_->sync());
  const HandleId handle = open("/file", {});
  const u64 commits = volume_->facts().commits;
  for (int i = 0; i < 100; ++i) {
    clock_.now += kDay;
    read_some(handle);
  }
  EXPECT_EQ(stat("/file").atime_ns, static_cast<i64>(clock_.now));
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(volume_->facts().commits, commits) << "there was nothing to commit";
  close(handle);
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(volume_->facts().commits, commits + 1);
}

TEST_F(AttributesTest, of_users_that_go_at_once_one_puts_atime) {
  constexpr int kRounds = 20'000;
  put("/file", "text");
  ASSERT_TRUE(volume_->sync());  // a clean inode is forgotten with its last user
  HandleId other{};
  std::atomic<int> opened = 0, closed = 0;
  std::thread beside([&] {  // spins: who has to be woken is never there at the same moment
    for (int round = 1; round <= kRounds; ++round) {
      while (opened.load() < round) {
      }
      close(other);
      closed.store(round);
    }
  });
  int lost = 0;
  for (int round = 1; round <= kRounds; ++round) {
    clock_.now += kDay;
    const HandleId one = open("/file", {});
    other = open("/file", {});
    read_some(one);
    opened.store(round);
    close(one);
    while (closed.load() < round) {
    }
    lost += stat("/file").atime_ns != static_cast<i64>(clock_.now);
  }
  beside.join();
  EXPECT_EQ(lost, 0);
}

TEST_F(AttributesTest, neither_a_read_only_volume_nor_a_locked_one_moves_atime) {
  const auto id = vault();
  put("/vault/file", "text");
  put("/plain", "text");
  const Stat plain = stat("/plain");
  const Stat file = stat("/vault/file");
  const Stat directory = stat("/vault");
  clock_.now += kDay;
  const HandleId listing = [&] {
    auto opened = volume_->open_directory(kUser, inode("/vault"), "/vault");
    EXPECT_TRUE(opened);
    return *opened;
  }();
  const HandleId handle = open("/vault/file", {});
  remove(id, keymgr::RemovalMode::hard);
  EXPECT_EQ(read_error(handle), Errc::no_key);
  EXPECT_TRUE(volume_->read_directory(listing)) << "names that hide";
  EXPECT_EQ(volume_->stat(handle)->atime_ns, file.atime_ns);
  EXPECT_EQ(volume_->stat(listing)->atime_ns, directory.atime_ns);
  EXPECT_TRUE(volume_->close_handle(listing));
  (void)volume_->close_handle(handle);
  options_.read_only = true;
  open_with_clock();
  const u64 writes = device_.counters().writes;
  read_file("/plain");
  EXPECT_EQ(stat("/plain").atime_ns, plain.atime_ns);
  options_.read_only = false;
  options_.atime = Atime::none;
  open_with_clock();
  read_file("/plain");
  EXPECT_EQ(stat("/plain").atime_ns, plain.atime_ns);
  EXPECT_EQ(device_.counters().writes, writes);
  options_.atime = Atime::relative;
  open_with_clock();
  add_key();
  read_file("/vault/file");
  EXPECT_EQ(stat("/vault/file").atime_ns, static_cast<i64>(clock_.now));
  auto again = volume_->open_directory(kUser, inode("/vault"), "/vault");
  ASSERT_TRUE(again && volume_->read_directory(*again));
  close(*again);
  EXPECT_EQ(stat("/vault").atime_ns, static_cast<i64>(clock_.now));
}

TEST_F(AttributesTest, which_reads_move_atime_is_an_option) {
  put("/file", "text");
  const auto list_root = [&] {
    auto root = volume_->open_directory(kUser, kRootInode, "/");
    ASSERT_TRUE(root && volume_->read_directory(*root));
    close(*root);
  };
  options_.atime = Atime::strict;
  options_.directory_atime = false;
  open_with_clock();
  const i64 directory = stat("/").atime_ns;
  for (int read = 0; read < 3; ++read) {
    clock_.now += kSecond;
    read_file("/file");
    list_root();
    EXPECT_EQ(stat("/file").atime_ns, static_cast<i64>(clock_.now));
    EXPECT_EQ(stat("/").atime_ns, directory);
  }
  options_.directory_atime = true;
  open_with_clock();
  clock_.now += kSecond;
  list_root();
  EXPECT_EQ(stat("/").atime_ns, static_cast<i64>(clock_.now));
}

TEST_F(AttributesTest, an_unlinked_file_has_attributes_through_its_handle) {
  put("/file", "text");
  const HandleId handle = open("/file");
  const InodeId number = inode("/file");
  ASSERT_TRUE(volume_->unlink(kRootInode, "file"));
  EXPECT_EQ(code_of(volume_->set_attributes(number, {.mode = 0600})), Errc::not_found);
  ASSERT_TRUE(volume_->set_attributes(handle, {.mode = 0600}));
  EXPECT_EQ(volume_->stat(handle)->mode, 0600U);
  read_some(handle);
  close(handle);
}

// --- space ---------------------------------------------------------------------------------------

class VolumeSpaceTest : public VolumeTest {
 protected:
  VolumeSpace space() {
    auto space = volume_->space();
    EXPECT_TRUE(space) << space.error().what;
    return space.value_or(VolumeSpace{});
  }
  // By a walk over everything that a superblock leads to.
  void expect_free_is_what_is_not_reachable(u64 reserved) {
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    auto check = check_volume(device_, {}, system_env());
    ASSERT_TRUE(check && check->findings.empty());
    open_again();
    const u64 node_blocks = u64{volume_->facts().store.node_bytes} / engine::kBlockBytes;
    EXPECT_EQ(space().blocks_total - space().blocks_free,
              reserved + check->nodes * 2 * node_blocks + check->data_blocks);
    EXPECT_EQ(space().inodes, check->inodes);
  }
};

TEST_F(VolumeSpaceTest, after_everything_is_deleted_as_much_is_free_as_after_mkfs) {
  const VolumeSpace fresh = space();
  EXPECT_EQ(fresh.blocks_total, 128 * kMiB / engine::kBlockBytes);
  EXPECT_EQ(fresh.inodes, 1U);
  auto check = check_volume(device_, {}, system_env());
  ASSERT_TRUE(check);
  const u64 node_blocks = u64{volume_->facts().store.node_bytes} / engine::kBlockBytes;
  const u64 reserved =
      fresh.blocks_total - fresh.blocks_free - check->nodes * 2 * node_blocks - check->data_blocks;
  expect_free_is_what_is_not_reachable(reserved);

  vault();
  for (int i = 0; i < 300; ++i) {
    const std::string path = (i % 2 == 0 ? "/file" : "/vault/file") + std::to_string(i);
    const HandleId handle = open(path);
    for (u64 page = 0; page < 40; page += 2)
      ASSERT_TRUE(volume_->write(handle, page * engine::kBlockBytes, bytes_of("x")));
    close(handle);
    ASSERT_TRUE(volume_->set_xattr(*resolve(*volume_, path), "user.big",
                                   std::vector<std::byte>(i * 100U, std::byte{1})));
  }
  EXPECT_EQ(space().inodes, 302U);
  EXPECT_LT(space().blocks_available, fresh.blocks_available);
  expect_free_is_what_is_not_reachable(reserved);
  add_key();
  for (int i = 0; i < 300; ++i) {
    const auto directory = resolve(*volume_, i % 2 == 0 ? "/" : "/vault");
    ASSERT_TRUE(volume_->unlink(*directory, "file" + std::to_string(i)));
    if (i == 150) expect_free_is_what_is_not_reachable(reserved);
    if (i == 150) add_key();
  }
  ASSERT_TRUE(volume_->rmdir(kRootInode, "vault"));
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(space().blocks_free, fresh.blocks_free);
  EXPECT_EQ(space().inodes, 1U);
  expect_free_is_what_is_not_reachable(reserved);
  EXPECT_EQ(space().blocks_free, fresh.blocks_free);
}

TEST_F(VolumeSpaceTest, a_crash_loses_no_block_and_no_inode) {
  const u64 fresh = space().blocks_free;
  put("/kept", "text");
  ASSERT_TRUE(volume_->sync());
  const VolumeSpace kept = space();
  EXPECT_LT(kept.blocks_free, fresh);
  const HandleId open_file = open("/unlinked");
  ASSERT_TRUE(volume_->write(open_file, 0, std::vector<std::byte>(kMiB, std::byte{1})));
  ASSERT_TRUE(volume_->unlink(kRootInode, "unlinked"));
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(space().inodes, kept.inodes + 1) << "unlinked, but in use";
  EXPECT_LT(space().blocks_free, kept.blocks_free);
  crash(1);
  ASSERT_TRUE(volume_->sync());
  EXPECT_EQ(space().inodes, kept.inodes);
  EXPECT_EQ(space().blocks_free, kept.blocks_free);
}

}  // namespace
}  // namespace latchkey::tests
