// Goal: what a volume says and keeps when the device fails under it. A writeback error is told once
// to each handle that was open (errseq, as fstests generic/441 and 484 want it); a device that
// refuses everything makes writers fail, not hang; a failed flush or metadata write stops the
// volume (D4): no later fsync claims success; whatever happened, a store opened again has every
// byte that an fsync acknowledged. Method: a SimDevice with faults, and crashes that lose what was
// not flushed.

#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <map>

#include "tests/support/ledger.h"
#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"
#include "volume/page_memory.h"

namespace latchkey::tests {
namespace {

using engine::OpKind;
using namespace volume;  // NOLINT: the whole file is about it

std::string text_of(u64 size, u64 seed) {
  std::string text(size, ' ');
  std::mt19937_64 random(seed);
  for (char& letter : text) letter = static_cast<char>('a' + random() % 26);
  return text;
}

class VolumeFault : public VolumeTest {
 protected:
  // A fault meets the op that the test means: of an fsync the data, before the block of the log.
  VolumeFault() : VolumeTest({.size_bytes = 128 * kMiB, .shuffle = false}) {}
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
    vault();
    EXPECT_TRUE(volume_->sync());
  }
  // Open again after what happened to the device, which is in order now; with the key.
  void crash_and_unlock(u64 seed) {
    device_.clear_faults();
    device_.limit_pages(~u64{0});
    crash(seed);
    if (volume_) add_key();
  }
  Errc fsync(HandleId handle) { return code_of(volume_->fsync(handle)); }
  void refuse_writes(bool sticky) { device_.inject({.kind = OpKind::write, .sticky = sticky}); }
};

// --- writeback errors ---------------------------------------------------------------------------

TEST_F(VolumeFault, writeback_error_is_told_once_to_each_open_handle) {
  const HandleId writer = open("/vault/file");
  const HandleId reader = open("/vault/file", {});
  const HandleId other = open("/vault/other");
  append(writer, "acknowledged");
  refuse_writes(false);
  EXPECT_EQ(fsync(writer), Errc::io);
  EXPECT_EQ(fsync(writer), Errc{}) << "told, and written in the meantime";
  EXPECT_EQ(fsync(reader), Errc::io) << "was open when it happened";
  EXPECT_EQ(fsync(reader), Errc{});
  EXPECT_EQ(fsync(other), Errc{}) << "nothing of its file failed";
  const HandleId later = open("/vault/file");
  EXPECT_EQ(fsync(later), Errc{}) << "somebody has been told before it was opened";
  for (const HandleId handle : {writer, reader, other, later}) close(handle);
  crash_and_unlock(1);
  EXPECT_EQ(content("/vault/file"), "acknowledged");
}

TEST_F(VolumeFault, close_tells_an_error_that_its_handle_has_not_heard) {
  const HandleId told = open("/vault/file");
  const HandleId untold = open("/vault/file");
  append(told, "text");
  refuse_writes(false);
  EXPECT_EQ(fsync(told), Errc::io);
  close(told);
  EXPECT_EQ(code_of(volume_->close_handle(untold)), Errc::io);
  EXPECT_EQ(content("/vault/file"), "text");
}

TEST_F(VolumeFault, error_that_no_handle_heard_waits_for_the_next_open) {
  put("/vault/file", "text");
  refuse_writes(false);
  EXPECT_EQ(code_of(volume_->sync()), Errc::io);  // by nobody's handle
  const HandleId first = open("/vault/file");
  const HandleId second = open("/vault/file");
  EXPECT_EQ(fsync(first), Errc::io);
  EXPECT_EQ(fsync(first), Errc{});
  EXPECT_EQ(fsync(second), Errc::io) << "it was opened while nobody had heard";
  const HandleId third = open("/vault/file");
  EXPECT_EQ(fsync(third), Errc{});
  for (const HandleId handle : {first, second, third}) close(handle);
}

TEST_F(VolumeFault, error_is_told_although_a_later_flush_wrote_everything) {
  const HandleId handle = open("/vault/file");
  append(handle, "text");
  refuse_writes(false);
  EXPECT_FALSE(volume_->sync());
  EXPECT_TRUE(volume_->sync());
  EXPECT_EQ(fsync(handle), Errc::io);
  EXPECT_EQ(fsync(handle), Errc{});
  close(handle);
}

TEST_F(VolumeFault, each_failure_of_fsync_is_a_new_error) {
  const HandleId handle = open("/vault/file");
  append(handle, "text");
  refuse_writes(true);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(fsync(handle), Errc::io);
  device_.clear_faults();
  EXPECT_EQ(fsync(handle), Errc{});
  close(handle);
  crash_and_unlock(1);
  EXPECT_EQ(content("/vault/file"), "text");
}

// A retry seals again: under new nonces, whatever the refused write left on the device (K1).
TEST_F(VolumeFault, retries_never_seal_twice_under_one_nonce) {
  NonceLedger ledger;
  const HandleId handle = open("/vault/file");
  u32 refused = 0;
  for (u64 round = 0; round < 20; ++round) {
    ASSERT_TRUE(volume_->write(handle, round * 1000, bytes_of(text_of(30000, round))));
    refuse_writes(false);
    // Where that met the log's block, a commit did.
    const Errc told = fsync(handle);
    ASSERT_TRUE(told == Errc::io || told == Errc{});
    refused += told == Errc::io ? 1 : 0;
    ASSERT_EQ(fsync(handle), Errc{});
    const auto wrong = observe_device(ledger, device_);
    ASSERT_TRUE(wrong) << wrong.error().what;
    ASSERT_TRUE(wrong->empty()) << wrong->front();
  }
  EXPECT_GT(refused, 0U);
  EXPECT_GT(ledger.pairs(), 20U);
  close(handle);
}

// The map's nodes cannot be read when the data has landed: the pages stay dirty with all the space
// that was promised to them, and the next flush gets them down.
TEST_F(VolumeFault, map_that_cannot_be_read_at_writeout_costs_nothing) {
  HandleId handle = open("/vault/file");
  write_map_of_many_nodes(handle);
  close(handle);
  reopen();
  add_key();
  put("/vault/other", "reads the bitmap and the way to the end of the extent table");
  ASSERT_TRUE(volume_->sync());
  handle = open("/vault/file");
  const std::string page = text_of(kPageBytes, 1);
  ASSERT_TRUE(volume_->write(handle, 3001 * kPageBytes, bytes_of(page)));
  const u64 reserved = volume_->facts().space.blocks_reserved;
  // Both places of a node, for who asks what the log may carry and for the insert.
  for (const u64 after : {0, 1, 2, 3}) device_.inject({.kind = OpKind::read, .after = after});
  EXPECT_EQ(fsync(handle), Errc::io);
  device_.clear_faults();
  EXPECT_EQ(volume_->facts().space.blocks_reserved, reserved);
  EXPECT_EQ(fsync(handle), Errc{});
  EXPECT_EQ(volume_->facts().space.blocks_reserved, 0U);
  std::string back(kPageBytes, ' ');
  EXPECT_TRUE(volume_->read(handle, 3001 * kPageBytes, std::as_writable_bytes(std::span(back))));
  EXPECT_EQ(back, page);
  close(handle);
}

// --- a device that refuses everything ------------------------------------------------------------

// Writes until an error, or gives up after far more than memory holds.
Error write_until_refused(Volume& volume, HandleId handle, std::string& accepted) {
  for (u64 i = 0; i < 10000; ++i) {
    const std::string piece = text_of(10000, i);
    const auto wrote = volume.append(handle, bytes_of(piece));
    if (!wrote) return wrote.error();
    accepted += piece;
  }
  return Error{Errc::invalid, "memory has no bound"};
}

class FullMemory : public VolumeFault, public ::testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    VolumeFault::SetUp();
    options_.inline_writeback = GetParam();
    options_.dirty_bytes_max = 256 * kKiB;
    reopen();
    add_key();
  }
};

