// Goal: which fsync of a file is a block of the log and which a commit, as a user of the library
// makes them happen; and that the log serves whoever opens the store next, with or without keys.
// Method: each thing that can happen to a file, between its insert and its fsync, with the counts
// of commits and blocks before and after; then a crash that loses all that was not flushed.

#include <atomic>
#include <thread>

#include "engine/fsync_log.h"
#include "tests/support/volume_log_fixture.h"
#include "volume/log_replay.h"
#include "volume/map_records.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr u64 kPageBytes = engine::kBlockBytes;

TEST_F(VolumeLog, fsync_of_written_data_is_one_block_of_the_log_and_one_flush) {
  const HandleId handle = open("/vault/file");
  for (u64 i = 0; i < 5; ++i) {
    const std::string page(kPageBytes, static_cast<char>('a' + i));
    ASSERT_TRUE(volume_->write(handle, i % 2 * kPageBytes, bytes_of(page)));
    const SimCounters before = device_.counters();
    EXPECT_EQ(sync(handle), By::log);
    const SimCounters after = device_.counters();
    EXPECT_EQ(after.flushes - before.flushes, 1U);
    EXPECT_EQ(after.bytes_written - before.bytes_written, 2 * kPageBytes);
  }
  EXPECT_EQ(sync(handle), By::nothing);
  close(handle);
}

class VolumeLogInOrder : public VolumeLog {
 protected:
  VolumeLogInOrder() : VolumeLog({.size_bytes = 128 * kMiB, .shuffle = false}) {}
};

// The block beside the data that was refused must never count, so the log ends there.
TEST_F(VolumeLogInOrder, data_that_is_refused_beside_its_block_makes_the_next_fsync_a_commit) {
  const HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("first")));
  EXPECT_EQ(sync(handle), By::log);
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("after")));
  device_.inject({.after = 0});
  const u64 blocks = volume_->facts().log_blocks;
  const auto refused = volume_->fsync(handle);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::io);
  device_.clear_faults();
  EXPECT_EQ(volume_->facts().log_blocks, blocks);
  EXPECT_EQ(sync(handle), By::commit);
  ASSERT_TRUE(volume_->write(handle, 5, bytes_of("more")));
  EXPECT_EQ(sync(handle), By::log);
  close(handle);
  EXPECT_EQ(content("/vault/file"), "aftermore");
}

TEST_F(VolumeLog, whatever_else_happened_to_a_file_makes_its_fsync_a_commit) {
  const HandleId handle = open("/vault/file");
  const InodeId inode = volume_->stat(handle)->inode;
  const std::vector<std::pair<const char*, std::function<bool()>>> things = {
      {"mode", [&] { return volume_->set_mode(inode, 0600).has_value(); }},
      {"times", [&] { return volume_->set_times(inode, 5).has_value(); }},
      {"owner", [&] { return volume_->set_attributes(inode, {.uid = 7}).has_value(); }},
      {"attribute",
       [&] { return volume_->set_xattr(inode, "user.a", bytes_of("value")).has_value(); }},
      {"promise", [&] { return volume_->allocate(handle, 0, 200000).has_value(); }},
      {"hole", [&] { return volume_->punch(handle, 0, 4096).has_value(); }},
      {"truncate", [&] { return volume_->truncate(handle, 2).has_value(); }},
      {"longer", [&] { return volume_->truncate(handle, 50000).has_value(); }},
      {"link", [&] { return volume_->link(inode, directory(), "link").has_value(); }},
      {"unlink", [&] { return volume_->unlink(directory(), "link").has_value(); }},
      {"rename",
       [&] { return volume_->rename(directory(), "file", directory(), "new").has_value(); }},
      {"exchange",
       [&] {
         return volume_->rename(directory(), "new", directory(), "other", {.exchange = true})
             .has_value();
       }},
      {"snapshot",
       [&] { return volume_->snapshot(kUser, kRootInode, kRootInode, "s", true).has_value(); }},
      {"no name", [&] { return volume_->unlink(directory(), "other").has_value(); }},
  };
  u64 commits = 0;
  for (const auto& [name, happens] : things) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(volume_->write(handle, 0, bytes_of("data")));
    ASSERT_TRUE(volume_->map(handle));  // flushed, so that it comes before
    commits = volume_->facts().commits;
    ASSERT_TRUE(happens());
    if (volume_->facts().commits == commits) {  // a snapshot commits by itself
      EXPECT_EQ(sync(handle), By::commit);
    }
    ASSERT_TRUE(volume_->write(handle, 0, bytes_of("more")));
    EXPECT_EQ(sync(handle), By::log);
    ASSERT_TRUE(volume_->write(handle, 0, bytes_of("data")));
    commits = volume_->facts().commits;
  }
  close(handle);
}

