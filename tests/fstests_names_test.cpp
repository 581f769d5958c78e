// Goal: what fstests generic/429, 435, 440 and 621 ask of names is true of ours: they follow their
// key at once, long ones stay distinct while locked, a parent and its child may be unlocked one
// without the other, and no race with a key makes a name twice. Method: their steps through the
// library, in words of our own; suites bear their numbers. Each runs with our answers and with the
// kernel's (docs/conformance.md, "fstests").

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "tests/support/fstests_fixture.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;
using keymgr::RemovalMode;

u64 in_ms(u64 ms) { return system_env().monotonic_ns() + ms * 1'000'000; }
bool before(u64 end) { return system_env().monotonic_ns() < end; }

class Generic429 : public Fstest {
 protected:
  void SetUp() override {
    Fstest::SetUp();
    id_ = add_key();
    edir_ = directory_under("/edir", id_);
    put("/edir/@@@", "contents_@@@");    // cannot be a no-key name
    put("/edir/abcd", "contents_abcd");  // is base64
  }
  void expect_plaintext_names_alone(const std::vector<std::string>& no_key_names) {
    EXPECT_EQ(names(edir_), (std::vector<std::string>{"@@@", "abcd"}));
    for (const std::string& name : no_key_names)
      EXPECT_EQ(open_error(edir_, name), Errc::not_found) << name;
  }
  crypto::KeyId id_;
  InodeId edir_;
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic429, ::testing::Bool(), setting_name);

TEST_P(Generic429, names_follow_the_key_without_a_new_mount) {
  remove(id_);
  const auto no_key_names = names(edir_);
  EXPECT_EQ(no_key_names.size(), 2U);
  for (const char* name : {"@@@", "abcd", "never"})
    EXPECT_EQ(open_error(edir_, name), locked_name()) << name;
  for (const std::string& name : no_key_names)
    EXPECT_EQ(open_error(edir_, name), Errc::no_key) << name;

  add_key();
  expect_plaintext_names_alone(no_key_names);
  EXPECT_EQ(content("/edir/@@@"), "contents_@@@");
  EXPECT_EQ(content("/edir/abcd"), "contents_abcd");

  // What is open keeps its form. Opened anew it is by the kernel's answers alone.
  const auto pinned = volume_->open_directory(kUser, edir_, "/edir");
  ASSERT_TRUE(pinned);
  const HandleId first = open("/edir/@@@", {}), second = open("/edir/abcd", {});
  EXPECT_EQ(remove(id_).holders.size(), 3U);
  expect_plaintext_names_alone(no_key_names);
  EXPECT_EQ(content(first), "contents_@@@");
  EXPECT_EQ(content(second), "contents_abcd");
  EXPECT_EQ(open_error(edir_, "@@@"), compat() ? Errc{} : Errc::no_key);
  for (const HandleId handle : {first, second, *pinned}) close(handle);
  finish_removal(id_);
  EXPECT_EQ(names(edir_), no_key_names);
}

TEST_P(Generic429, a_look_up_races_with_the_removal_of_its_directory) {
  std::atomic<u64> wrong{0}, looked{0};
  const u64 end = in_ms(400);
  std::thread looks([&] {
    while (before(end)) {
      ++looked;
      if (lookup_error("/edir/dir/file") != Errc::not_found) ++wrong;
    }
  });
  u64 rounds = 0;
  for (; before(end); ++rounds) {
    const auto made = volume_->mkdir(kUser, edir_, "dir", 0777);
    if (!made) {
      ++wrong;
      break;
    }
    if (code_of(volume_->lookup(*made, "file")) != Errc::not_found) ++wrong;
    if (!volume_->rmdir(edir_, "dir")) ++wrong;
  }
  looks.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(rounds, 20U);
  EXPECT_GT(looked, 20U);
}

// Names that differ in their last sixteen bytes only: in the last but one of the cipher's blocks,
// as padding fills the last one; in the last one; and, of the longest ones, behind what a no-key
// name has of them but for a digest.
class Generic435 : public Fstest {
 protected:
  Generic435() : Fstest({.size_bytes = 512 * kMiB}) {}
  void SetUp() override {
    options_.inline_writeback = true;
    Fstest::SetUp();
    edir_ = directory_under("/edir", add_key());
  }
  void expect_distinct_and_removable(const std::string& front, u64 count) {
    for (u64 i = 1; i <= count; ++i)
      ASSERT_TRUE(volume_->make_node(kUser, edir_, front + std::to_string(i),
                                     {.kind = FileKind::regular, .mode = 0600}))
          << i;
    ASSERT_EQ(entries(edir_).size(), count);
    reopen();
    std::set<std::string> names;
    std::set<InodeId> inodes;
    for (const DirEntry& entry : entries(edir_)) {
      names.insert(entry.name);
      const auto found = volume_->lookup(edir_, entry.name);
      ASSERT_TRUE(found) << entry.name;
      EXPECT_EQ(*found, entry.inode);
      inodes.insert(*found);
    }
    EXPECT_EQ(names.size(), count);
    EXPECT_EQ(inodes.size(), count);
    ASSERT_TRUE(remove_tree(*volume_, "/edir"));
    EXPECT_EQ(lookup_error("/edir"), Errc::not_found);
  }
  InodeId edir_;
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic435, ::testing::Bool(), setting_name);