TEST_P(FullMemory, writers_hear_of_a_device_that_refuses_all_data_and_do_not_hang) {
  const HandleId handle = open("/vault/file");
  refuse_writes(true);
  std::string accepted;
  auto writer = std::async(std::launch::async,
                           [&] { return write_until_refused(*volume_, handle, accepted); });
  ASSERT_EQ(writer.wait_for(std::chrono::seconds(30)), std::future_status::ready) << "it hangs";
  EXPECT_EQ(writer.get().code, Errc::io);
  EXPECT_FALSE(accepted.empty());
  EXPECT_EQ(content(handle).substr(0, accepted.size()), accepted) << "memory still has it";
  const HandleId other = open("/vault/other");
  EXPECT_EQ(code_of(volume_->write(other, 0, bytes_of(text_of(300000, 1)))), Errc::io);

  device_.clear_faults();
  EXPECT_EQ(fsync(handle), Errc::io) << "what happened is told";
  EXPECT_EQ(fsync(handle), Errc{});
  close(handle);
  (void)volume_->close_handle(other);
  crash_and_unlock(1);
  EXPECT_EQ(content("/vault/file").substr(0, accepted.size()), accepted);
}

// The last one out of a removed key cannot write what it has: it says so, and the key goes all the
// same, with the memory.
TEST_P(FullMemory, closes_and_removals_finish_on_a_device_that_refuses_all_data) {
  const crypto::KeyId id = *volume_->add_key(kUser, master_key(7));
  put("/vault/idle", text_of(2 * kPageBytes, 1));
  const HandleId handle = open("/vault/file");
  const HandleId silent = open("/vault/file", {});
  ASSERT_EQ(fsync(handle), Errc{});
  put("/vault/idle", text_of(2 * kPageBytes, 2));
  refuse_writes(true);
  auto all = std::async(std::launch::async, [&] {
    std::string accepted;
    EXPECT_EQ(write_until_refused(*volume_, handle, accepted).code, Errc::io);
    const RemovalReport report = remove(id);
    EXPECT_EQ(report.state, keymgr::KeyState::incompletely_removed);
    EXPECT_EQ(report.holders.size(), 2U);
    EXPECT_EQ(report.files_lost, 1U) << "idle";
    EXPECT_EQ(report.bytes_lost, 2 * kPageBytes);
    EXPECT_EQ(code_of(volume_->close_handle(handle)), Errc::io);
    EXPECT_EQ(state(id), keymgr::KeyState::incompletely_removed);
    EXPECT_EQ(code_of(volume_->close_handle(silent)), Errc::io);
    EXPECT_EQ(state(id), keymgr::KeyState::absent);
  });
  ASSERT_EQ(all.wait_for(std::chrono::seconds(30)), std::future_status::ready) << "it hangs";
  EXPECT_EQ(volume_->facts().dirty_bytes, 0U) << "nothing could ever write it";

  device_.clear_faults();
  put("/plain", "the volume goes on");
  EXPECT_TRUE(volume_->sync());
  crash_and_unlock(1);
  EXPECT_EQ(content("/vault/file"), "");
  EXPECT_EQ(content("/plain"), "the volume goes on");
}

