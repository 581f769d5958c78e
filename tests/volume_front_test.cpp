// Goal: what a front, as a mount is one, asks of the volume and is asked by it: calls that do not
// wait, an open by inode, who made what, and when to try again. Method: each rule by name on a
// SimDevice with a front that keeps a list.

#include <atomic>

#include "tests/support/volume_fixture.h"
#include "volume/front.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;
using keymgr::RemovalMode;

constexpr IoFlags kNoWait{.wait = false};

class CountingFront final : public Front {
 public:
  void drop_pages(const crypto::KeyId& /*key*/, Which which) override {
    (which == Which::all ? dropped_all : dropped_closed) += 1;
  }
  void try_again(const crypto::KeyId& /*key*/) override { ++tries; }
  std::atomic<u32> dropped_all{0}, dropped_closed{0}, tries{0};
};

class VolumeFront : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    options_.front = &front_;
    VolumeTest::SetUp();
    id_ = vault();
    front_.tries = 0;
  }
  Errc write_error(HandleId handle, std::string_view text) {
    return code_of(volume_->write(handle, 0, bytes_of(text), kNoWait));
  }
  Errc read_now(HandleId handle) {
    std::array<std::byte, 16> into;
    return code_of(volume_->read(handle, 0, into, kNoWait));
  }
  void remove(RemovalMode mode) {
    EXPECT_TRUE(volume_->remove_key(kUser, id_, mode)) << static_cast<int>(mode);
  }

  CountingFront front_;
  crypto::KeyId id_;
};

TEST_F(VolumeFront, calls_that_do_not_wait_are_told_to_come_again_while_a_key_is_suspended) {
  const HandleId handle = open("/vault/file");
  append(handle, "before");
  remove(RemovalMode::suspend);
  EXPECT_EQ(write_error(handle, "later"), Errc::would_wait);
  EXPECT_EQ(read_now(handle), Errc::would_wait);
  EXPECT_EQ(posix_errno({Errc::would_wait}), EAGAIN);
  front_.tries = 0;
  add_key();
  EXPECT_EQ(front_.tries, 1U);
  EXPECT_EQ(write_error(handle, "BEFORE"), Errc{});
  EXPECT_EQ(content(handle), "BEFORE");
  remove(RemovalMode::suspend);
  front_.tries = 0;
  remove(RemovalMode::deny);
  EXPECT_EQ(front_.tries, 1U) << "the suspension ended";
  EXPECT_EQ(write_error(handle, "never"), Errc::no_key);
  EXPECT_EQ(read_now(handle), Errc::no_key);
  close(handle);
}

TEST_F(VolumeFront, each_removal_asks_for_the_fronts_pages_and_says_when_it_is_over) {
  for (const keymgr::RemovalRow& row : keymgr::removal_rows()) {
    SCOPED_TRACE(row.name);
    front_.dropped_all = front_.dropped_closed = front_.tries = 0;
    remove(row.mode);
    const bool some_stay = row.stays != keymgr::Stays::nothing;
    EXPECT_EQ(front_.dropped_closed, some_stay ? 1U : 0U);
    EXPECT_EQ(front_.dropped_all, some_stay ? 0U : row.mode == RemovalMode::sync ? 2U : 1U);
    EXPECT_EQ(front_.tries, 1U);
    add_key();
  }
}

TEST_F(VolumeFront, opens_a_regular_file_by_inode_and_nothing_else) {
  put("/vault/file", "text");
  const InodeId file = *resolve(*volume_, "/vault/file");
  const auto opened = volume_->open({1000, 100, 4711}, file, {.read = true, .write = true}, "file");
  ASSERT_TRUE(opened);
  EXPECT_EQ(content(*opened), "text");
  const KeyReport report = volume_->key_status(kUser, id_);
  ASSERT_EQ(report.holders.size(), 1U);
  EXPECT_EQ(report.holders[0].pid, 4711U);
  EXPECT_EQ(report.holders[0].path, "file");
  EXPECT_EQ(code_of(volume_->open(kUser, *resolve(*volume_, "/vault"), {}, "")), Errc::is_dir);
  EXPECT_EQ(code_of(volume_->open(kUser, file, {.create = true}, "")), Errc::invalid);
  EXPECT_EQ(code_of(volume_->open(kUser, {kRootInode.subvolume, 9999}, {}, "")), Errc::not_found);
  const auto link = volume_->symlink(kUser, kRootInode, "link", "file");
  ASSERT_TRUE(link);
  EXPECT_EQ(code_of(volume_->open(kUser, *link, {}, "")), Errc::is_symlink);
  remove(RemovalMode::soft);
  EXPECT_EQ(code_of(volume_->open(kUser, file, {}, "")), Errc::no_key) << "the same door";
  EXPECT_EQ(content(*opened), "text");
  close(*opened);
}

TEST_F(VolumeFront, what_is_made_has_the_callers_group_or_that_of_a_setgid_directory) {
  const Caller caller{1000, 100, 0};
  const InodeId root = kRootInode;
  const InodeId plain = *volume_->mkdir(caller, root, "plain", 0755);
  EXPECT_EQ(volume_->stat(plain)->gid, 100U);
  EXPECT_EQ(volume_->stat(*volume_->mkdir({1000}, plain, "as-uid", 0755))->gid, 1000U);
  const InodeId shared = *volume_->mkdir({1000, 200, 0}, root, "shared", 02775);
  const InodeId below = *volume_->mkdir(caller, shared, "below", 0755);
  EXPECT_EQ(volume_->stat(below)->gid, 200U);
  EXPECT_EQ(volume_->stat(below)->mode, 02755U);
  const auto node = volume_->make_node(caller, below, "file", {FileKind::regular, 0644});
  EXPECT_EQ(volume_->stat(*node)->gid, 200U);
  EXPECT_EQ(volume_->stat(*node)->mode, 0644U);
}

}  // namespace
}  // namespace latchkey::tests
