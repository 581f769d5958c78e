// Goal: a rename is one step: whoever looks, and whoever crashes, finds the old names or the new
// ones; it keeps fscrypt's rules, and no directory ever lies below itself. Method: each outcome by
// itself, then crashes by seed, then threads that move directories into each other. Every test ends
// with the offline check.

#include <atomic>
#include <thread>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::RemovalMode;

class VolumeRename : public VolumeTest {
 protected:
  InodeNumber directory(std::string_view path) {
    auto made = make_directory(*volume_, kUser, path);
    EXPECT_TRUE(made) << path;
    return made.value_or(0);
  }
  InodeNumber number(std::string_view path) { return resolve(*volume_, path).value_or(0); }
  Errc rename(InodeNumber from_directory, std::string_view from, InodeNumber to_directory,
              std::string_view to, RenameFlags flags = {}) {
    return code_of(volume_->rename(from_directory, from, to_directory, to, flags));
  }
  Errc in_root(std::string_view from, std::string_view to, RenameFlags flags = {}) {
    return rename(kRootInode, from, kRootInode, to, flags);
  }
  static constexpr RenameFlags kNoReplace{.no_replace = true, .exchange = false};
  static constexpr RenameFlags kExchange{.no_replace = false, .exchange = true};
};

TEST_F(VolumeRename, gives_a_file_its_new_name_and_keeps_its_inode_and_data) {
  put("/a", "text");
  const InodeNumber inode = number("/a");
  const HandleId handle = open("/a");
  EXPECT_EQ(in_root("a", "b"), Errc{});
  EXPECT_EQ(open_error("/a"), Errc::not_found);
  EXPECT_EQ(number("/b"), inode);
  append(handle, " and more");  // under its old handle
  EXPECT_EQ(content("/b"), "text and more");
  close(handle);
  const InodeNumber sub = directory("/sub");
  EXPECT_EQ(rename(kRootInode, "b", sub, "c"), Errc{});
  reopen();
  EXPECT_EQ(number("/sub/c"), inode);
  EXPECT_EQ(content("/sub/c"), "text and more");
}

TEST_F(VolumeRename, replaces_what_has_the_name_and_frees_it) {
  put("/old", std::string(200000, 'o'));
  put("/new", "n");
  ASSERT_TRUE(volume_->sync());
  const HandleId open_old = open("/old", {});
  EXPECT_EQ(in_root("new", "old"), Errc{});
  EXPECT_EQ(content("/old"), "n");
  EXPECT_EQ(content(open_old).size(), 200000U) << "who has it open has it until the end";
  close(open_old);
  EXPECT_EQ(open_error("/new"), Errc::not_found);
  const InodeNumber full = directory("/full"), empty = directory("/empty");
  put("/full/file", "f");
  EXPECT_EQ(in_root("empty", "full"), Errc::not_empty);
  EXPECT_EQ(in_root("old", "empty"), Errc::is_dir);
  EXPECT_EQ(in_root("full", "old"), Errc::not_dir);
  EXPECT_EQ(in_root("full", "empty"), Errc{});
  EXPECT_EQ(number("/empty"), full);
  EXPECT_EQ(content("/empty/file"), "f");
  EXPECT_EQ(code_of(volume_->mkdir(kUser, empty, "x", 0700)), Errc::not_found) << "it is gone";
}

TEST_F(VolumeRename, of_a_name_onto_itself_changes_nothing) {
  put("/file", "f");
  directory("/dir");
  put("/dir/x", "x");
  EXPECT_EQ(in_root("file", "file"), Errc{});
  EXPECT_EQ(in_root("dir", "dir"), Errc{}) << "not empty, but itself";
  EXPECT_EQ(in_root("dir", "dir", kExchange), Errc{});
  EXPECT_EQ(in_root("dir", "dir", kNoReplace), Errc::exists);
  EXPECT_EQ(content("/file") + content("/dir/x"), "fx");
}

TEST_F(VolumeRename, flags_do_what_they_say) {
  put("/a", "a");
  put("/b", "b");
  const InodeNumber sub = directory("/sub");
  put("/sub/c", "c");
  EXPECT_EQ(in_root("a", "b", kNoReplace), Errc::exists);
  EXPECT_EQ(in_root("a", "free", kNoReplace), Errc{});
  EXPECT_EQ(in_root("free", "none", kExchange), Errc::not_found);
  EXPECT_EQ(in_root("free", "b", kExchange), Errc{});
  EXPECT_EQ(content("/free") + content("/b"), "ba");
  // A file and a directory change places, too.
  EXPECT_EQ(rename(kRootInode, "b", sub, "c", kExchange), Errc{});
  EXPECT_EQ(content("/b") + content("/sub/c"), "ca");
  EXPECT_EQ(in_root("free", "sub", kExchange), Errc{});
  EXPECT_EQ(content("/free/c") + content("/sub"), "ab");
  EXPECT_EQ(in_root("b", "c", {.no_replace = true, .exchange = true}), Errc::invalid);
}

TEST_F(VolumeRename, refuses_what_can_never_be) {
  const InodeNumber a = directory("/a"), b = directory("/a/b"), c = directory("/a/b/c");
  put("/file", "f");
  EXPECT_EQ(rename(kRootInode, "a", c, "in"), Errc::invalid);
  EXPECT_EQ(rename(kRootInode, "a", a, "in"), Errc::invalid);
  EXPECT_EQ(rename(b, "c", kRootInode, "a", kExchange), Errc::invalid) << "a would lie in b";
  EXPECT_EQ(rename(kRootInode, "a", b, "c", kExchange), Errc::invalid);
  EXPECT_EQ(in_root("none", "x"), Errc::not_found);
  EXPECT_EQ(in_root("file", ".."), Errc::invalid);
  EXPECT_EQ(in_root("file", std::string(256, 'x')), Errc::name_too_long);
  EXPECT_EQ(rename(kRootInode, "file", number("/file"), "x"), Errc::not_dir);
  EXPECT_EQ(rename(b, "c", kRootInode, "c"), Errc{});
  EXPECT_EQ(rename(kRootInode, "a", c, "a"), Errc{}) << "c is no longer below a";
  EXPECT_EQ(number("/c/a/b"), b);
}

