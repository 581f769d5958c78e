// Goal: the six modes that flush before they wipe do what design 3 says of them, through the one
// call with its deadline, its wait and its dry run. Method: each rule by name on a SimDevice; what
// waits, waits in a thread of its own. soft and hard: volume_keys_test.

#include <chrono>
#include <future>

#include "base/wait.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;
using keymgr::RemovalMode;
using std::chrono_literals::operator""s;

constexpr u64 kMillisecond = 1'000'000;

class VolumeRemoval : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
    id_ = vault();
  }
  Errc removal_error(const RemovalRequest& request, RemovalReport& report) {
    const auto removed = volume_->remove_key(kUser, id_, request, report);
    return removed ? Errc{} : removed.error().code;
  }
  RemovalReport removed(const RemovalRequest& request) {
    RemovalReport report;
    EXPECT_EQ(removal_error(request, report), Errc{});
    return report;
  }
  Errc append_error(HandleId handle) { return code_of(volume_->append(handle, bytes_of("late"))); }

  crypto::KeyId id_;
  const Heap raw_ = Heap(64, std::byte{7});
};

// What each of the modes that leave a key absent says to open handles afterwards.
class FlushingMode : public VolumeRemoval, public ::testing::WithParamInterface<RemovalMode> {};

TEST_P(FlushingMode, wipes_before_it_returns_loses_nothing_and_cuts_handles_off) {
  const HandleId handle = open("/vault/open");
  append(handle, "acknowledged");
  put("/vault/closed", "closed");
  const RemovalReport report = removed({.mode = GetParam()});
  EXPECT_EQ(report.state, KeyState::absent);
  EXPECT_EQ(report.bytes_flushed, 8192U);
  EXPECT_EQ(report.bytes_lost, 0U);
  EXPECT_TRUE(report.lost.empty());
  ASSERT_EQ(report.holders.size(), 1U);
  EXPECT_EQ(report.holders[0].path, "/vault/open");
  EXPECT_FALSE(report.files_busy);
  EXPECT_FALSE(arena_holds(needles_of(raw_).hkdf_inner));
  EXPECT_EQ(append_error(handle), Errc::no_key);
  EXPECT_EQ(read_error(handle), Errc::no_key);
  EXPECT_EQ(code_of(volume_->fsync(handle)), Errc{}) << "nothing of it is dirty";
  EXPECT_EQ(open_error("/vault/closed"), Errc::no_key);
  add_key();
  append(handle, " and more");
  EXPECT_EQ(content(handle), "acknowledged and more");
  close(handle);
  crash(1);
  add_key();
  EXPECT_EQ(content("/vault/closed"), "closed");
}

TEST_P(FlushingMode, goes_back_when_the_device_refuses_the_flush) {
  const HandleId handle = open("/vault/open");
  append(handle, "acknowledged");
  device_.inject({.kind = engine::OpKind::write, .sticky = true});
  RemovalReport report;
  EXPECT_EQ(removal_error({.mode = GetParam()}, report), Errc::io);
  EXPECT_EQ(state(id_), KeyState::present);
  EXPECT_TRUE(volume_->key_status(kUser, id_).added_by_self);
  device_.clear_faults();
  append(handle, ", more");
  EXPECT_EQ(content(handle), "acknowledged, more");
  put("/vault/other", "the door is open");
  EXPECT_EQ(code_of(volume_->fsync(handle)), Errc::io) << "the error is told once";
  EXPECT_EQ(removed({.mode = GetParam()}).state, KeyState::absent);
  add_key();
  EXPECT_EQ(content(handle), "acknowledged, more");
  close(handle);
}