// A count of the tree goes with the data that takes a promise's place.
TEST_F(VolumeLog, data_that_draws_a_promise_is_a_commit) {
  const HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->allocate(handle, 0, 100000));
  EXPECT_EQ(sync(handle), By::commit);
  for (const By by : {By::commit, By::log}) {
    ASSERT_TRUE(volume_->write(handle, 50000, bytes_of("drawn")));
    EXPECT_EQ(sync(handle), by);
  }
  // What is cloned from it needs no commit of it; what is cloned into is changed.
  const HandleId other = open("/vault/other");
  ASSERT_TRUE(volume_->write(handle, 50000, bytes_of("again")));
  ASSERT_TRUE(volume_->clone_range(handle, 0, other, 0, 13 * kPageBytes));
  EXPECT_EQ(sync(handle), By::log);
  EXPECT_EQ(sync(other), By::commit);
  close(other);
  close(handle);
}

TEST_F(VolumeLog, what_happens_to_others_does_not) {
  const HandleId handle = open("/vault/file");
  append(handle, "x");
  put("/vault/third", "new");
  ASSERT_TRUE(volume_->rename(directory(), "other", directory(), "elsewhere"));
  EXPECT_EQ(sync(handle), By::log);
  const HandleId third = open("/vault/third");
  EXPECT_EQ(sync(third), By::log);
  close(third);
  close(handle);
}

// An inode that left memory in between has not forgotten what was inserted.
TEST_F(VolumeLog, file_that_was_flushed_closed_and_opened_again) {
  HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("BEFORE")));
  ASSERT_TRUE(volume_->map(handle));
  close(handle);
  handle = open("/vault/file", {});
  EXPECT_EQ(sync(handle), By::log);
  close(handle);
  crash(3);
  EXPECT_EQ(volume_->facts().store.log_replayed, 1U);
  add_key();
  EXPECT_EQ(content("/vault/file"), "BEFORE");
}

TEST_F(VolumeLog, replay_needs_no_key) {
  HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("after!")));
  EXPECT_EQ(sync(handle), By::log);
  crash(5);
  EXPECT_EQ(volume_->facts().store.log_replayed, 1U);
  EXPECT_EQ(volume_->key_status(kUser, key_).state, keymgr::KeyState::absent);
  reopen();
  EXPECT_EQ(volume_->facts().store.log_replayed, 0U);
  add_key();
  EXPECT_EQ(content("/vault/file"), "after!");
}

TEST_F(VolumeLog, read_only_opens_see_what_was_synced_and_check_tells_of_it) {
  HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("after!")));
  EXPECT_EQ(sync(handle), By::log);
  volume_.reset();
  device_.crash(7);
  const auto check = check_volume(device_, {.data = true, .progress = {}}, system_env());
  ASSERT_TRUE(check);
  EXPECT_TRUE(check->findings.empty());
  ASSERT_EQ(check->notes.size(), 1U);
  EXPECT_EQ(check->notes[0].where, "fsync log");
  const u64 writes = device_.counters().writes;
  options_.read_only = true;
  open_again();
  add_key();
  EXPECT_EQ(content("/vault/file"), "after!");
  volume_.reset();
  EXPECT_EQ(device_.counters().writes, writes);
  options_.read_only = false;
}

TEST_F(VolumeLog, fsyncs_under_a_key_that_is_being_removed_use_it) {
  const HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->sync());
  EXPECT_TRUE(remove(key_).files_busy);
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("inside")));
  EXPECT_EQ(sync(handle), By::log);
  crash(9);
  add_key();
  EXPECT_EQ(content("/vault/file"), "inside");
}