// LATCHKEY_CASES=100000 is the size of the original.
TEST_P(Generic435, long_names_are_distinct_while_locked_and_can_all_be_removed) {
  expect_distinct_and_removable("abcdefghijklmnopqrstuvwxyz012345", cases(12'000));
}

TEST_P(Generic435, so_are_names_that_differ_in_the_last_block) {
  expect_distinct_and_removable(std::string(48, 'p') + "abcdefgh", cases(2'000));
}

TEST_P(Generic435, so_are_names_of_which_a_digest_is_listed) {
  expect_distinct_and_removable(std::string(210, 'l'), 300);
}

class Generic440 : public Fstest {
 protected:
  void SetUp() override {
    Fstest::SetUp();
    id_ = add_key();
    edir_ = directory_under("/edir", id_);
    directory("/edir/subdir");
    ASSERT_TRUE(volume_->symlink(kUser, edir_, "symlink", "target"));
    put("/edir/file", "contents");
    reopen();
    add_key();
  }
  crypto::KeyId id_;
  InodeId edir_;
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic440, ::testing::Bool(), setting_name);

TEST_P(Generic440, a_parent_that_is_unlocked_has_children_that_are_not) {
  const auto pinned = volume_->open_directory(kUser, edir_, "/edir");
  ASSERT_TRUE(pinned);
  EXPECT_EQ(names(edir_), (std::vector<std::string>{"file", "subdir", "symlink"}));
  EXPECT_EQ(remove(id_).state, KeyState::incompletely_removed);
  EXPECT_EQ(open_error("/edir/file"), Errc::no_key);
  EXPECT_TRUE(names(inode("/edir/subdir")).empty());
  const auto target = volume_->read_link(inode("/edir/symlink"));
  ASSERT_TRUE(target);
  EXPECT_NE(*target, "target");
  close(*pinned);
}

TEST_P(Generic440, a_child_that_is_unlocked_has_a_parent_that_is_not) {
  const InodeId edir2 = directory_under("/edir2", id_);
  ASSERT_TRUE(volume_->link(inode("/edir/file"), edir2, "link"));
  EXPECT_EQ(content("/edir2/link"), "contents");
  const HandleId pinned = open("/edir2/link", {});
  EXPECT_TRUE(remove(id_).files_busy);
  EXPECT_EQ(lookup_error("/edir/file"), locked_name());
  const std::string no_key_name = name_of_kind(edir_, FileKind::regular);
  const auto again = volume_->open_file(kUser, edir_, no_key_name, {}, 0, "again");
  if (compat()) {
    ASSERT_TRUE(again);
    EXPECT_EQ(content(*again), "contents");
    close(*again);
  } else {
    EXPECT_EQ(code_of(again), Errc::no_key);
  }
  EXPECT_EQ(content(pinned), "contents");
  close(pinned);
}

class Generic621 : public Fstest {
 protected:
  void SetUp() override {
    Fstest::SetUp();
    id_ = add_key();
    dir_ = directory_under("/dir", id_);
    for (int i = 2; i <= 100; ++i) put("/dir/" + std::to_string(i), "");
    before_ = inode("/dir/100");
    other_ = inode("/dir/50");
  }
  // Calls that fail if the name is there; each has a place of its own in `succeeded`.
  static constexpr int kCalls = 7;
  Errc make(int call) {
    switch (call) {
      case 0:
        return code_of(volume_->mkdir(kUser, dir_, "100", 0700));
      case 1:
        return code_of(volume_->make_node(
            kUser, dir_, "100", {.kind = FileKind::char_device, .mode = 0600, .device = 0x505}));
      case 2:
        return code_of(volume_->symlink(kUser, dir_, "100", "target"));
      case 3:
        return link_error(other_, dir_, "100");
      case 4:
        return rename_error({dir_, "50"}, {dir_, "100"}, {.no_replace = true});
      case 5:
        return code_of(volume_->create_subvolume(kUser, dir_, "100", 0700));
      default:
        return open_error(dir_, "100", {.write = true, .create = true, .exclusive = true});
    }
  }
  crypto::KeyId id_;
  InodeId dir_, before_, other_;
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic621, ::testing::Bool(), setting_name);

TEST_P(Generic621, no_name_is_made_twice_while_its_key_comes_and_goes) {
  std::atomic<bool> stop{false};
  std::atomic<u64> rounds{0};
  std::thread keys([&] {
    for (; !stop; ++rounds) {
      (void)volume_->remove_key(kUser, id_, RemovalMode::soft);
      (void)volume_->add_key(kUser, master_key(7));
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  });
  u64 locked = 0, there = 0;
  std::set<std::pair<int, Errc>> wrong;  // call, answer
  const u64 end = in_ms(1200);
  while (before(end))
    for (int call = 0; call < kCalls; ++call) {
      const Errc answer = make(call);
      // As for the kernel, what is to be renamed is not there by its plaintext name.
      const bool source_hidden = compat() && call == 4 && answer == Errc::not_found;
      if (answer == Errc::no_key || source_hidden)
        ++locked;
      else if (answer == Errc::exists)
        ++there;
      else
        wrong.emplace(call, answer);
    }
  stop = true;
  keys.join();
  for (const auto& [call, answer] : wrong)
    ADD_FAILURE() << "call " << call << ": " << (answer == Errc{} ? "done" : name_of(answer));
  EXPECT_GT(rounds, 20U);
  EXPECT_GT(locked, 20U);
  EXPECT_GT(there, 20U);
  add_key();
  EXPECT_EQ(inode("/dir/100"), before_);
  const auto listed = names(dir_);
  EXPECT_EQ(listed.size(), 99U);
  EXPECT_EQ(std::ranges::count(listed, "100"), 1);
  // TearDown's check looks for two entries of one name.
}

}  // namespace
}  // namespace latchkey::tests
