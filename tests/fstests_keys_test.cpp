// Goal: what fstests generic/580, 581, 593 and 595 ask of a volume's keys is true of ours: what a
// key's states let through, whose claims count, and that nothing that was accepted is lost to a
// removal. Method: their steps through the library, in words of our own; suites bear their numbers.
// Each runs with our answers and with the kernel's (docs/conformance.md, "fstests").

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "tests/support/fstests_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;
using keymgr::RemovalMode;

constexpr Caller kRoot{0};
constexpr std::array kNeverLose = {RemovalMode::soft,   RemovalMode::sealed, RemovalMode::safe,
                                   RemovalMode::freeze, RemovalMode::deny,   RemovalMode::suspend};

crypto::KeyId id_of(u8 tag) {
  const auto id = keymgr::Keyring::identify(master_key(tag));
  EXPECT_TRUE(id);
  return id.value_or(crypto::KeyId{});
}

class Generic580 : public Fstest {
 protected:
  void expect_status(KeyState wanted, u32 claims, bool own) {
    const KeyReport report = volume_->key_status(kUser, id_);
    EXPECT_EQ(report.state, wanted);
    EXPECT_EQ(report.user_count, claims);
    EXPECT_EQ(report.added_by_self, own);
  }
  const crypto::KeyId id_ = id_of(7);
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic580, ::testing::Bool(), setting_name);

TEST_P(Generic580, a_key_is_absent_present_incompletely_removed_and_absent_again) {
  expect_status(KeyState::absent, 0, false);
  // A policy before its key: the kernel takes root's word for it.
  const InodeId early = directory("/early");
  EXPECT_EQ(code_of(volume_->set_policy(kRoot, early, id_)), compat() ? Errc{} : Errc::no_key);
  EXPECT_EQ(volume_->stat(early)->key_id == id_, compat());
  const InodeId dir = directory_under("/dir", add_key());
  remove(id_);
  EXPECT_EQ(volume_->stat(dir)->key_id, id_);
  EXPECT_EQ(open_error(dir, "file", {.write = true, .create = true}), Errc::no_key);
  expect_status(KeyState::absent, 0, false);
  EXPECT_EQ(add_key(), id_);
  put("/dir/file", "contents");
  expect_status(KeyState::present, 1, true);
  const RemovalReport first = remove(id_);
  EXPECT_FALSE(first.files_busy);
  expect_status(KeyState::absent, 0, false);
  EXPECT_EQ(open_error("/dir/file"), locked_name());
  EXPECT_EQ(open_error(dir, name_of_kind(dir, FileKind::regular)), Errc::no_key);

  add_key();
  put("/dir/file2", "foo");
  const HandleId handle = open("/dir/file", {});
  EXPECT_TRUE(remove(id_).files_busy);
  EXPECT_EQ(content(handle), "contents");
  expect_status(KeyState::incompletely_removed, 0, false);
  for (const DirEntry& entry : entries(dir)) {
    const bool busy = entry.inode == volume_->stat(handle)->inode;
    EXPECT_EQ(open_error(dir, entry.name), compat() && busy ? Errc{} : Errc::no_key) << entry.name;
  }
  // By plaintext: the kernel keeps the names above what is open.
  EXPECT_EQ(open_error(dir, "file2"), Errc::no_key);
  EXPECT_EQ(open_error(dir, "file"), compat() ? Errc{} : Errc::no_key);
  close(handle);
  EXPECT_EQ(state(id_), compat() ? KeyState::incompletely_removed : KeyState::absent);
  finish_removal(id_);
  EXPECT_EQ(open_error("/dir/file"), locked_name());
  EXPECT_EQ(code_of(volume_->remove_key(kUser, id_, RemovalMode::soft)), Errc::no_key);
  EXPECT_EQ(code_of(volume_->remove_key(kUser, id_of(99), RemovalMode::soft)), Errc::no_key);
}

class Generic581 : public Fstest {
 protected:
  KeyReport status() { return volume_->key_status(kUser, id_); }
  const crypto::KeyId id_ = id_of(7);
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic581, ::testing::Bool(), setting_name);

TEST_P(Generic581, a_user_needs_no_privilege_but_the_key) {
  const InodeId dir = directory("/dir");
  EXPECT_EQ(code_of(volume_->set_policy(kUser, dir, id_)), Errc::no_key);
  add_key();
  EXPECT_TRUE(volume_->set_policy(kUser, dir, id_));
  EXPECT_EQ(volume_->stat(dir)->key_id, id_);
  put("/dir/file", "contents");
  EXPECT_EQ(remove(id_).state, KeyState::absent);
}

