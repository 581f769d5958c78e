// Goal: an fsync of a file that was made since the last commit is a block of the log; what else
// happened to names makes it a commit; after a crash the file is there by its name, with all that
// was made before it, and its number is nobody else's. Method: as volume_log_test, with new files;
// then a crash that loses all that was not flushed, and a check of the log and of what replay made
// of it.

#include <algorithm>
#include <atomic>
#include <thread>

#include "engine/fsync_log.h"
#include "tests/support/volume_log_fixture.h"
#include "volume/log_replay.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr u64 kPageBytes = engine::kBlockBytes;

class VolumeLogCreate : public VolumeLog {
 protected:
  using VolumeLog::VolumeLog;
  By make(std::string_view path, std::string_view text = "data") {
    const HandleId handle = open(path);
    if (!text.empty()) {
      EXPECT_TRUE(volume_->write(handle, 0, bytes_of(text)));
    }
    const By by = sync(handle);
    close(handle);
    return by;
  }
  void expect_log(const std::string& path) { EXPECT_EQ(make(path), By::log) << path; }
  void expect_commit(const std::string& path) { EXPECT_EQ(make(path), By::commit) << path; }
  bool is_there(std::string_view path) { return resolve(*volume_, path).has_value(); }
  // What an open for writing would find is right, and is what it then finds.
  void crash_and_check(u64 seed) {
    volume_.reset();
    device_.crash(seed);
    expect_clean();
    open_again();
    expect_clean_after_a_close();
    key_ = add_key();
  }
  void expect_clean_after_a_close() {
    EXPECT_TRUE(volume_->close());
    volume_.reset();
    expect_clean();
    open_again();
  }
};

TEST_F(VolumeLogCreate, new_file_is_one_block_of_the_log_beside_its_data_and_one_flush) {
  for (const char* path : {"/vault/new", "/plain"}) {
    const HandleId handle = open(path);
    ASSERT_TRUE(volume_->write(handle, 0, bytes_of(std::string(kPageBytes, 'x'))));
    const SimCounters before = device_.counters();
    EXPECT_EQ(sync(handle), By::log) << path;
    const SimCounters after = device_.counters();
    EXPECT_EQ(after.flushes - before.flushes, 1U);
    EXPECT_EQ(after.bytes_written - before.bytes_written, 2 * kPageBytes);
    EXPECT_EQ(sync(handle), By::nothing);
    ASSERT_TRUE(volume_->write(handle, 0, bytes_of("more")));
    EXPECT_EQ(sync(handle), By::log);
    close(handle);
  }
  EXPECT_EQ(make("/vault/empty", ""), By::log);
}

TEST_F(VolumeLogCreate, it_is_there_after_a_crash_as_it_was) {
  const HandleId handle =
      *open_path(*volume_, Caller{7, 8}, "/vault/new", {.write = true, .create = true}, 0751);
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("first")));
  EXPECT_EQ(sync(handle), By::log);
  ASSERT_TRUE(volume_->write(handle, 3 * kPageBytes, bytes_of("second")));
  EXPECT_EQ(sync(handle), By::log);
  EXPECT_EQ(make("/vault/empty", ""), By::log);
  const Stat before = *volume_->stat(handle);
  const std::string text = content(handle);
  const u64 inodes = volume_->space()->inodes;
  crash_and_check(3);
  const Stat after = *volume_->stat(*resolve(*volume_, "/vault/new"));
  EXPECT_EQ(after.inode, before.inode);
  EXPECT_EQ(after.mode, 0751U);
  EXPECT_EQ(std::pair(after.uid, after.gid), std::pair(7U, 8U));
  EXPECT_EQ(after.links, 1U);
  EXPECT_EQ(after.size, before.size);
  EXPECT_EQ(after.btime_ns, before.btime_ns);
  EXPECT_EQ(after.mtime_ns, before.mtime_ns);
  EXPECT_EQ(after.key_id, key_);
  EXPECT_EQ(content("/vault/new"), text);
  EXPECT_EQ(content("/vault/empty"), "");
  EXPECT_EQ(volume_->space()->inodes, inodes);
  EXPECT_GE(volume_->stat(directory())->mtime_ns, before.btime_ns);
}