TEST_P(FullMemory, hard_removal_counts_what_the_device_refused) {
  const crypto::KeyId id = *volume_->add_key(kUser, master_key(7));
  const HandleId handle = open("/vault/file");
  refuse_writes(true);
  std::string accepted;
  EXPECT_EQ(write_until_refused(*volume_, handle, accepted).code, Errc::io);
  const RemovalReport report = remove(id, keymgr::RemovalMode::hard);
  EXPECT_EQ(report.state, keymgr::KeyState::absent);
  EXPECT_EQ(report.files_lost, 1U);
  EXPECT_GE(report.bytes_lost, accepted.size());
  EXPECT_EQ(code_of(volume_->append(handle, bytes_of("more"))), Errc::no_key);
  EXPECT_EQ(volume_->facts().dirty_bytes, 0U);
  // Or no_key, of a worker that tried once more just after the wipe.
  const Errc told = code_of(volume_->close_handle(handle));
  EXPECT_TRUE(told == Errc::io || told == Errc::no_key) << static_cast<int>(told);
  device_.clear_faults();
  put("/plain", "the volume goes on");
  crash_and_unlock(1);
}

TEST_P(FullMemory, volume_on_a_device_that_refuses_everything_can_be_closed) {
  put("/vault/file", "acknowledged");
  ASSERT_TRUE(volume_->sync());
  const HandleId handle = open("/vault/file");
  refuse_writes(true);
  device_.inject({.kind = OpKind::flush, .sticky = true});
  std::string accepted;
  EXPECT_EQ(write_until_refused(*volume_, handle, accepted).code, Errc::io);
  auto closed = std::async(std::launch::async, [&] { return volume_->close(); });
  ASSERT_EQ(closed.wait_for(std::chrono::seconds(30)), std::future_status::ready) << "it hangs";
  EXPECT_EQ(code_of(closed.get()), Errc::io);
  EXPECT_FALSE(arena_holds(needles_of(Heap(64, std::byte{7})).hkdf_inner));
  crash_and_unlock(1);
  EXPECT_EQ(content("/vault/file"), "acknowledged");
}