TEST_P(Generic581, claims_of_several_users_count) {
  const InodeId dir = directory("/dir");
  EXPECT_EQ(add_key(kRoot), id_);
  EXPECT_EQ(code_of(volume_->remove_key(kUser, id_, RemovalMode::soft)), Errc::no_key);
  EXPECT_EQ(code_of(volume_->set_policy(kUser, dir, id_)), Errc::no_key);
  add_key();
  EXPECT_EQ(status().user_count, 2U);
  EXPECT_TRUE(status().added_by_self);
  EXPECT_TRUE(volume_->set_policy(kUser, dir, id_));
  const RemovalReport own = remove(id_);
  EXPECT_TRUE(own.other_users);
  EXPECT_EQ(volume_->key_status(kRoot, id_).user_count, 1U);
  add_key();
  EXPECT_EQ(code_of(volume_->remove_key(kUser, id_, RemovalMode::soft, true)), Errc::permission);
  EXPECT_EQ(volume_->key_status(kRoot, id_).user_count, 2U);
  const auto all = volume_->remove_key(kRoot, id_, RemovalMode::soft, true);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->state, KeyState::absent);
  EXPECT_FALSE(all->other_users);
}

TEST_P(Generic581, a_user_adds_as_many_keys_as_the_quota_allows) {
  options_.max_claims_per_uid = 5;
  reopen();
  for (u8 tag = 1; tag <= 5; ++tag) add_key_of(tag);
  EXPECT_EQ(code_of(volume_->add_key(kUser, master_key(6))), Errc::quota);
  EXPECT_TRUE(volume_->add_key({1001}, master_key(6)));  // another user's is his own
  EXPECT_EQ(code_of(volume_->add_key(kUser, master_key(6))), Errc::quota);
  add_key_of(5);  // a claim that is there already
  remove(id_of(1));
  add_key_of(6);
}

// Who has no claim is told of a key by the kernel alone, or where the volume is told to.
TEST_P(Generic581, the_status_of_another_users_key) {
  add_key(kRoot);
  EXPECT_EQ(status().state, compat() ? KeyState::present : KeyState::absent);
  EXPECT_EQ(status().user_count, compat() ? 1U : 0U);
  EXPECT_FALSE(status().added_by_self);
  options_.status_public = true;
  reopen();
  add_key(kRoot);
  EXPECT_EQ(status().state, KeyState::present);
  EXPECT_EQ(status().user_count, 1U);
}

class Generic593 : public Fstest {};
INSTANTIATE_TEST_SUITE_P(Setting, Generic593, ::testing::Bool(), setting_name);

// The kernel takes a key from its keyrings too; here there are bytes alone, from wherever.
TEST_P(Generic593, the_same_bytes_from_another_source_are_the_same_key) {
  const crypto::KeyId id = add_key();
  directory_under("/dir", id);
  put("/dir/file", "contents");
  remove(id);
  EXPECT_EQ(open_error("/dir/file"), locked_name());
  Heap other_source(64);
  std::ranges::fill(other_source, std::byte{7});
  const auto again = volume_->add_key({1001}, in_arena(other_source));
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, id);
  EXPECT_EQ(content("/dir/file"), "contents");
}

TEST_P(Generic593, what_is_no_key_or_another_one_opens_nothing) {
  const crypto::KeyId id = add_key();
  directory_under("/dir", id);
  put("/dir/file", "contents");
  remove(id);
  for (const std::size_t size : {1, 15, 65, 128})
    EXPECT_EQ(code_of(volume_->add_key(kUser, in_arena(raw_key(3, size)))), Errc::invalid) << size;
  Heap almost(64, std::byte{7});
  almost.back() ^= std::byte{1};
  const auto other = volume_->add_key(kUser, in_arena(almost));
  ASSERT_TRUE(other);
  EXPECT_NE(*other, id);
  EXPECT_EQ(state(id), KeyState::absent);
  EXPECT_EQ(open_error("/dir/file"), locked_name());
}