// Two trees share the leaf that a replay changes: it is copied, and the snapshot keeps its own.
TEST_F(VolumeLog, replay_below_shared_nodes) {
  ASSERT_TRUE(volume_->snapshot(kUser, kRootInode, kRootInode, "s", true));
  const HandleId handle = open("/vault/file");
  for (const char* text : {"first!", "second"}) {
    ASSERT_TRUE(volume_->write(handle, 0, bytes_of(text)));
    EXPECT_EQ(sync(handle), By::log);
  }
  crash(11);
  EXPECT_EQ(volume_->facts().store.log_replayed, 2U);
  add_key();
  EXPECT_EQ(content("/vault/file"), "second");
  EXPECT_EQ(content("/s/vault/file"), "before");
}

// Syncs of several threads share blocks of the log; each is there.
TEST_F(VolumeLog, syncs_at_the_same_time_share_a_flush) {
  constexpr u64 kThreads = 8, kRounds = 60;
  std::vector<HandleId> handles;
  handles.reserve(kThreads);
  for (u64 i = 0; i < kThreads; ++i) handles.push_back(open("/vault/t" + std::to_string(i)));
  ASSERT_TRUE(volume_->sync());
  const VolumeFacts before = volume_->facts();
  std::atomic<u64> failed{0};
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (u64 i = 0; i < kThreads; ++i)
    threads.emplace_back([&, i] {
      for (u64 round = 0; round < kRounds; ++round) {
        const std::string text(kPageBytes, static_cast<char>('a' + (round + i) % 26));
        const bool done = volume_->write(handles[i], round % 3 * kPageBytes, bytes_of(text)) &&
                          volume_->fsync(handles[i]);
        failed += done ? 0 : 1;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0U);
  const VolumeFacts after = volume_->facts();
  EXPECT_LE(after.commits - before.commits, 2U);
  EXPECT_LE(after.log_blocks - before.log_blocks, kThreads * kRounds);
  std::vector<std::string> contents;
  contents.reserve(kThreads);
  for (const HandleId handle : handles) contents.push_back(content(handle));
  crash(13);
  add_key();
  for (u64 i = 0; i < kThreads; ++i)
    EXPECT_TRUE(content("/vault/t" + std::to_string(i)) == contents[i]) << i;
}

// Records that no insert has made are refused, whatever their checksums say.
TEST_F(VolumeLog, record_of_another_file_under_its_number_is_refused) {
  const HandleId handle = open("/vault/file");
  const InodeId inode = volume_->stat(handle)->inode;
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("after!")));
  EXPECT_EQ(sync(handle), By::log);
  volume_.reset();
  device_.crash(1);
  engine::OpenOptions options;
  options.read_only = true;
  const auto store = engine::Store::open(device_, options, system_env());
  ASSERT_TRUE(store);
  const auto logged = (*store)->logged();
  ASSERT_EQ(logged.size(), 1U);
  const engine::View view = (*store)->view();
  EXPECT_TRUE(LogCheck(view).check(logged[0]));
  const auto spoiled = [&](const std::function<void(engine::LogRecord&)>& spoil) {
    engine::LogRecord record = logged[0];
    spoil(record);
    return code_of(LogCheck(view).check(record));
  };
  using Record = engine::LogRecord;
  const auto byte = [](Record& record, std::size_t at) -> std::byte& { return record.note.at(at); };
  EXPECT_EQ(spoiled([](Record& record) { record.object += 1000; }), Errc::not_found);
  EXPECT_EQ(spoiled([](Record& record) { ++record.object; }), Errc::malformed);  // the other file
  EXPECT_EQ(spoiled([](Record& record) { record.object = kRootInode.number; }), Errc::malformed);
  EXPECT_EQ(
      spoiled([&](Record& record) { byte(record, offsetof(InodeDisk, nonce)) ^= std::byte{1}; }),
      Errc::malformed);
  EXPECT_EQ(
      spoiled([&](Record& record) { byte(record, offsetof(InodeDisk, links)) ^= std::byte{2}; }),
      Errc::malformed);
  EXPECT_EQ(spoiled([](Record& record) { record.note.pop_back(); }), Errc::malformed);
  EXPECT_EQ(spoiled([](Record& record) { record.extents[0].run.block += 1; }), Errc::malformed);
  EXPECT_EQ(spoiled([](Record& record) { record.note.resize(sizeof(InodeDisk)); }),
            Errc::malformed);
  EXPECT_EQ(inode.number, logged[0].object);
}

}  // namespace
}  // namespace latchkey::tests