TEST_P(FlushingMode, is_applied_on_top_of_soft_and_of_sealed) {
  for (const RemovalMode first : {RemovalMode::soft, RemovalMode::sealed}) {
    const HandleId handle = open("/vault/open", {.write = true, .create = true, .truncate = true});
    append(handle, "before");
    EXPECT_EQ(removed({.mode = first}).state, KeyState::incompletely_removed);
    append(handle, ", after");
    const RemovalReport report = removed({.mode = GetParam()});
    EXPECT_EQ(report.state, KeyState::absent);
    EXPECT_EQ(report.bytes_lost, 0U);
    EXPECT_EQ(append_error(handle), Errc::no_key);
    add_key();
    EXPECT_EQ(content(handle), "before, after");
    close(handle);
  }
}

INSTANTIATE_TEST_SUITE_P(modes, FlushingMode,
                         ::testing::Values(RemovalMode::sync, RemovalMode::freeze,
                                           RemovalMode::deny),
                         [](const auto& chosen) {
                           return std::string(keymgr::removal_row(chosen.param).name);
                         });

TEST_F(VolumeRemoval, safe_refuses_with_the_holders_and_changes_nothing) {
  const HandleId handle = open("/vault/open");
  append(handle, "dirty");
  RemovalReport report;
  EXPECT_EQ(removal_error({.mode = RemovalMode::safe}, report), Errc::busy);
  ASSERT_EQ(report.holders.size(), 1U);
  EXPECT_EQ(report.holders[0].dirty_bytes, 4096U);
  EXPECT_EQ(state(id_), KeyState::present);
  append(handle, " still");
  const HandleId second = open("/vault/open", {});
  close(handle);
  EXPECT_EQ(removal_error({.mode = RemovalMode::safe}, report), Errc::busy);
  close(second);
  report = removed({.mode = RemovalMode::safe});
  EXPECT_EQ(report.state, KeyState::absent);
  EXPECT_EQ(report.bytes_flushed, 4096U);
  add_key();
  EXPECT_EQ(content("/vault/open"), "dirty still");
}

TEST_F(VolumeRemoval, safe_counts_an_open_directory_as_busy) {
  const auto directory = volume_->open_directory(kUser, *resolve(*volume_, "/vault"), "/vault");
  ASSERT_TRUE(directory);
  RemovalReport report;
  EXPECT_EQ(removal_error({.mode = RemovalMode::safe}, report), Errc::busy);
  close(*directory);
  EXPECT_EQ(removed({.mode = RemovalMode::safe}).state, KeyState::absent);
}