class Generic595 : public Fstest {
 protected:
  void SetUp() override {
    Fstest::SetUp();
    id_ = add_key();
    dir_ = directory_under("/dir", id_);
  }
  // In a loop, until `stop`; the door is open for a moment, else nobody ever gets in.
  std::thread remover(RemovalMode mode, std::atomic<bool>& stop) {
    return std::thread([this, mode, &stop] {
      while (!stop) {
        (void)volume_->remove_key(kUser, id_, mode);
        (void)volume_->add_key(kUser, master_key(7));
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    });
  }
  struct Counts {
    std::atomic<u64> accepted{0}, refused{0}, wrong{0};
  };
  // So long, and on a loaded machine until enough has happened, a minute at most.
  static bool goes_on(u64 begun, u64 ms, bool enough) {
    const u64 passed = (system_env().monotonic_ns() - begun) / 1'000'000;
    return passed < ms || (!enough && passed < 60'000);
  }
  // Opens, appends one byte, closes, over and over.
  void append_while(const std::function<bool()>& goes_on, Counts& counts) {
    while (goes_on()) {
      const auto handle = volume_->open_file(kUser, dir_, "file", {.write = true}, 0, "file");
      if (!handle) {
        const Errc code = code_of(handle);
        ++(code == Errc::no_key || code == locked_name() ? counts.refused : counts.wrong);
        continue;
      }
      const auto wrote = volume_->append(*handle, bytes_of("X"));
      const auto closed = volume_->close_handle(*handle);
      if (!closed || (!wrote && code_of(wrote) != Errc::no_key))
        ++counts.wrong;
      else
        ++(wrote ? counts.accepted : counts.refused);
    }
  }
  void race(RemovalMode mode, u64 ms) {
    put("/dir/file", "");
    std::atomic<bool> stop{false};
    Counts counts;
    std::thread keys = remover(mode, stop);
    const bool refuses = !keymgr::removal_row(mode).refuse_when_busy;
    const u64 begun = system_env().monotonic_ns();
    const auto more = [&] {
      return goes_on(begun, ms, counts.accepted > 30 && (counts.refused > 0 || !refuses));
    };
    std::thread other([&] { append_while(more, counts); });
    append_while(more, counts);
    other.join();
    stop = true;
    keys.join();
    add_key();
    EXPECT_EQ(counts.wrong, 0U);
    EXPECT_GT(counts.accepted, 30U);
    if (refuses) {
      EXPECT_GT(counts.refused, 0U);
    }
    EXPECT_TRUE(content("/dir/file") == std::string(counts.accepted, 'X'));
    reopen();
    add_key();
    EXPECT_TRUE(content("/dir/file") == std::string(counts.accepted, 'X'));
    EXPECT_EQ(remove(id_).state, KeyState::absent);
  }
  crypto::KeyId id_;
  InodeId dir_;
};
INSTANTIATE_TEST_SUITE_P(Setting, Generic595, ::testing::Bool(), setting_name);

TEST_P(Generic595, what_is_written_after_a_removal_is_there_when_the_key_is_back) {
  const HandleId handle = open("/dir/file");
  EXPECT_TRUE(remove(id_).files_busy);
  EXPECT_TRUE(volume_->write(handle, 0, bytes_of("contents\n")));
  close(handle);
  finish_removal(id_);
  add_key();
  EXPECT_EQ(content("/dir/file"), "contents\n");
  reopen();
  add_key();
  EXPECT_EQ(content("/dir/file"), "contents\n");
  EXPECT_TRUE(volume_->unlink(dir_, "file"));
}

// The modes that promise it; what each does to a write after the removal differs, what is lost does
// not.
TEST_P(Generic595, what_was_accepted_is_there_whatever_the_mode) {
  for (const RemovalMode mode : kNeverLose) {
    const keymgr::RemovalRow& row = keymgr::removal_row(mode);
    SCOPED_TRACE(row.name);
    const HandleId handle = open("/dir/file");
    append(handle, "before ");
    EXPECT_EQ(code_of(volume_->remove_key(kUser, id_, mode)),
              row.refuse_when_busy ? Errc::busy : Errc{});
    std::string wanted = "before after";
    if (state(id_) != KeyState::absent) {
      append(handle, "after");
    } else if (row.later_io == keymgr::LaterIo::waits) {
      std::thread writer([&] { append(handle, "after"); });
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
      add_key();
      writer.join();
    } else {
      EXPECT_EQ(code_of(volume_->append(handle, bytes_of("after"))), Errc::no_key);
      wanted = "before ";
    }
    close(handle);
    if (state(id_) == KeyState::present) remove(id_, mode);
    finish_removal(id_);
    add_key();
    EXPECT_EQ(content("/dir/file"), wanted);
    reopen();
    add_key();
    EXPECT_EQ(content("/dir/file"), wanted);
    EXPECT_TRUE(volume_->unlink(dir_, "file"));
  }
}

TEST_P(Generic595, no_accepted_byte_is_lost_to_removals_in_a_loop) {
  for (const RemovalMode mode : kNeverLose) {
    SCOPED_TRACE(keymgr::removal_row(mode).name);
    race(mode, mode == RemovalMode::soft ? 1000 : 400);
    add_key();
    EXPECT_TRUE(volume_->unlink(dir_, "file"));
  }
}

// An open that makes its file and meets the removal's door has made nothing.
TEST_P(Generic595, what_is_refused_has_left_no_name) {
  std::atomic<bool> stop{false};
  std::thread keys = remover(RemovalMode::soft, stop);
  u64 made = 0, refused = 0;
  const u64 begun = system_env().monotonic_ns();
  while (goes_on(begun, 500, made > 20 && refused > 20)) {
    const std::string name = "new" + std::to_string(made);
    const OpenFlags exclusive{.write = true, .create = true, .exclusive = true};
    const auto handle = volume_->open_file(kUser, dir_, name, exclusive, 0600, name);
    ++(handle ? made : refused);
    if (handle) {
      EXPECT_TRUE(volume_->close_handle(*handle));
    } else {
      EXPECT_EQ(code_of(handle), Errc::no_key) << name;
      if (code_of(handle) != Errc::no_key) break;
    }
  }
  stop = true;
  keys.join();
  add_key();
  EXPECT_GT(made, 20U);
  EXPECT_GT(refused, 20U);
  EXPECT_EQ(names(dir_).size(), made);
}

}  // namespace
}  // namespace latchkey::tests