INSTANTIATE_TEST_SUITE_P(by, FullMemory, ::testing::Bool(),
                         [](const auto& chosen) { return chosen.param ? "callers" : "workers"; });

// --- D4: a failed flush --------------------------------------------------------------------------

// Every door that leads to the device.
void expect_stopped(Volume& volume, HandleId handle) {
  EXPECT_FALSE(volume.fsync(handle));
  EXPECT_FALSE(volume.fsync(handle)) << "a second fsync claims what the first could not";
  EXPECT_FALSE(volume.write(handle, 0, bytes_of("more")));
  EXPECT_FALSE(volume.truncate(handle, 1));
  EXPECT_FALSE(volume.sync());
  EXPECT_FALSE(make_directory(volume, kUser, "/vault/fresh"));
  EXPECT_FALSE(volume.unlink(kRootInode, "plain"));
  EXPECT_FALSE(volume.set_mode(kRootInode, 0700));
}

struct Stop {
  OpKind kind;
  u64 after;  // ops of that kind before it
  bool logs = false;
};

class Stopped : public VolumeFault, public ::testing::WithParamInterface<Stop> {
 protected:
  void SetUp() override {
    options_.fsync_log = GetParam().logs;
    VolumeFault::SetUp();
  }
};

TEST_P(Stopped, volume_stops_says_so_and_keeps_what_it_acknowledged) {
  for (const u64 seed : seeds(12)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const std::string before = text_of(20000, seed), after = text_of(20000, seed + 100);
    put("/plain", "plain");
    const HandleId handle = open("/vault/file");
    const HandleId silent = open("/vault/file", {});
    ASSERT_TRUE(volume_->write(handle, 0, bytes_of(before)));
    ASSERT_EQ(fsync(handle), Errc{});
    ASSERT_TRUE(volume_->write(handle, 0, bytes_of(after)));
    const Stop& stop = GetParam();
    if (stop.kind == OpKind::write) {
      ASSERT_TRUE(volume_->map(handle));  // all data is down
    }
    device_.inject({.kind = stop.kind, .after = stop.after});
    ASSERT_EQ(fsync(handle), Errc::io);
    device_.clear_faults();  // one failure is enough: the device works again
    expect_stopped(*volume_, handle);
    EXPECT_EQ(content(handle), after) << "reads go on";
    close(handle);  // heard of it
    EXPECT_EQ(code_of(volume_->close_handle(silent)), Errc::io) << "had not heard of it";
    EXPECT_FALSE(volume_->close());

    crash_and_unlock(seed);
    ASSERT_TRUE(volume_);
    const std::string found = content("/vault/file");
    ASSERT_EQ(found.size(), before.size());
    for (u64 at = 0; at < found.size(); at += kPageBytes) {
      const std::string block = found.substr(at, kPageBytes);
      EXPECT_TRUE(block == before.substr(at, kPageBytes) || block == after.substr(at, kPageBytes));
    }
    expect_clean();
  }
}

INSTANTIATE_TEST_SUITE_P(
    by, Stopped,
    ::testing::Values(Stop{OpKind::flush, 0}, Stop{OpKind::flush, 1}, Stop{OpKind::write, 0},
                      Stop{OpKind::write, 3}, Stop{OpKind::flush, 0, true}),
    [](const auto& chosen) {
      return std::string(chosen.param.kind == OpKind::flush ? "flush" : "metadata_write") +
             std::to_string(chosen.param.after) + (chosen.param.logs ? "_of_the_log" : "");
    });