TEST_F(VolumeLogCreate, replay_needs_no_key_and_a_reader_sees_the_name) {
  EXPECT_EQ(make("/vault/new"), By::log);
  volume_.reset();
  device_.crash(4);
  const auto check = check_volume(device_, {.data = true, .progress = {}}, system_env());
  ASSERT_TRUE(check);
  EXPECT_TRUE(check->findings.empty());
  EXPECT_EQ(check->notes.size(), 1U);
  const u64 writes = device_.counters().writes;
  options_.read_only = true;
  open_again();
  EXPECT_EQ(volume_->facts().store.log_replayed, 2U);
  EXPECT_EQ(volume_->read_directory(directory())->size(), 3U);
  add_key();
  EXPECT_EQ(content("/vault/new"), "data");
  volume_.reset();
  EXPECT_EQ(device_.counters().writes, writes);
  options_.read_only = false;
  open_again();
  EXPECT_EQ(volume_->key_status(kUser, key_).state, keymgr::KeyState::absent);
  reopen();
  EXPECT_EQ(volume_->facts().store.log_replayed, 0U);
  add_key();
  EXPECT_EQ(content("/vault/new"), "data");
}

// A directory that has changed by new files alone is in the log with them.
TEST_F(VolumeLogCreate, fsync_of_a_directory_makes_the_names_in_it_durable) {
  const InodeId inside = directory();
  const HandleId handle = *volume_->open_directory(kUser, inside, "/vault");
  EXPECT_EQ(sync(handle), By::nothing);
  expect_log("/vault/a");
  EXPECT_EQ(sync(handle), By::nothing);
  close(open("/plain"));
  EXPECT_EQ(sync(handle), By::nothing);
  close(open("/vault/b"));
  close(open("/vault/c"));
  EXPECT_EQ(sync(handle), By::log);
  EXPECT_EQ(sync(handle), By::nothing);
  const auto ok = [](const auto& result) { return result.has_value(); };
  const std::vector<std::pair<const char*, std::function<bool()>>> things = {
      {"unlink", [&] { return ok(volume_->unlink(inside, "a")); }},
      {"mkdir", [&] { return ok(volume_->mkdir(kUser, inside, "d", 0755)); }},
      {"rename", [&] { return ok(volume_->rename(inside, "b", inside, "e")); }},
      {"symlink", [&] { return ok(volume_->symlink(kUser, inside, "s", "e")); }},
      {"link", [&] { return ok(volume_->link(*resolve(*volume_, "/vault/e"), inside, "l")); }},
      {"mode", [&] { return ok(volume_->set_mode(inside, 0700)); }},
      {"rename of itself",
       [&] { return ok(volume_->rename(kRootInode, "vault", kRootInode, "moved")); }},
  };
  for (const auto& [name, happens] : things) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(happens());
    EXPECT_EQ(sync(handle), By::commit);
    EXPECT_EQ(sync(handle), By::nothing);
  }
  close(open("/moved/last"));
  EXPECT_EQ(sync(handle), By::log);
  close(handle);
  crash_and_check(15);
  for (const char* name : {"c", "d", "e", "l", "last"})
    EXPECT_TRUE(is_there(std::string("/moved/") + name)) << name;
  EXPECT_FALSE(is_there("/moved/a"));
}

// Names keep their order: whoever is synced brings along what was made before.
TEST_F(VolumeLogCreate, what_was_made_before_it_is_there_too_and_what_came_later_is_not) {
  close(open("/vault/a"));
  put("/b", "unsynced");
  EXPECT_EQ(make("/vault/c"), By::log);
  close(open("/vault/d"));
  crash_and_check(5);
  EXPECT_TRUE(is_there("/vault/a"));
  EXPECT_TRUE(is_there("/b"));
  EXPECT_EQ(content("/vault/c"), "data");
  EXPECT_FALSE(is_there("/vault/d"));
}

