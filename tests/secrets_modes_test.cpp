// Goal: after every mode of removal, on every path that leads out of it, memory holds what the
// mode's row allows and nothing else (K3): under soft what derives keys, under sealed the keys of
// those inside and no other, else nothing; and nothing at all after the last close.
// Method: each mode on each path, in the arena that the process has (the suite runs it in both).
// The whole process is searched for pieces of eight bytes: the master, its HMAC states, keys and
// round keys of extents of an open file and of a closed one, the key that a sealed file writes
// under, keys of names of an open directory and of a closed one. Each was found before, else the
// search is blind. What is found is printed.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>

#include "base/no_memory.h"
#include "cli/load.h"
#include "cli/session_needles.h"
#include "tests/support/own_new.h"
#include "tests/support/spare_device.h"
#include "tests/support/volume_fixture.h"

namespace {

thread_local constinit bool counting = false;
thread_local constinit unsigned long long allocations_left = 0;  // before one fails, once

}  // namespace

namespace latchkey::tests {

void* own_allocate(std::size_t size, std::size_t align) noexcept {
  const bool fails = counting && allocations_left-- == 0;
  return fails ? nullptr : from_malloc(size, align);
}

// Apart, or a compiler that sees only this half of a pair takes it for a mistake.
[[gnu::noinline]] void own_release(void* memory) noexcept { std::free(memory); }

namespace {

using namespace volume;  // NOLINT: the whole file is about it
using cli::MemoryScan;
using keymgr::KeyState;
using keymgr::RemovalMode;
using Groups = std::map<std::string, MemoryScan::Group>;

constexpr Caller kOther{2000};
constexpr std::string_view kClosed = "closed_", kWritten = "written_";

class SecretsModes : public VolumeTest, public testing::WithParamInterface<RemovalMode> {
 protected:
  void SetUp() override {
    u64 pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    if (pages * 4 * kKiB > 1024 * kGiB) GTEST_SKIP() << "a sanitizer's shadow is too large";
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
    ASSERT_TRUE(volume_->close());
    auto opened = Volume::open(spare_, options_, system_env());
    ASSERT_TRUE(opened);
    volume_ = std::move(*opened);
    make_scene();
  }
  void TearDown() override {
    if (volume_) (void)volume_->close();
    volume_.reset();
  }

  void add_key_by(Caller who) {
    auto id = key_.add(*volume_, who);
    ASSERT_TRUE(id);
    id_ = *id;
  }