TEST_F(VolumeFault, handle_that_heard_of_the_stop_hears_of_it_once) {
  const HandleId by_fsync = open("/vault/a");
  const HandleId by_write = open("/vault/b");
  const HandleId by_close = open("/vault/c");
  append(by_fsync, "text");
  device_.inject({.kind = OpKind::flush});
  EXPECT_EQ(fsync(by_fsync), Errc::io);
  EXPECT_EQ(code_of(volume_->append(by_write, bytes_of("text"))), Errc::io);
  close(by_fsync);
  close(by_write);
  EXPECT_EQ(code_of(volume_->close_handle(by_close)), Errc::io);
  crash_and_unlock(1);
}

// Writers that wait for room must not outlive the stop.
TEST_F(VolumeFault, writers_that_wait_for_room_hear_of_the_stop) {
  options_.inline_writeback = false;
  options_.dirty_bytes_max = 256 * kKiB;
  reopen();
  add_key();
  const HandleId handle = open("/vault/file");
  device_.inject({.kind = OpKind::flush});
  EXPECT_FALSE(volume_->set_mode(kRootInode, 0700) && volume_->sync());
  std::string accepted;
  auto writer = std::async(std::launch::async,
                           [&] { return write_until_refused(*volume_, handle, accepted); });
  ASSERT_EQ(writer.wait_for(std::chrono::seconds(30)), std::future_status::ready) << "it hangs";
  EXPECT_EQ(writer.get().code, Errc::io);
  EXPECT_FALSE(volume_->close());
  crash_and_unlock(1);
}

// --- no space -----------------------------------------------------------------------------------

// A store that is full in the middle of a write: what was accepted before can be synced, what
// the refused write left is a beginning of it, and removing a file makes room again.
TEST_F(VolumeFault, store_that_is_full_in_the_middle_of_a_write_keeps_what_it_accepted) {
  const HandleId filler = open("/filler");
  for (const u64 size : {16 * kMiB, kMiB}) {
    const std::string piece = text_of(size, size);
    while (volume_->facts().space.blocks_available * kPageBytes > 2 * size) append(filler, piece);
  }
  ASSERT_EQ(fsync(filler), Errc{});
  const HandleId handle = open("/vault/file");
  const std::string piece = text_of(3 * kMiB - 100, 1);
  std::string written;
  Errc refused{};
  while (refused == Errc{}) {
    refused = code_of(volume_->append(handle, bytes_of(piece)));
    written += piece;
    ASSERT_LT(written.size(), 64 * kMiB);
  }
  EXPECT_EQ(refused, Errc::no_space);
  EXPECT_EQ(fsync(handle), Errc{}) << "its space was reserved when it was accepted";
  const u64 accepted = written.size() - piece.size();
  const std::string found = content(handle);
  EXPECT_GE(found.size(), accepted);
  EXPECT_EQ(found, written.substr(0, found.size()));
  close(handle);
  close(filler);
  crash_and_unlock(1);
  EXPECT_EQ(content("/vault/file"), found);
  ASSERT_TRUE(volume_->unlink(kRootInode, "filler"));
  put("/vault/more", piece);
  ASSERT_TRUE(volume_->sync());
  crash_and_unlock(2);
  EXPECT_EQ(content("/vault/more"), piece);
}

TEST_F(VolumeFault, full_thin_device_in_the_middle_of_writeback_loses_nothing_acknowledged) {
  for (u64 pages = 0; pages <= 60; pages += 3) {
    SCOPED_TRACE(testing::Message() << pages << " pages");
    std::map<std::string, std::string> acknowledged;
    device_.limit_pages(device_.snapshot().pages_in_use() + pages);
    bool refused = false;
    for (u64 i = 0; i < 20; ++i) {
      const std::string path = "/vault/" + std::to_string(pages) + "-" + std::to_string(i);
      const auto handle = open_path(*volume_, kUser, path, {.write = true, .create = true});
      if (!handle) break;
      const std::string text = text_of(i * 3000 + 1, i);
      ASSERT_TRUE(volume_->write(*handle, 0, bytes_of(text))) << "this device lies about its size";
      const auto synced = volume_->fsync(*handle);
      if (synced) acknowledged[path] = text;
      if (!synced && !std::exchange(refused, true)) {
        EXPECT_EQ(posix_errno(synced.error()), ENOSPC) << synced.error().what;
      }
      (void)volume_->close_handle(*handle);
    }
    EXPECT_TRUE(refused);
    crash_and_unlock(pages + 1);
    ASSERT_TRUE(volume_);
    for (const auto& [path, text] : acknowledged) EXPECT_EQ(content(path), text) << path;
    expect_clean();
  }
}