TEST_F(VolumeLogCreate, whatever_else_happened_to_names_makes_the_next_files_fsync_a_commit) {
  ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/below"));
  ASSERT_TRUE(make_directory(*volume_, kUser, "/elsewhere"));
  put("/elsewhere/x", "x");
  ASSERT_TRUE(volume_->sync());
  const InodeId below = *resolve(*volume_, "/vault/below");
  const InodeId elsewhere = *resolve(*volume_, "/elsewhere");
  const InodeId other = *resolve(*volume_, "/vault/other");
  const auto ok = [](const auto& result) { return result.has_value(); };
  const std::vector<std::pair<const char*, std::function<bool()>>> things = {
      {"mkdir", [&] { return ok(volume_->mkdir(kUser, elsewhere, "sub", 0755)); }},
      {"rmdir", [&] { return ok(volume_->rmdir(elsewhere, "sub")); }},
      {"symlink", [&] { return ok(volume_->symlink(kUser, elsewhere, "to", "x")); }},
      {"special",
       [&] { return ok(volume_->make_node(kUser, elsewhere, "pipe", {.kind = FileKind::fifo})); }},
      {"link", [&] { return ok(volume_->link(other, below, "second")); }},
      {"unlink", [&] { return ok(volume_->unlink(below, "second")); }},
      {"rename", [&] { return ok(volume_->rename(elsewhere, "x", elsewhere, "y")); }},
      {"move of a directory above",
       [&] { return ok(volume_->rename(directory(), "below", directory(), "moved")); }},
      {"snapshot",
       [&] {
         return ok(volume_->snapshot(kUser, kRootInode, kRootInode, "s", true)) &&
                ok(volume_->unlink(elsewhere, "y"));  // it commits by itself
       }},
      {"mode of the directory", [&] { return ok(volume_->set_mode(below, 0711)); }},
      {"attribute of the directory",
       [&] { return ok(volume_->set_xattr(below, "trusted.a", bytes_of("v"))); }},
  };
  int number = 0;
  for (const auto& [name, happens] : things) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(happens());
    const std::string in = is_there("/vault/below") ? "/vault/below/" : "/vault/moved/";
    expect_commit(in + "f" + std::to_string(number++));
    expect_log(in + "f" + std::to_string(number++));
  }
  // A new policy, which the names are sealed under.
  ASSERT_TRUE(make_directory(*volume_, kUser, "/second"));
  ASSERT_TRUE(volume_->sync());
  ASSERT_TRUE(volume_->set_policy(kUser, *resolve(*volume_, "/second"), key_));
  expect_commit("/second/f");
  expect_log("/second/g");
  crash_and_check(6);
  EXPECT_EQ(content("/second/g"), "data");
}

TEST_F(VolumeLogCreate, what_happens_to_names_later_does_not) {
  const HandleId handle = open("/vault/new");
  ASSERT_TRUE(volume_->write(handle, 0, bytes_of("data")));
  ASSERT_TRUE(volume_->unlink(directory(), "other"));
  EXPECT_EQ(sync(handle), By::log);
  close(handle);
  expect_commit("/vault/next");
  const HandleId moved = open("/vault/moved");
  ASSERT_TRUE(volume_->rename(directory(), "moved", directory(), "elsewhere"));
  EXPECT_EQ(sync(moved), By::commit);
  close(moved);
  const HandleId changed = open("/vault/changed");
  ASSERT_TRUE(volume_->set_mode(volume_->stat(changed)->inode, 0600));
  EXPECT_EQ(sync(changed), By::commit);
  close(changed);
  const HandleId logged = open("/vault/logged");
  EXPECT_EQ(sync(logged), By::log);
  ASSERT_TRUE(volume_->rename(directory(), "logged", directory(), "again"));
  EXPECT_EQ(sync(logged), By::commit);
  close(logged);
  crash_and_check(7);
  EXPECT_EQ(content("/vault/new"), "data");
  EXPECT_FALSE(is_there("/vault/other"));
  for (const char* name : {"next", "elsewhere", "changed", "again"})
    EXPECT_TRUE(is_there(std::string("/vault/") + name)) << name;
}

TEST_F(VolumeLogCreate, name_that_was_removed_and_made_again) {
  EXPECT_EQ(make("/vault/new", "first"), By::log);
  ASSERT_TRUE(volume_->unlink(directory(), "new"));
  expect_commit("/vault/new");
  EXPECT_EQ(make("/vault/more"), By::log);
  ASSERT_TRUE(volume_->unlink(directory(), "more"));
  crash_and_check(8);
  EXPECT_EQ(content("/vault/new"), "data");
  EXPECT_EQ(content("/vault/more"), "data");  // nobody synced its end
}