// fscrypt_prepare_rename(): into an encrypted directory only what has its policy; out of it freely.
TEST_F(VolumeRename, keeps_an_encrypted_directory_to_its_policy) {
  const crypto::KeyId id = vault();
  const InodeNumber vault = number("/vault"), plain = directory("/plain");
  const InodeNumber inner = directory("/vault/inner");
  put("/vault/a", "a");
  put("/plain/b", "b");
  EXPECT_EQ(rename(plain, "b", vault, "b"), Errc::cross_key);
  EXPECT_EQ(rename(kRootInode, "plain", vault, "plain"), Errc::cross_key);
  EXPECT_EQ(rename(plain, "b", vault, "a", kExchange), Errc::cross_key);
  EXPECT_EQ(rename(vault, "a", plain, "b", kExchange), Errc::cross_key);
  const std::string longest(255, 'n');
  EXPECT_EQ(rename(vault, "a", inner, longest), Errc{});
  EXPECT_EQ(rename(inner, longest, plain, longest), Errc{});
  EXPECT_EQ(content("/plain/" + longest), "a");
  EXPECT_EQ(rename(plain, longest, vault, "a"), Errc{}) << "it still has the policy";

  remove(id);
  EXPECT_EQ(rename(vault, "a", vault, "z"), Errc::no_key);
  EXPECT_EQ(rename(plain, "b", vault, "z"), Errc::no_key);
  const auto listed = volume_->read_directory(vault);
  ASSERT_TRUE(listed);
  ASSERT_FALSE(listed->empty());
  EXPECT_EQ(rename(vault, listed->front().name, plain, "z"), Errc::no_key) << "a no-key name";
  add_key();
  EXPECT_EQ(content("/vault/a"), "a");
}

TEST_F(VolumeRename, works_on_open_directories_while_their_key_leaves) {
  const crypto::KeyId id = vault();
  put("/vault/a", "a");
  const InodeNumber vault = number("/vault");
  const auto held = volume_->open_directory(kUser, vault, "/vault");
  ASSERT_TRUE(held);
  EXPECT_EQ(remove(id).state, keymgr::KeyState::incompletely_removed);
  EXPECT_EQ(rename(vault, "a", vault, "b"), Errc{});
  close(*held);
  EXPECT_EQ(rename(vault, "b", vault, "c"), Errc::no_key);
  add_key();
  EXPECT_EQ(content("/vault/b"), "a");
}

TEST_F(VolumeRename, a_crash_leaves_the_old_names_or_the_new_ones) {
  u32 old_names = 0, new_names = 0;
  for (u64 seed = 1; seed <= 60; ++seed) {
    const std::string one = "one" + std::to_string(seed), two = "two" + std::to_string(seed);
    put("/" + one, one);
    put("/" + two, two);
    const InodeNumber sub = directory("/sub" + std::to_string(seed));
    ASSERT_TRUE(volume_->sync());
    ASSERT_EQ(rename(kRootInode, one, sub, "moved"), Errc{});
    ASSERT_EQ(in_root(two, one), Errc{});
    ASSERT_EQ(rename(sub, "moved", kRootInode, one, kExchange), Errc{});
    // Now `one` is one again and "moved" is two. Half of the time that is made durable.
    if (seed % 2 == 0) {
      ASSERT_TRUE(volume_->sync());
    }
    crash(seed);
    const std::string moved = "/sub" + std::to_string(seed) + "/moved";
    ASSERT_EQ(content("/" + one), one);
    if (!resolve(*volume_, moved)) {
      ASSERT_EQ(content("/" + two), two);
      ++old_names;
    } else {
      ASSERT_EQ(content(moved), two);
      ASSERT_EQ(open_error("/" + two), Errc::not_found);
      ++new_names;
    }
    expect_clean();
  }
  EXPECT_GE(new_names, 30U);
  EXPECT_GT(old_names, 0U);
}

// Two threads move each directory into the other; a third renames files between them.
TEST_F(VolumeRename, threads_that_move_directories_into_each_other_make_no_loop) {
  const InodeNumber a = directory("/a"), b = directory("/b");
  put("/a/file", "f");
  std::atomic<u64> moved{0}, refused{0};
  const auto count = [&](const Result<void>& result) {
    ++(result ? moved : refused);
    if (result) return;
    EXPECT_TRUE(result.error().code == Errc::not_found || result.error().code == Errc::invalid)
        << result.error().what;
  };
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    for (int i = 0; i < 300; ++i) {
      count(volume_->rename(kRootInode, "a", b, "a"));
      count(volume_->rename(b, "a", kRootInode, "a"));
    }
  });
  threads.emplace_back([&] {
    for (int i = 0; i < 300; ++i) {
      count(volume_->rename(kRootInode, "b", a, "b"));
      count(volume_->rename(a, "b", kRootInode, "b"));
    }
  });
  threads.emplace_back([&] {
    for (int i = 0; i < 300; ++i) {
      count(volume_->rename(a, "file", b, "file"));
      count(volume_->rename(b, "file", a, "file"));
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(moved, 0U);
  EXPECT_TRUE(volume_->lookup(a, "file"));
  EXPECT_EQ(number("/a"), a);
  EXPECT_EQ(number("/b"), b);
}

}  // namespace
}  // namespace latchkey::tests