TEST_F(VolumeFault, data_refused_by_a_full_thin_device_goes_down_when_there_is_room) {
  const HandleId handle = open("/vault/file");
  const std::string text = text_of(200000, 1);
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of(text)));
  device_.limit_pages(device_.snapshot().pages_in_use() + 10);
  const auto synced = volume_->fsync(handle);
  ASSERT_FALSE(synced);
  EXPECT_EQ(posix_errno(synced.error()), ENOSPC);
  EXPECT_EQ(content(handle), text);
  device_.limit_pages(~u64{0});
  EXPECT_EQ(fsync(handle), Errc{});
  close(handle);
  crash_and_unlock(1);
  EXPECT_EQ(content("/vault/file"), text);
}

// --- any single failure --------------------------------------------------------------------------

// Files under two directories: made, written, cut, removed, synced. What was acknowledged last of
// each file by an fsync is in `acknowledged`; a file that is changed or removed leaves it first.
class Workload {
 public:
  explicit Workload(Volume& volume) : volume_(volume) {}

  void run() {
    (void)make_directory(volume_, kUser, "/vault/dir");
    for (u64 i = 0; i < 24; ++i) {
      const std::string path = (i % 3 == 0 ? "/vault/dir/" : "/vault/") + std::to_string(i);
      write(path, text_of(1 + i * 1777, i));
      if (i % 4 == 3) cut("/vault/" + std::to_string(i - 1));
      if (i % 6 == 5) remove("/vault/" + std::to_string(i - 3));
    }
  }

  std::map<std::string, std::string> acknowledged;

 private:
  void write(const std::string& path, const std::string& text) {
    const auto handle = open_path(volume_, kUser, path, {.write = true, .create = true});
    if (!handle) return;
    if (volume_.write(*handle, 0, bytes_of(text)) && volume_.fsync(*handle))
      acknowledged[path] = text;
    (void)volume_.close_handle(*handle);
  }
  void cut(const std::string& path) {
    const auto handle = open_path(volume_, kUser, path, {.write = true});
    const auto node = acknowledged.extract(path);
    if (!handle) return;
    if (!node.empty() && volume_.truncate(*handle, 100) && volume_.fsync(*handle))
      acknowledged[path] = node.mapped().substr(0, 100);
    (void)volume_.close_handle(*handle);
  }
  void remove(const std::string& path) {
    acknowledged.erase(path);
    const auto parent = resolve_parent(volume_, path);
    if (parent) (void)volume_.unlink(parent->directory, parent->name);
  }

  Volume& volume_;
};

class NthFailure : public VolumeFault, public ::testing::WithParamInterface<OpKind> {};

TEST_P(NthFailure, loses_nothing_acknowledged_and_leaves_a_clean_store) {
  const SimImage fresh = [this] {
    EXPECT_TRUE(volume_->close());
    volume_.reset();
    return device_.durable();
  }();
  bool met = true;
  for (u64 n = 0; met; ++n) {
    SCOPED_TRACE(testing::Message() << "failure " << n);
    ASSERT_LT(n, 1000U);
    device_.restore(fresh);
    open_again();
    add_key();
    device_.inject({.kind = GetParam(), .after = n});
    const SimCounters before = device_.counters();
    Workload workload(*volume_);
    workload.run();
    const SimCounters now = device_.counters();
    met = n <
          (GetParam() == OpKind::write ? now.writes - before.writes : now.flushes - before.flushes);
    crash_and_unlock(n + 1);
    ASSERT_TRUE(volume_);
    for (const auto& [path, text] : workload.acknowledged) ASSERT_EQ(content(path), text) << path;
    expect_clean();
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(of, NthFailure, ::testing::Values(OpKind::write, OpKind::flush),
                         [](const auto& chosen) {
                           return chosen.param == OpKind::write ? "writes" : "flushes";
                         });

}  // namespace
}  // namespace latchkey::tests