TEST_F(VolumeLogCreate, number_of_a_file_from_the_log_is_given_to_nobody_else) {
  for (int round = 0; round < 3; ++round) {
    reopen();  // the next number is the first one that the counter on the device does not cover
    key_ = add_key();
    std::vector<InodeId> there;
    for (int i = 0; i < 20; ++i) {
      const std::string path = "/vault/r" + std::to_string(round) + "-" + std::to_string(i);
      EXPECT_EQ(make(path, path), By::log);
    }
    crash_and_check(9 + static_cast<u64>(round));
    for (int i = 0; i < 20; ++i) {
      const std::string path = "/vault/r" + std::to_string(round) + "-" + std::to_string(i);
      EXPECT_EQ(content(path), path);
      there.push_back(*resolve(*volume_, path));
    }
    put("/vault/after", "x");
    const InodeId fresh = *resolve(*volume_, "/vault/after");
    EXPECT_EQ(std::ranges::count(there, fresh), 0) << fresh.number;
    ASSERT_TRUE(volume_->unlink(directory(), "after"));
    ASSERT_TRUE(volume_->sync());
  }
}

// More than a block tells of the files made before: a commit, and the log goes on behind it.
TEST_F(VolumeLogCreate, more_new_files_than_a_block_holds_are_a_commit) {
  for (int i = 0; i < 60; ++i) close(open("/vault/many" + std::to_string(i)));
  expect_commit("/vault/last");
  expect_log("/vault/next");
  for (int i = 0; i < 8; ++i) close(open("/vault/few" + std::to_string(i)));
  expect_log("/vault/behind");
  crash_and_check(10);
  EXPECT_TRUE(is_there("/vault/many59") && is_there("/vault/few7"));
  EXPECT_EQ(content("/vault/behind"), "data");
}

TEST_F(VolumeLogCreate, files_until_the_log_is_full_are_all_there) {
  const u64 commits = volume_->facts().commits;
  constexpr int kFiles = 1300;
  for (int i = 0; i < kFiles; ++i)
    ASSERT_NE(make("/vault/f" + std::to_string(i), std::to_string(i)), By::nothing);
  const u64 committed = volume_->facts().commits - commits;
  EXPECT_GE(committed, 1U);
  EXPECT_LE(committed, 6U);
  crash_and_check(11);
  for (int i = 0; i < kFiles; ++i)
    ASSERT_EQ(content("/vault/f" + std::to_string(i)), std::to_string(i));
}

TEST_F(VolumeLogCreate, keys_that_are_removed_take_nothing_that_was_synced) {
  for (const auto mode : {keymgr::RemovalMode::soft, keymgr::RemovalMode::hard}) {
    SCOPED_TRACE(static_cast<int>(mode));
    const std::string path = "/vault/k" + std::to_string(static_cast<int>(mode));
    EXPECT_EQ(make(path), By::log);
    close(open(path + "-unsynced"));
    remove(key_, mode);
    crash_and_check(12);
    EXPECT_EQ(content(path), "data");
  }
}

// Below nodes that trees share, a replay of names makes copies.
TEST_F(VolumeLogCreate, replay_below_shared_nodes) {
  ASSERT_TRUE(volume_->snapshot(kUser, kRootInode, kRootInode, "s", true));
  for (int i = 0; i < 30; ++i) EXPECT_EQ(make("/vault/n" + std::to_string(i)), By::log);
  crash_and_check(13);
  EXPECT_EQ(content("/vault/n29"), "data");
  EXPECT_FALSE(is_there("/s/vault/n0"));
}

// An fsync that finds that only a commit will do, in the moment in which it was to be logged. How
// long both wait moves through where they meet.
TEST_F(VolumeLogCreate, syncs_beside_changes_of_the_same_files) {
  constexpr int kRounds = 3000;
  const auto pause = [](int turns) {
    std::atomic<int> turn{0};
    while (turn < turns) ++turn;
  };
  const HandleId shared = open("/vault/shared");
  const InodeId inode = volume_->stat(shared)->inode;
  std::atomic<int> begun{0}, done{0};
  std::atomic<u64> failed{0};
  std::thread other([&] {
    for (int round = 1; round <= kRounds; ++round) {
      while (begun < round) std::this_thread::yield();
      pause(round * 7 % 500);
      failed += volume_->set_mode(inode, 0600 + static_cast<u32>(round) % 64) ? 0 : 1;
      done = round;
    }
  });
  for (int round = 1; round <= kRounds; ++round) {
    failed += volume_->write(shared, 0, bytes_of("data")) && volume_->map(shared) ? 0 : 1;
    begun = round;
    pause(round * 3 % 500);
    failed += volume_->fsync(shared) ? 0 : 1;
    while (done < round) std::this_thread::yield();
    failed += volume_->sync() ? 0 : 1;
  }
  other.join();
  EXPECT_EQ(failed, 0U);
  close(shared);
  crash_and_check(14);
  EXPECT_EQ(content("/vault/shared"), "data");
}

