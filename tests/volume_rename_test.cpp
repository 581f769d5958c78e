// Goal: a rename is one step: whoever looks, and whoever crashes, finds the old names or the new
// ones; it keeps fscrypt's rules, and no directory ever lies below itself. Method: each outcome by
// itself, then crashes by seed, then threads that move directories into each other. Every test ends
// with the offline check.

#include <atomic>
#include <functional>
#include <thread>

#include "tests/support/check_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::RemovalMode;

class VolumeRename : public VolumeTest {
 protected:
  InodeId directory(std::string_view path) {
    auto made = make_directory(*volume_, kUser, path);
    EXPECT_TRUE(made) << path;
    return made.value_or(InodeId{});
  }
  InodeId number(std::string_view path) { return resolve(*volume_, path).value_or(InodeId{}); }
  Errc rename(InodeId from_directory, std::string_view from, InodeId to_directory,
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
  const InodeId inode = number("/a");
  const HandleId handle = open("/a");
  EXPECT_EQ(in_root("a", "b"), Errc{});
  EXPECT_EQ(open_error("/a"), Errc::not_found);
  EXPECT_EQ(number("/b"), inode);
  append(handle, " and more");  // under its old handle
  EXPECT_EQ(content("/b"), "text and more");
  close(handle);
  const InodeId sub = directory("/sub");
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
  const InodeId full = directory("/full"), empty = directory("/empty");
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
  const InodeId sub = directory("/sub");
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
  const InodeId a = directory("/a"), b = directory("/a/b"), c = directory("/a/b/c");
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

// Names of one hash have 124 places. XXH3 of 17 to 32 bytes multiplies words of the name with words
// of its secret: where one factor is zero the other does not matter.
std::string name_of_the_one_hash(u32 number) {
  std::string name("\xb8\xfe\x6c\x39\x23\xa4\x4b\xbe", 8);
  name += "number " + std::string(1, static_cast<char>('a' + number / 64));
  name[8 + 7 - 1] = static_cast<char>('A' + number % 64);
  return name + std::string(16, 'x');
}

TEST_F(VolumeRename, that_finds_no_place_for_its_name_changes_nothing) {
  for (u32 i = 0; i < kNamesOfOneHashMax; ++i) put("/" + name_of_the_one_hash(i), "n");
  put("/file", "f");
  const std::string one_more = name_of_the_one_hash(kNamesOfOneHashMax);
  ASSERT_EQ(entry_offset(one_more), entry_offset(name_of_the_one_hash(0)));
  EXPECT_EQ(in_root("file", one_more), Errc::no_space);
  EXPECT_EQ(content("/file"), "f");
  EXPECT_EQ(in_root(name_of_the_one_hash(7), one_more), Errc{}) << "its own place is free by then";
  EXPECT_EQ(in_root("file", name_of_the_one_hash(9)), Errc{}) << "it takes the place";
  reopen();
  EXPECT_EQ(content("/" + one_more) + content("/" + name_of_the_one_hash(9)), "nf");
}

// fscrypt_prepare_rename(): into an encrypted directory only what has its policy; out of it freely.
TEST_F(VolumeRename, keeps_an_encrypted_directory_to_its_policy) {
  const crypto::KeyId id = vault();
  const InodeId vault = number("/vault"), plain = directory("/plain");
  const InodeId inner = directory("/vault/inner");
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
  const InodeId vault = number("/vault");
  const auto held = volume_->open_directory(kUser, vault, "/vault");
  ASSERT_TRUE(held);
  const HandleId busy = open("/vault/a", {});
  EXPECT_EQ(remove(id).state, keymgr::KeyState::incompletely_removed);
  EXPECT_EQ(rename(vault, "a", vault, "b"), Errc{});
  close(busy);
  EXPECT_EQ(rename(vault, "b", vault, "a"), Errc::no_key) << "what it leads to is locked";
  close(*held);
  EXPECT_EQ(rename(vault, "b", vault, "c"), Errc::no_key);
  add_key();
  EXPECT_EQ(content("/vault/b"), "a");
}

// A name that must be there is not there, as for any look-up; for a new one the key is missing.
TEST_F(VolumeRename, of_names_in_a_locked_directory_fails_as_the_kernels) {
  options_.compat_fscrypt = true;
  reopen();
  const crypto::KeyId id = vault();
  const InodeId vault = number("/vault"), plain = directory("/plain");
  put("/vault/a", "a");
  put("/plain/b", "b");
  remove(id);
  const auto listed = volume_->read_directory(vault);
  ASSERT_TRUE(listed && listed->size() == 1);
  EXPECT_EQ(rename(vault, "a", vault, "z"), Errc::not_found);
  EXPECT_EQ(rename(vault, listed->front().name, vault, "z"), Errc::no_key);
  EXPECT_EQ(rename(plain, "b", vault, "a"), Errc::no_key);
  EXPECT_EQ(rename(plain, "b", vault, "a", kNoReplace), Errc::no_key);
  EXPECT_EQ(rename(plain, "b", vault, "a", kExchange), Errc::not_found);
  EXPECT_EQ(rename(plain, "none", vault, "a"), Errc::not_found);
  EXPECT_EQ(rename(vault, listed->front().name, plain, "none", kExchange), Errc::not_found);
  EXPECT_EQ(rename(plain, "b", vault, listed->front().name, kNoReplace), Errc::exists);
}

// Three renames, some of them made durable: after a crash the names are as they were after one of
// them, and not before the last that was durable.
TEST_F(VolumeRename, a_crash_leaves_the_names_of_one_moment) {
  std::array<u32, 4> seen{};
  for (u64 seed = 1; seed <= 64; ++seed) {
    const std::string sub = "/sub" + std::to_string(seed);
    const std::array<std::string, 3> names{sub + "/one", sub + "/two", sub + "/moved"};
    const InodeId directory = this->directory(sub);
    put(names[0], "1");
    put(names[1], "2");
    ASSERT_TRUE(volume_->sync());
    std::size_t durable = 0;
    const auto step = [&](std::size_t number, Errc result) {
      ASSERT_EQ(result, Errc{});
      if ((seed >> (number - 1) & 1) == 0) return;
      ASSERT_TRUE(volume_->sync());
      durable = number;
    };
    step(1, rename(directory, "one", directory, "moved"));
    step(2, rename(directory, "two", directory, "one"));
    step(3, rename(directory, "moved", directory, "one", kExchange));
    crash(seed);
    // "one", "two", "moved" after each step; '-' is none.
    static constexpr std::array<std::string_view, 4> kMoments{"12-", "-21", "2-1", "1-2"};
    std::string now;
    for (const std::string& name : names)
      now += resolve(*volume_, name) ? content(name) : std::string("-");
    const std::size_t moment =
        static_cast<std::size_t>(std::ranges::find(kMoments, now) - kMoments.begin());
    ASSERT_LT(moment, kMoments.size()) << now << ", seed " << seed;
    ASSERT_GE(moment, durable) << now << ", seed " << seed;
    ++seen[moment];
    expect_clean();
  }
  for (const u32 times : seen) EXPECT_GT(times, 0U);
}

// Two threads move a directory each into the other's, and back to where no other lock is shared; a
// third renames a file between them.
TEST_F(VolumeRename, threads_that_move_directories_into_each_other_make_no_loop) {
  const InodeId p = directory("/p"), q = directory("/q");
  const InodeId a = directory("/p/a"), b = directory("/q/b");
  put("/p/a/file", "f");
  std::atomic<u64> moved{0}, loops{0};
  std::atomic<bool> stop{false};
  const auto count = [&](const Result<void>& result) {
    if (result) {
      ++moved;
    } else if (result.error().code == Errc::invalid) {
      ++loops;
    } else {
      EXPECT_EQ(result.error().code, Errc::not_found) << result.error().what;
    }
  };
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    while (!stop) {
      count(volume_->rename(p, "a", b, "a"));
      count(volume_->rename(b, "a", p, "a"));
    }
  });
  threads.emplace_back([&] {
    while (!stop) {
      count(volume_->rename(q, "b", a, "b"));
      count(volume_->rename(a, "b", q, "b"));
    }
  });
  threads.emplace_back([&] {
    while (!stop) {
      count(volume_->rename(a, "file", b, "file"));
      count(volume_->rename(b, "file", a, "file"));
    }
  });
  // Until they have met often enough; the bound is of a hang.
  const u64 deadline = system_env().monotonic_ns() + u64{100} * 1'000'000'000;
  while ((loops < 20 || moved < 500) && system_env().monotonic_ns() < deadline)
    std::this_thread::yield();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(loops, 20U) << "no move was refused: the threads did not meet";
  EXPECT_TRUE(volume_->lookup(a, "file"));
  EXPECT_EQ(number("/p/a"), a);
  EXPECT_EQ(number("/q/b"), b);
}