  // Two files and two directories: one of each stays open. Both files have dirty pages.
  void make_scene() {
    {
      auto master = key_.in_arena();
      ASSERT_TRUE(master && needles_.add_master(master->bytes()));
      note_found("master");
    }
    add_key_by(kUser);
    const auto vault = make_directory(*volume_, kUser, "/vault");
    ASSERT_TRUE(vault && volume_->set_policy(kUser, *vault, id_));
    ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/in"));
    ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/out"));
    put("/vault/in/open", std::string(300'000, 'a'));
    put("/vault/out/closed", std::string(300'000, 'b'));
    add_extents("/vault/out/closed", kClosed);
    add_names("/vault/out", kClosed);
    add_extents("/vault/in/open", "");
    add_names("/vault/in", "");
    ASSERT_TRUE(needles_.plant());
    for (const auto& name : {"name_key", "closed_name_key"}) note_found(name);
    needles_.unplant();
    file_ = open("/vault/in/open", {.write = true});
    const auto directory =
        volume_->open_directory(kUser, *resolve(*volume_, "/vault/in"), "/vault/in");
    ASSERT_TRUE(directory);
    directory_ = *directory;
    EXPECT_EQ(content(file_).size(), 300'000U);
    for (const auto& name :
         {"hkdf_state", "extent_key", "round_key", "closed_extent_key", "closed_round_key"})
      note_found(name);
    append(file_, "dirty");
    const HandleId closed = open("/vault/out/closed", {.write = true});
    append(closed, "dirty, too");
    close(closed);
  }

  void add_extents(std::string_view path, std::string_view whose) {
    const HandleId handle = open(path, {.write = true});
    add_extents(handle, whose);
    (void)content(handle);  // its keys are in slots now
    close(handle);
  }
  void add_extents(HandleId handle, std::string_view whose) {
    const auto rows = volume_->map(handle);
    ASSERT_TRUE(rows);
    for (const MapRow& row : *rows) ASSERT_TRUE(needles_.add_extent(row.nonce, whose));
  }
  void add_names(std::string_view path, std::string_view whose) {
    const auto inode = resolve(*volume_, path);
    ASSERT_TRUE(inode);
    const auto stat = volume_->stat(*inode);
    ASSERT_TRUE(stat && needles_.add_names(stat->nonce, whose));
  }

  // Each needle of the group lies in the arena: it would be found again.
  void note_found(const std::string& name) {
    for (const MemoryScan::Group& group : needles_.scan_arena()) {
      if (group.name != name) continue;
      ASSERT_GT(group.needles, 0U) << name;
      ASSERT_EQ(group.found_now, group.needles) << "the scan is blind to a " << name;
      return;
    }
    FAIL() << "no needles: " << name;
  }

  void close_all() {
    (void)volume_->close_handle(file_);
    (void)volume_->close_handle(directory_);
    inside_ = false;
  }
  // Of safe nobody may be inside.
  void make_ready() {
    if (row().refuse_when_busy) close_all();
  }
  const keymgr::RemovalRow& row() const { return keymgr::removal_row(GetParam()); }
  Result<RemovalReport> remove_by(Caller who) { return volume_->remove_key(who, id_, GetParam()); }

  // What the row allows in that state of the key, as long as somebody is inside.
  bool allowed(const std::string& group, KeyState state) const {
    if (group == "master" || state == KeyState::absent) return false;  // add has wiped the master
    if (state == KeyState::present || row().stays == keymgr::Stays::master) return true;
    // Dirty is busy, too: a closed file that no memory was left to flush keeps its own keys.
    return row().stays == keymgr::Stays::own_keys && group != "hkdf_state" &&
           (out_of_memory_ || !group.starts_with(kClosed));
  }
  void expect_row(const std::string& path, bool whole = true) {
    const KeyState state = volume_ ? this->state(id_) : KeyState::absent;
    std::vector<MemoryScan::Group> groups;
    if (whole) {
      auto scanned = needles_.scan();
      ASSERT_TRUE(scanned);
      groups = std::move(*scanned);
    } else {
      groups = needles_.scan_arena();
    }
    std::string found;
    for (const MemoryScan::Group& group : groups) {
      if (!allowed(group.name, state)) {
        EXPECT_EQ(group.found_now, 0U) << path << ": " << group.name;
      }
      // What goes on must have what it goes on with.
      const bool needed = (group.name == "hkdf_state" && allowed(group.name, state)) ||
                          (group.name == "extent_key" && inside_ && state != KeyState::absent &&
                           row().stays == keymgr::Stays::own_keys);
      if (needed) {
        EXPECT_GT(group.found_now, 0U) << path << ": " << group.name;
      }
      if (group.found_now == 0) continue;
      found += (found.empty() ? "" : ", ") + group.name + " " + std::to_string(group.found_now) +
               " of " + std::to_string(group.needles);
    }
    if (whole)
      std::printf("| %s | %s | %s | %s |\n", std::string(row().name).c_str(), path.c_str(),
                  std::string(keymgr::name_of(state)).c_str(),
                  found.empty() ? "nothing" : found.c_str());
  }
  // Whoever may go on does so, under keys that were not there before.
  void write_on() {
    if (!inside_ || row().later_io != keymgr::LaterIo::succeeds) return;
    append(file_, std::string(200'000, 'c'));
    ASSERT_TRUE(volume_->fsync(file_));
    EXPECT_EQ(content(file_).size(), 500'005U);
    add_extents(file_, kWritten);
  }
  void leave_and_expect_nothing(const std::string& path) {
    close_all();
    EXPECT_EQ(state(id_), KeyState::absent);
    expect_row(path + ", last close");
  }

  SpareDevice spare_{device_, counting};
  const cli::ScratchKey key_ = cli::ScratchKey::create(system_env());
  cli::SessionNeedles needles_{system_env()};
  crypto::KeyId id_;
  HandleId file_{}, directory_{};
  bool inside_ = true;
  bool out_of_memory_ = false;
};

TEST_P(SecretsModes, a_removal_that_returns) {
  make_ready();
  ASSERT_TRUE(remove_by(kUser));
  expect_row("returns");
  write_on();
  expect_row("returns, those inside go on");
  leave_and_expect_nothing("returns");
}

TEST_P(SecretsModes, a_removal_whose_writeout_fails) {
  make_ready();
  device_.inject({.kind = engine::OpKind::write, .sticky = true});
  const auto removed = remove_by(kUser);
  EXPECT_EQ(removed.has_value(), row().claim_first);
  EXPECT_EQ(state(id_) == KeyState::present, !row().claim_first);
  expect_row("EIO in writeout");
  device_.clear_faults();
  if (!row().claim_first) {
    ASSERT_TRUE(remove_by(kUser));
    expect_row("EIO in writeout, tried again");
  }
  leave_and_expect_nothing("EIO in writeout");
}

TEST_P(SecretsModes, a_removal_on_a_volume_that_stops) {
  make_ready();
  device_.inject({.kind = engine::OpKind::flush, .sticky = true});
  const auto removed = remove_by(kUser);
  EXPECT_EQ(removed.has_value(), row().claim_first);
  expect_row("EIO in a commit");
  if (!row().claim_first) {
    ASSERT_TRUE(remove_by(kUser));  // loses what is dirty, and says so
    expect_row("volume has stopped");
  }
  leave_and_expect_nothing("volume has stopped");
}

TEST_P(SecretsModes, a_last_close_that_cannot_write) {
  if (row().stays == keymgr::Stays::nothing) GTEST_SKIP() << "nobody can write any more";
  ASSERT_TRUE(remove_by(kUser));
  write_on();
  append(file_, "dirty again");
  device_.inject({.kind = engine::OpKind::write, .sticky = true});
  leave_and_expect_nothing("EIO");
}

// Nothing has changed where it fails, so the next one is tried on the same volume.
TEST_P(SecretsModes, a_removal_whose_nth_allocation_fails) {
  make_ready();
  unsigned long long failed = 0;
  for (;; ++failed) {
    ASSERT_LT(failed, 20'000U);
    allocations_left = failed;
    out_of_memory_ = true;
    const auto removed = or_no_memory([&]() -> Result<void> {
      counting = true;
      const auto done = remove_by(kUser);
      counting = false;
      LK_TRYV(done);
      return {};
    });
    counting = false;
    if (removed) break;  // with all that it asked for, or without what it can do without
    ASSERT_EQ(removed.error().code, Errc::no_memory);
    ASSERT_NE(state(id_), KeyState::absent) << "it has removed the key all the same";
    expect_row("", false);
  }
  out_of_memory_ = false;
  EXPECT_GT(failed, 3U);
  expect_row("an allocation fails, " + std::to_string(failed) + " times");
  leave_and_expect_nothing("an allocation fails");
}

TEST_P(SecretsModes, a_removal_that_leaves_the_key_to_another_user) {
  make_ready();
  add_key_by(kOther);
  const auto removed = remove_by(kUser);
  ASSERT_TRUE(removed);
  EXPECT_TRUE(removed->other_users);
  EXPECT_EQ(state(id_), KeyState::present);
  expect_row("another user's claim stays");
  ASSERT_TRUE(remove_by(kOther));
  expect_row("another user's claim goes");
  leave_and_expect_nothing("another user's claim goes");
}

TEST_P(SecretsModes, a_volume_that_is_closed_with_handles_open) {
  make_ready();
  ASSERT_TRUE(remove_by(kUser));
  write_on();
  (void)volume_->close();
  volume_.reset();
  expect_row("volume closed");
}

// What a child finds in itself, while the key is present and after its removal.
TEST_P(SecretsModes, a_forked_child_has_nothing) {
  const auto found_by_child = [&] {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
      const auto groups = needles_.scan();
      if (!groups) ::_exit(99);
      for (const MemoryScan::Group& group : *groups)
        if (group.found_now != 0) ::_exit(1);
      ::_exit(0);
    }
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  note_found("hkdf_state");
  EXPECT_EQ(found_by_child(), 0) << "while the key is present";
  make_ready();
  ASSERT_TRUE(remove_by(kUser));
  write_on();
  EXPECT_EQ(found_by_child(), 0) << "after the removal";
  expect_row("a child was forked");
  leave_and_expect_nothing("a child was forked");
}

INSTANTIATE_TEST_SUITE_P(Each, SecretsModes,
                         testing::Values(RemovalMode::soft, RemovalMode::sealed, RemovalMode::safe,
                                         RemovalMode::sync, RemovalMode::freeze, RemovalMode::deny,
                                         RemovalMode::hard, RemovalMode::suspend),
                         [](const auto& chosen) {
                           return std::string(keymgr::removal_row(chosen.param).name);
                         });

class SecretsSafe : public SecretsModes {};

TEST_P(SecretsSafe, a_removal_that_is_refused) {
  const auto removed = remove_by(kUser);
  ASSERT_FALSE(removed);
  EXPECT_EQ(removed.error().code, Errc::busy);
  EXPECT_EQ(state(id_), KeyState::present);
  expect_row("refused, somebody is inside");
  close_all();
  ASSERT_TRUE(remove_by(kUser));
  expect_row("nobody is inside any more");
}

INSTANTIATE_TEST_SUITE_P(Safe, SecretsSafe, testing::Values(RemovalMode::safe));

}  // namespace
}  // namespace latchkey::tests