// Records that no create has made are refused, whatever their checksums say.
TEST_F(VolumeLogCreate, record_of_a_file_that_cannot_have_been_made_is_refused) {
  EXPECT_EQ(make("/vault/new"), By::log);
  volume_.reset();
  device_.crash(1);
  engine::OpenOptions options;
  options.read_only = true;
  const auto store = engine::Store::open(device_, options, system_env());
  ASSERT_TRUE(store);
  const auto logged = (*store)->logged();
  ASSERT_EQ(logged.size(), 2U);
  ASSERT_EQ(logged[0].kind, engine::LogKind::create);
  ASSERT_EQ(logged[0].object, logged[1].object);
  const engine::View view = (*store)->view();
  {
    LogCheck check(view);
    EXPECT_TRUE(check.check(logged[0]) && check.check(logged[1]));
    EXPECT_EQ(code_of(check.check(logged[0])), Errc::malformed);  // a second time
    EXPECT_EQ(code_of(LogCheck(view).check(logged[1])), Errc::not_found);
  }
  using Record = engine::LogRecord;
  const auto spoiled = [&](const std::function<void(Record&)>& spoil) {
    Record record = logged[0];
    spoil(record);
    return code_of(LogCheck(view).check(record));
  };
  const auto byte = [](Record& record, std::size_t at) -> std::byte& { return record.note.at(at); };
  constexpr std::size_t kName = sizeof(InodeDisk);
  const std::vector<std::function<void(Record&)>> spoils = {
      [](Record& record) { record.object = kRootNumber; },
      [](Record& record) { --record.object; },  // of another file
      [](Record& record) { record.object = u64{1} << 62; },
      [&](Record& record) { byte(record, offsetof(InodeDisk, links)) = std::byte{2}; },
      [&](Record& record) { byte(record, offsetof(InodeDisk, size)) = std::byte{1}; },
      [&](Record& record) { byte(record, offsetof(InodeDisk, key_id)) ^= std::byte{1}; },
      [&](Record& record) { byte(record, kName) ^= std::byte{1}; },  // the directory
      [&](Record& record) { byte(record, kName + 8) = std::byte{200}; },
      [&](Record& record) { byte(record, kName + 9) ^= std::byte{1}; },
      [](Record& record) { record.note.pop_back(); },
      [](Record& record) { record.note.resize(kName + sizeof(LogNameDisk)); },
      [&](Record& record) { record.extents = logged[1].extents; },
  };
  for (std::size_t i = 0; i < spoils.size(); ++i) {
    const Errc code = spoiled(spoils[i]);
    EXPECT_TRUE(code == Errc::malformed || code == Errc::not_found) << i;
  }
  // A name that is there.
  LK_CHECK(logged[0].note.size() > kName);
  Record twice = logged[0];
  const auto entries = view.at_or_after(
      twice.tree,
      {load_disk<LogNameDisk>(Bytes(twice.note).subspan(kName)).directory, kEntryType, 0});
  ASSERT_TRUE(entries && *entries);
  const auto there = decode_entry(twice.tree, (*entries)->key, (*entries)->value);
  ASSERT_TRUE(there);
  const auto item = decode_inode(Bytes(twice.note).first(sizeof(InodeDisk)));
  Entry again = *there;
  twice.note = create_note(*item, again);
  EXPECT_EQ(code_of(LogCheck(view).check(twice)), Errc::malformed);
  ++again.key.offset;
  twice.note = create_note(*item, again);
  EXPECT_EQ(code_of(LogCheck(view).check(twice)), Errc::malformed);
}

}  // namespace
}  // namespace latchkey::tests