// The system's, and a call where a rename looks at the clock: between its checks and its change.
class ClockEnv final : public Env {
 public:
  u64 monotonic_ns() override { return system_env().monotonic_ns(); }
  u64 realtime_ns() override {
    if (armed.exchange(false)) at_clock();
    return system_env().realtime_ns();
  }
  void random(MutableBytes bytes) override { system_env().random(bytes); }
  std::atomic<bool> armed{false};
  std::function<void()> at_clock;
};

TEST_F(VolumeRename, two_moves_that_together_would_make_a_loop_see_each_other) {
  const InodeId p = directory("/p"), q = directory("/q");
  const InodeId a = directory("/p/a"), b = directory("/q/b");
  ASSERT_TRUE(volume_->close());
  ClockEnv env;
  auto opened = Volume::open(device_, options_, env);
  ASSERT_TRUE(opened);
  volume_ = std::move(*opened);
  std::atomic<bool> ended{false};
  Errc other{};
  std::thread thread;
  env.at_clock = [&] {
    thread = std::thread([&] {
      other = rename(q, "b", a, "b");
      ended = true;
    });
    // It may not end before this one; if it does, that is soon.
    const u64 deadline = system_env().monotonic_ns() + 100'000'000;
    while (!ended && system_env().monotonic_ns() < deadline) std::this_thread::yield();
  };
  env.armed = true;
  EXPECT_EQ(rename(p, "a", b, "a"), Errc{});
  thread.join();
  EXPECT_EQ(other, Errc::invalid);
  EXPECT_EQ(number("/q/b/a"), a);
}

using DamagedNames = CheckTest;

TEST_F(DamagedNames, rename_of_a_name_that_leads_nowhere_is_an_error) {
  erase_record(inode_key(small_));
  open_again();
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "small", kRootInode, "x")), Errc::damaged);
  EXPECT_EQ(code_of(volume_->rename(kRootInode, "plain", kRootInode, "small")), Errc::damaged);
  volume_.reset();  // not for the check at the end
}

}  // namespace
}  // namespace latchkey::tests