TEST_F(VolumeRemoval, safe_waits_for_the_last_handle_if_asked_to) {
  const HandleId handle = open("/vault/open");
  auto waiting = std::async(
      std::launch::async, [&] { return removed({.mode = RemovalMode::safe, .wait = true}).state; });
  EXPECT_EQ(waiting.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  append(handle, "goes on");
  close(handle);
  ASSERT_EQ(waiting.wait_for(30s), std::future_status::ready);
  EXPECT_EQ(waiting.get(), KeyState::absent);
}

TEST_F(VolumeRemoval, safe_turns_into_deny_at_its_deadline) {
  const HandleId handle = open("/vault/open");
  append(handle, "whole");
  const RemovalReport report =
      removed({.mode = RemovalMode::safe, .wait = true, .deadline_ns = 20 * kMillisecond});
  EXPECT_EQ(report.mode, RemovalMode::deny);
  EXPECT_EQ(report.state, KeyState::absent);
  EXPECT_EQ(append_error(handle), Errc::no_key);
  add_key();
  EXPECT_EQ(content(handle), "whole");
  close(handle);
}

TEST_F(VolumeRemoval, soft_that_waits_returns_when_the_last_handle_is_closed) {
  const HandleId handle = open("/vault/open");
  append(handle, "kept");
  auto waiting = std::async(
      std::launch::async, [&] { return removed({.mode = RemovalMode::soft, .wait = true}).state; });
  EXPECT_EQ(waiting.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  close(handle);
  ASSERT_EQ(waiting.wait_for(30s), std::future_status::ready);
  EXPECT_EQ(waiting.get(), KeyState::absent);
  add_key();
  EXPECT_EQ(content("/vault/open"), "kept");
}

TEST_F(VolumeRemoval, soft_turns_into_the_chosen_mode_at_its_deadline) {
  const HandleId handle = open("/vault/open");
  append(handle, "gone");
  const RemovalReport report = removed({.mode = RemovalMode::soft,
                                        .wait = true,
                                        .deadline_ns = 20 * kMillisecond,
                                        .then = RemovalMode::hard});
  EXPECT_EQ(report.mode, RemovalMode::hard);
  EXPECT_EQ(report.state, KeyState::absent);
  EXPECT_EQ(report.bytes_lost, 4096U);
  ASSERT_EQ(report.lost.size(), 1U);
  EXPECT_EQ(report.lost[0].path, "/vault/open");
  EXPECT_EQ(report.lost[0].bytes, 4096U);
  EXPECT_EQ(code_of(volume_->close_handle(handle)), Errc::io);
}

TEST_F(VolumeRemoval, deadline_that_nobody_waits_for_is_kept_by_a_worker) {
  options_.inline_writeback = false;
  reopen();
  add_key();
  const HandleId handle = open("/vault/open");
  append(handle, "whole");
  EXPECT_EQ(removed({.mode = RemovalMode::soft, .deadline_ns = 20 * kMillisecond}).state,
            KeyState::incompletely_removed);
  for (int i = 0; i < 3000 && state(id_) != KeyState::absent; ++i) pause_for(10 * kMillisecond);
  EXPECT_EQ(state(id_), KeyState::absent);
  EXPECT_EQ(append_error(handle), Errc::no_key);
  add_key();
  EXPECT_EQ(content(handle), "whole");
  close(handle);
}

// A device that never takes what it is given leaves the dirty limit half used for good.
TEST_F(VolumeRemoval, deadline_is_kept_however_much_there_is_to_write) {
  options_.inline_writeback = false;
  options_.dirty_bytes_max = kMiB;
  reopen();
  add_key();
  const HandleId handle = open("/vault/open"), plain = open("/plain");
  EXPECT_EQ(removed({.mode = RemovalMode::soft, .deadline_ns = 100 * kMillisecond}).state,
            KeyState::incompletely_removed);
  device_.inject({.kind = engine::OpKind::write, .sticky = true});
  append(plain, std::string(640 * kKiB, 'p'));
  for (int i = 0; i < 1000 && state(id_) != KeyState::absent; ++i) pause_for(10 * kMillisecond);
  EXPECT_EQ(state(id_), KeyState::absent);
  device_.clear_faults();
  close(handle);
  EXPECT_EQ(code_of(volume_->close_handle(plain)), Errc::io) << "told once";
}

TEST_F(VolumeRemoval, deadline_of_what_ends_by_itself_is_refused) {
  RemovalReport report;
  for (const RemovalMode mode : {RemovalMode::deny, RemovalMode::soft}) {
    EXPECT_EQ(removal_error({.mode = mode, .deadline_ns = 1}, report), Errc::invalid);
    EXPECT_EQ(state(id_), KeyState::present);
  }
}

TEST_F(VolumeRemoval, dry_run_says_what_would_be_and_changes_nothing) {
  const HandleId handle = open("/vault/open");
  append(handle, std::string(9000, 'a'));
  put("/vault/closed", "dirty");
  for (const keymgr::RemovalRow& row : keymgr::removal_rows()) {
    SCOPED_TRACE(row.name);
    RemovalReport report;
    const Errc refused = removal_error({.mode = row.mode, .dry_run = true}, report);
    EXPECT_EQ(refused, row.refuse_when_busy ? Errc::busy : Errc{});
    EXPECT_TRUE(report.dry_run);
    EXPECT_EQ(report.holders.size(), 1U);
    EXPECT_EQ(state(id_), KeyState::present);
    EXPECT_EQ(volume_->facts().dirty_bytes, 16384U);
    if (row.refuse_when_busy) continue;
    const bool keeps = row.stays != keymgr::Stays::nothing;
    EXPECT_EQ(report.files_busy, keeps);
    EXPECT_EQ(report.state, keeps ? KeyState::incompletely_removed : KeyState::absent);
    const bool hard = row.mode == RemovalMode::hard;
    EXPECT_EQ(report.bytes_lost, hard ? 16384U : 0U);
    EXPECT_EQ(report.lost.size(), hard ? 2U : 0U);
    EXPECT_EQ(report.bytes_flushed, hard ? 0U : keeps ? 4096U : 16384U);
  }
  append(handle, "the handle never noticed");
  close(handle);
}

// --- suspend ------------------------------------------------------------------------------------

TEST_F(VolumeRemoval, suspend_parks_reads_and_writes_until_the_key_is_back) {
  const HandleId handle = open("/vault/open");
  append(handle, "before");
  EXPECT_EQ(removed({.mode = RemovalMode::suspend}).state, KeyState::absent);
  EXPECT_FALSE(arena_holds(needles_of(raw_).hkdf_inner));
  auto writer = std::async(std::launch::async, [&] { append(handle, ", after"); });
  EXPECT_EQ(writer.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  EXPECT_TRUE(volume_->stat(handle)) << "only reads and writes wait";
  EXPECT_TRUE(volume_->fsync(handle));
  EXPECT_EQ(open_error("/vault/open"), Errc::no_key) << "what takes a name never waits";
  EXPECT_EQ(code_of(volume_->truncate(handle, 0)), Errc::no_key);
  add_key();
  ASSERT_EQ(writer.wait_for(30s), std::future_status::ready);
  EXPECT_EQ(content(handle), "before, after");
  close(handle);
}

TEST_F(VolumeRemoval, suspend_gives_no_key_at_its_deadline_and_to_more_than_can_wait) {
  options_.parked_max = 1;
  reopen();
  add_key();
  const HandleId handle = open("/vault/open");
  append(handle, "before");
  removed({.mode = RemovalMode::suspend, .deadline_ns = 300 * kMillisecond});
  auto reader = std::async(std::launch::async, [&] { return read_error(handle); });
  EXPECT_EQ(reader.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  EXPECT_EQ(append_error(handle), Errc::no_key) << "the table is full";
  ASSERT_EQ(reader.wait_for(30s), std::future_status::ready);
  EXPECT_EQ(reader.get(), Errc::no_key);
  EXPECT_EQ(append_error(handle), Errc::no_key) << "and nobody waits any more";
  add_key();
  EXPECT_EQ(content(handle), "before");
  close(handle);
}

TEST_F(VolumeRemoval, suspended_calls_end_with_the_volume) {
  const HandleId handle = open("/vault/open");
  append(handle, "whole");
  removed({.mode = RemovalMode::suspend});
  auto reader = std::async(std::launch::async, [&] { return read_error(handle); });
  EXPECT_EQ(reader.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  EXPECT_TRUE(volume_->close());
  ASSERT_EQ(reader.wait_for(30s), std::future_status::ready);
  EXPECT_EQ(reader.get(), Errc::no_key);
  volume_.reset();
  open_again();
  add_key();
  EXPECT_EQ(content("/vault/open"), "whole");
}

TEST_F(VolumeRemoval, suspended_handles_are_refused_when_another_mode_is_put_on_top) {
  const HandleId handle = open("/vault/open");
  append(handle, "before");
  removed({.mode = RemovalMode::suspend});
  auto reader = std::async(std::launch::async, [&] { return read_error(handle); });
  EXPECT_EQ(reader.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  RemovalReport report;
  const auto stranger = volume_->remove_key({1001}, id_, {.mode = RemovalMode::deny}, report);
  EXPECT_EQ(code_of(stranger), Errc::no_key);
  EXPECT_EQ(removed({.mode = RemovalMode::deny}).state, KeyState::absent);
  ASSERT_EQ(reader.wait_for(30s), std::future_status::ready);
  EXPECT_EQ(reader.get(), Errc::no_key);
  close(handle);
}

}  // namespace
}  // namespace latchkey::tests
