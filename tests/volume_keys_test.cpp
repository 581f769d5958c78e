// Goal: the rows of the removal's table that work today do what design 3 says: who is let in, what
// open handles get, what is lost and who is told, when the secret is gone. Method: each rule by
// name on a SimDevice, without workers, so that a dirty page stays dirty until the rule flushes it.

#include <algorithm>
#include <functional>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;
using keymgr::RemovalMode;

class VolumeKeys : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
  }
};

TEST_F(VolumeKeys, soft_lets_those_inside_finish_and_the_last_one_out_wipes) {
  const crypto::KeyId id = vault();
  put("/vault/closed", "closed");
  const HandleId handle = open("/vault/open");
  append(handle, "before ");
  const RemovalReport report = remove(id);
  EXPECT_TRUE(report.files_busy);
  EXPECT_EQ(report.state, KeyState::incompletely_removed);
  ASSERT_EQ(report.holders.size(), 1U);
  EXPECT_EQ(report.holders[0].path, "/vault/open");
  EXPECT_EQ(report.holders[0].uid, 1000U);
  EXPECT_EQ(report.holders[0].dirty_bytes, 4096U);
  EXPECT_EQ(report.bytes_flushed, 4096U);  // of the closed one only
  EXPECT_EQ(open_error("/vault/closed"), Errc::no_key);
  EXPECT_EQ(open_error("/vault/open"), Errc::no_key);  // busy does not help
  append(handle, "after");
  EXPECT_TRUE(volume_->fsync(handle));
  EXPECT_EQ(content(handle), "before after");
  append(handle, "!");
  EXPECT_EQ(state(id), KeyState::incompletely_removed);  // refused opens leave nothing behind
  close(handle);
  EXPECT_EQ(state(id), KeyState::absent);
  add_key();
  EXPECT_EQ(content("/vault/open"), "before after!");
  EXPECT_EQ(content("/vault/closed"), "closed");
}

TEST_F(VolumeKeys, soft_with_nobody_inside_wipes_in_the_call_and_what_it_flushed_is_durable) {
  const crypto::KeyId id = vault();
  ASSERT_TRUE(volume_->sync());
  put("/vault/x", "dirty until now");
  const RemovalReport report = remove(id);
  EXPECT_FALSE(report.files_busy);
  EXPECT_EQ(report.state, KeyState::absent);
  EXPECT_EQ(report.bytes_lost, 0U);
  crash(1);
  add_key();
  EXPECT_EQ(content("/vault/x"), "dirty until now");
}

TEST_F(VolumeKeys, the_last_of_several_handles_wipes_and_what_it_closed_is_durable) {
  const crypto::KeyId id = vault();
  const HandleId a = open("/vault/x"), b = open("/vault/x"), c = open("/vault/y");
  EXPECT_EQ(remove(id).holders.size(), 3U);
  append(a, "one");
  close(b);
  append(c, "three");
  close(a);
  EXPECT_EQ(state(id), KeyState::incompletely_removed);
  close(c);
  EXPECT_EQ(state(id), KeyState::absent);
  crash(2);
  add_key();
  EXPECT_EQ(content("/vault/x"), "one");
  EXPECT_EQ(content("/vault/y"), "three");
}

TEST_F(VolumeKeys, adding_the_key_again_under_soft_is_not_noticed_by_open_files) {
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/x");
  append(handle, "a");
  remove(id);
  add_key();
  EXPECT_EQ(state(id), KeyState::present);
  append(handle, "b");
  EXPECT_EQ(content("/vault/x"), "ab");
  close(handle);
  EXPECT_EQ(state(id), KeyState::present);
  EXPECT_EQ(remove(id).state, KeyState::absent);
}

TEST_F(VolumeKeys, nothing_of_a_key_is_left_in_the_arena_once_it_is_absent) {
  const crypto::KeyId id = vault();
  const Heap raw(64, std::byte{7});
  const KeyNeedles needles = needles_of(raw);
  const HandleId handle = open("/vault/x");
  append(handle, std::string(300000, 'x'));
  ASSERT_TRUE(volume_->fsync(handle));
  EXPECT_EQ(content(handle).size(), 300000U);  // extent keys are in their slots now
  const auto rows = volume_->map(handle);
  ASSERT_TRUE(rows);
  const auto schedule = [&](std::size_t row) { return schedule_of(raw, (*rows)[row].nonce); };
  ASSERT_GE(rows->size(), 2U);
  remove(id);
  EXPECT_TRUE(arena_holds(needles.hkdf_inner));
  EXPECT_TRUE(arena_holds(schedule(0).encrypt));
  append(handle, "more");
  close(handle);
  ASSERT_EQ(state(id), KeyState::absent);
  EXPECT_FALSE(arena_holds(needles.master));
  EXPECT_FALSE(arena_holds(needles.hkdf_inner));
  EXPECT_FALSE(arena_holds(needles.hkdf_outer));
  for (std::size_t row = 0; row < rows->size(); ++row) {
    EXPECT_FALSE(arena_holds(schedule(row).encrypt));
    EXPECT_FALSE(arena_holds(schedule(row).tweak));
  }
}

TEST_F(VolumeKeys, claims_of_others_keep_the_key_whatever_the_mode) {
  const crypto::KeyId id = vault();
  add_key({1001});
  const HandleId handle = open("/vault/x");
  append(handle, "dirty");
  const RemovalReport report = remove(id, RemovalMode::hard);
  EXPECT_TRUE(report.other_users);
  EXPECT_EQ(report.state, KeyState::present);
  EXPECT_EQ(report.bytes_lost, 0U);
  EXPECT_EQ(content(handle), "dirty");
  EXPECT_EQ(code_of(volume_->remove_key(kUser, id, RemovalMode::soft)), Errc::no_key);
  EXPECT_EQ(code_of(volume_->remove_key(kUser, id, RemovalMode::soft, true)), Errc::permission);
  const auto all = volume_->remove_key({0}, id, RemovalMode::soft, true);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->state, KeyState::incompletely_removed);
  close(handle);
  EXPECT_EQ(state(id), KeyState::absent);
}

TEST_F(VolumeKeys, hard_counts_what_it_loses_and_tells_each_handle_once) {
  const crypto::KeyId id = vault();
  const HandleId lost = open("/vault/x"), lost_too = open("/vault/x"), whole = open("/vault/y");
  append(whole, "whole");
  append(lost, std::string(8192, 'a'));
  ASSERT_TRUE(volume_->fsync(lost));
  ASSERT_TRUE(volume_->fsync(whole));
  append(lost, std::string(5000, 'b'));
  put("/vault/closed", "dirty");
  const RemovalReport report = remove(id, RemovalMode::hard);
  EXPECT_EQ(report.state, KeyState::absent);
  EXPECT_FALSE(report.files_busy);
  EXPECT_EQ(report.holders.size(), 3U);
  EXPECT_EQ(report.files_lost, 2U);
  EXPECT_EQ(report.bytes_lost, 12288U);  // three dirty pages
  // Cut off: ENOKEY while the key is absent.
  EXPECT_EQ(read_error(lost), Errc::no_key);
  EXPECT_EQ(read_error(whole), Errc::no_key);
  EXPECT_EQ(code_of(volume_->append(lost, bytes_of("c"))), Errc::no_key);
  EXPECT_EQ(code_of(volume_->truncate(lost, 0)), Errc::no_key);
  EXPECT_EQ(code_of(volume_->fsync(lost)), Errc::io);
  EXPECT_EQ(code_of(volume_->fsync(lost)), Errc{});
  // Present again: those that lost nothing go on, the others answer EIO until they are closed.
  add_key();
  EXPECT_EQ(content(whole), "whole");
  EXPECT_EQ(read_error(lost), Errc::io);
  EXPECT_EQ(code_of(volume_->append(lost_too, bytes_of("c"))), Errc::io);
  EXPECT_TRUE(content("/vault/x") ==
              std::string(8192, 'a'));  // a new handle sees what the tree has
  close(lost);                          // it has been told
  EXPECT_EQ(code_of(volume_->close_handle(lost_too)), Errc::io);
  close(whole);
  EXPECT_EQ(content("/vault/closed"), "");
}

// A handle from before the add is inside again from the add on: the next removal finds it busy.
TEST_F(VolumeKeys, add_lets_in_who_has_something_open) {
  const crypto::KeyId id = vault();
  put("/vault/x", "x");
  ASSERT_TRUE(volume_->sync());
  const HandleId file = open("/vault/x", {});
  ASSERT_EQ(remove(id, RemovalMode::hard).state, KeyState::absent);
  const auto directory = volume_->open_directory(kUser, *resolve(*volume_, "/vault"), "/vault");
  ASSERT_TRUE(directory);
  add_key();
  const RemovalReport report = remove(id);
  EXPECT_EQ(report.state, KeyState::incompletely_removed);
  EXPECT_TRUE(report.files_busy);
  EXPECT_EQ(content(file), "x");
  const auto entries = volume_->read_directory(*directory);
  ASSERT_TRUE(entries && entries->size() == 1);
  EXPECT_EQ(entries->front().name, "x");
  close(file);
  EXPECT_EQ(state(id), KeyState::incompletely_removed);
  close(*directory);
  EXPECT_EQ(state(id), KeyState::absent);
}

// Whoever has it open still needs it. At the last close it goes, dirty or not.
TEST_F(VolumeKeys, an_unlinked_file_that_is_open_is_treated_as_any_other) {
  const crypto::KeyId id = vault();
  const InodeId directory = *resolve(*volume_, "/vault");
  const HandleId lost = open("/vault/x"), whole = open("/vault/y"), closed = open("/vault/z");
  append(lost, "kept");
  append(whole, "whole");
  ASSERT_TRUE(volume_->fsync(lost));
  ASSERT_TRUE(volume_->fsync(whole));
  append(lost, " lost");
  append(closed, "gone anyway");
  for (const char* name : {"x", "y", "z"}) ASSERT_TRUE(volume_->unlink(directory, name));
  close(closed);
  const RemovalReport report = remove(id, RemovalMode::hard);
  EXPECT_EQ(report.bytes_lost, 4096U);
  EXPECT_EQ(report.files_lost, 1U);
  add_key();
  EXPECT_EQ(content(whole), "whole");
  EXPECT_EQ(read_error(lost), Errc::io);
  EXPECT_EQ(code_of(volume_->close_handle(lost)), Errc::io);  // reaping needs no key
  close(whole);
}

// Its dirty pages go at the last close, neither flushed nor counted as lost; then the key, and the
// blocks of what was flushed before.
TEST_F(VolumeKeys, the_last_close_of_an_unlinked_dirty_file_finishes_a_soft_removal) {
  const crypto::KeyId id = vault();
  const Heap raw(64, std::byte{7});
  const KeyNeedles needles = needles_of(raw);
  const InodeId directory = *resolve(*volume_, "/vault");
  put("/vault/stays", "stays");
  ASSERT_TRUE(volume_->sync());
  const u64 used = volume_->facts().space.blocks_used;
  const HandleId first = open("/vault/x"), second = open("/vault/x");
  append(first, std::string(kMiB, 'f'));
  ASSERT_TRUE(volume_->fsync(first));
  EXPECT_GE(volume_->facts().space.blocks_used, used + 256);
  append(first, std::string(300000, 'd'));
  ASSERT_TRUE(volume_->unlink(directory, "x"));
  const auto rows = volume_->map(second);  // flushes
  ASSERT_TRUE(rows && !rows->empty());
  append(second, std::string(200000, 'd'));
  EXPECT_EQ(content(second).size(), kMiB + 500000);
  const RemovalReport report = remove(id);
  EXPECT_EQ(report.state, KeyState::incompletely_removed);
  EXPECT_EQ(report.holders.size(), 2U);
  append(first, std::string(1000, 'd'));  // those inside go on
  const u64 sealed = volume_->facts().bytes_sealed;
  close(first);
  EXPECT_EQ(state(id), KeyState::incompletely_removed);
  EXPECT_TRUE(arena_holds(needles.hkdf_inner));
  close(second);  // no error
  EXPECT_EQ(state(id), KeyState::absent);
  EXPECT_EQ(volume_->facts().bytes_sealed, sealed);
  EXPECT_EQ(volume_->facts().dirty_bytes, 0U);
  EXPECT_FALSE(arena_holds(needles.master));
  EXPECT_FALSE(arena_holds(needles.hkdf_inner));
  EXPECT_FALSE(arena_holds(needles.hkdf_outer));
  for (const MapRow& row : *rows) {
    EXPECT_FALSE(arena_holds(schedule_of(raw, row.nonce).encrypt));
    EXPECT_FALSE(arena_holds(schedule_of(raw, row.nonce).tweak));
  }
  ASSERT_TRUE(volume_->sync());
  EXPECT_LE(volume_->facts().space.blocks_used, used + 16) << "data blocks are still taken";
  add_key();
  EXPECT_EQ(content("/vault/stays"), "stays");
}

// The kernel's clock, and a call in the middle of who asks for the time.
class MeddlingEnv final : public Env {
 public:
  u64 monotonic_ns() override {
    if (meddle && ++asked == 3) meddle();
    return system_env().monotonic_ns();
  }
  u64 realtime_ns() override { return system_env().realtime_ns(); }
  void random(MutableBytes bytes) override { system_env().random(bytes); }

  std::function<void()> meddle;
  int asked = 0;
};

// Between the wipe and the dropping of what it cut off, which the report's phases end with a look
// at the clock, a writer comes.
TEST_F(VolumeKeys, hard_drops_and_counts_what_a_late_writer_touches) {
  ASSERT_TRUE(volume_->close());
  MeddlingEnv env;
  volume_ = std::move(*Volume::open(device_, options_, env));
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/file");
  append(handle, "dirty");
  Errc late{};
  env.meddle = [&] { late = code_of(volume_->append(handle, bytes_of("late"))); };
  const RemovalReport report = remove(id, RemovalMode::hard);
  EXPECT_EQ(late, Errc::no_key);
  EXPECT_EQ(report.bytes_lost, 4096U);
  EXPECT_EQ(report.files_lost, 1U);
  EXPECT_EQ(volume_->facts().dirty_bytes, 0U);
  EXPECT_EQ(code_of(volume_->close_handle(handle)), Errc::io);
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  expect_clean();
}

TEST_F(VolumeKeys, an_open_directory_keeps_its_names_and_lets_nobody_new_in) {
  const crypto::KeyId id = vault();
  put("/vault/a-name", "text");
  put("/vault/another", "text");
  const auto inode = resolve(*volume_, "/vault");
  const auto handle = volume_->open_directory(kUser, *inode, "/vault");
  ASSERT_TRUE(handle);
  const RemovalReport report = remove(id);
  EXPECT_EQ(report.state, KeyState::incompletely_removed);
  ASSERT_EQ(report.holders.size(), 1U);
  EXPECT_EQ(report.holders[0].path, "/vault");
  auto entries = volume_->read_directory(*handle);
  ASSERT_TRUE(entries);
  ASSERT_EQ(entries->size(), 2U);
  EXPECT_TRUE(std::ranges::any_of(*entries, [](const DirEntry& e) { return e.name == "a-name"; }));
  EXPECT_EQ(open_error("/vault/a-name"), Errc::no_key);
  EXPECT_EQ(code_of(make_directory(*volume_, kUser, "/vault/new")), Errc::no_key);
  EXPECT_EQ(code_of(volume_->open_file(kUser, *inode, "new", {.write = true, .create = true}, 0600,
                                       "new")),
            Errc::no_key);
  EXPECT_TRUE(volume_->unlink(*inode, "a-name"));
  close(*handle);
  EXPECT_EQ(state(id), KeyState::absent);
  entries = volume_->read_directory(*inode);
  ASSERT_TRUE(entries);
  ASSERT_EQ(entries->size(), 1U);
  EXPECT_NE((*entries)[0].name, "another");
}

TEST_F(VolumeKeys, who_has_no_claim_is_told_of_no_key) {
  static constexpr Caller kStranger{1001}, kRoot{0};
  const auto told = [&](Caller caller, const crypto::KeyId& id) {
    const KeyReport report = volume_->key_status(caller, id);
    const bool nothing = report.state == KeyState::absent && report.user_count == 0 &&
                         !report.added_by_self && report.holders.empty();
    EXPECT_EQ(volume_->key_list(caller).size(), nothing ? 0U : 1U);
    return !nothing;
  };
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/x");
  EXPECT_TRUE(told(kUser, id));
  EXPECT_TRUE(told(kRoot, id));
  EXPECT_FALSE(told(kStranger, id));
  // Nor is it told by the answer to a removal.
  EXPECT_EQ(code_of(volume_->remove_key(kStranger, id, RemovalMode::soft)), Errc::no_key);
  add_key(kStranger);
  EXPECT_TRUE(told(kStranger, id));
  ASSERT_TRUE(volume_->remove_key(kStranger, id, RemovalMode::soft));
  EXPECT_TRUE(told(kStranger, id)) << "who had one knows it";
  remove(id);
  EXPECT_TRUE(told(kUser, id));
  EXPECT_FALSE(told({1002}, id));
  close(handle);
  options_.status_public = true;
  reopen();
  add_key();
  EXPECT_TRUE(told(kStranger, id));
}

TEST_F(VolumeKeys, in_an_open_directory_only_what_is_unlocked_gets_another_name) {
  const crypto::KeyId id = vault();
  put("/vault/locked", "text");
  ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/sub"));
  const HandleId busy = open("/vault/busy");
  const auto vault = resolve(*volume_, "/vault");
  const auto locked = resolve(*volume_, "/vault/locked"), inside = resolve(*volume_, "/vault/busy");
  const auto handle = volume_->open_directory(kUser, *vault, "/vault");
  ASSERT_TRUE(handle);
  remove(id);
  EXPECT_EQ(code_of(volume_->rename(*vault, "locked", *vault, "other")), Errc::no_key);
  EXPECT_EQ(code_of(volume_->rename(*vault, "sub", *vault, "other")), Errc::no_key);
  EXPECT_EQ(code_of(volume_->rename(*vault, "busy", *vault, "locked", {.exchange = true})),
            Errc::no_key);
  EXPECT_EQ(code_of(volume_->link(*locked, *vault, "other")), Errc::no_key);
  EXPECT_EQ(code_of(volume_->link(*locked, kRootInode, "out")), Errc::no_key);
  EXPECT_TRUE(volume_->rename(*vault, "busy", *vault, "moved"));
  EXPECT_TRUE(volume_->link(*inside, *vault, "second"));
  EXPECT_TRUE(volume_->rename(*vault, "moved", *vault, "locked")) << "deletes without a key";
  close(*handle);
  close(busy);
  EXPECT_EQ(state(id), KeyState::absent);
  // Outside of encrypted directories a name can change whoever it leads to.
  add_key();
  ASSERT_TRUE(volume_->link(*inside, kRootInode, "out"));
  remove(id);
  EXPECT_TRUE(volume_->rename(kRootInode, "out", kRootInode, "still-out"));
  EXPECT_EQ(code_of(volume_->link(*inside, kRootInode, "another")), Errc::no_key);
}

TEST_F(VolumeKeys, being_the_parent_of_an_open_file_does_not_make_a_directory_busy) {
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/x");
  EXPECT_EQ(remove(id).holders.size(), 1U);
  const auto entries = volume_->read_directory(*resolve(*volume_, "/vault"));
  ASSERT_TRUE(entries);
  EXPECT_NE((*entries)[0].name, "x");
  close(handle);
}

TEST_F(VolumeKeys, compat_fscrypt_answers_as_the_kernel_does) {
  options_.compat_fscrypt = true;
  reopen();
  const crypto::KeyId id = vault();
  put("/vault/closed", "text");
  const HandleId busy = open("/vault/busy");
  const auto directory = volume_->open_directory(kUser, *resolve(*volume_, "/vault"), "/vault");
  ASSERT_TRUE(directory);
  remove(id);
  close(open("/vault/busy", {}));
  EXPECT_EQ(open_error("/vault/closed"), Errc::no_key);
  close(*directory);
  EXPECT_TRUE(resolve(*volume_, "/vault/closed")) << "the open file keeps its directory";
  close(busy);
  // Whoever has left stays until the removal is asked for again.
  EXPECT_EQ(state(id), KeyState::incompletely_removed);
  close(open("/vault/busy", {}));
  EXPECT_EQ(remove(id).state, KeyState::absent);
  EXPECT_EQ(code_of(resolve(*volume_, "/vault/closed")), Errc::not_found);
}

TEST_F(VolumeKeys, compat_what_lingers_goes_with_its_name_and_with_its_data_kept) {
  options_.compat_fscrypt = true;
  reopen();
  const crypto::KeyId id = vault();
  const auto vault = resolve(*volume_, "/vault");
  ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/sub"));
  const HandleId kept = open("/vault/sub/kept"), gone = open("/vault/gone");
  remove(id);
  append(kept, "written late");
  append(gone, "not wanted any more");
  close(kept);
  close(gone);
  EXPECT_EQ(state(id), KeyState::incompletely_removed);
  EXPECT_EQ(volume_->key_status(kUser, id).holders.size(), 0U);
  EXPECT_TRUE(volume_->unlink(*vault, "gone"));
  EXPECT_EQ(volume_->facts().dirty_bytes, 4096U);  // of the other one
  const RemovalReport report = remove(id);
  EXPECT_EQ(report.state, KeyState::absent);
  EXPECT_FALSE(report.files_busy);
  EXPECT_EQ(report.bytes_flushed, 4096U);
  crash(3);
  add_key();
  EXPECT_EQ(content("/vault/sub/kept"), "written late");
}

TEST_F(VolumeKeys, compat_a_key_turns_absent_by_itself_once_its_names_are_gone) {
  options_.compat_fscrypt = true;
  reopen();
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/file");
  remove(id);
  close(handle);
  EXPECT_TRUE(remove_tree(*volume_, "/vault"));
  EXPECT_EQ(state(id), KeyState::absent);
}

TEST_F(VolumeKeys, policies_are_inherited_and_do_not_mix) {
  const crypto::KeyId id = vault();
  const auto other = volume_->add_key(kUser, master_key(8));
  ASSERT_TRUE(other);
  ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/sub"));
  const auto sub = resolve(*volume_, "/vault/sub");
  EXPECT_EQ(volume_->stat(*sub)->key_id, id);
  EXPECT_TRUE(volume_->set_policy(kUser, *sub, id));
  EXPECT_EQ(code_of(volume_->set_policy(kUser, *sub, *other)), Errc::exists);
  put("/vault/sub/x", "text");
  EXPECT_EQ(volume_->stat(*resolve(*volume_, "/vault/sub/x"))->key_id, id);
  ASSERT_TRUE(make_directory(*volume_, kUser, "/plain"));
  put("/plain/x", "text");
  const auto plain = resolve(*volume_, "/plain");
  EXPECT_EQ(code_of(volume_->set_policy(kUser, *plain, id)), Errc::not_empty);
  EXPECT_EQ(code_of(volume_->set_policy(kUser, *resolve(*volume_, "/plain/x"), id)), Errc::not_dir);
  EXPECT_FALSE(volume_->stat(*plain)->key_id);
  // Another user's claim does not do, but for root; nor is a directory of another user's.
  ASSERT_TRUE(make_directory(*volume_, {1001}, "/empty"));
  const auto empty = resolve(*volume_, "/empty");
  EXPECT_EQ(code_of(volume_->set_policy({1001}, *empty, id)), Errc::no_key);
  EXPECT_EQ(code_of(volume_->set_policy(kUser, *empty, id)), Errc::permission);
  EXPECT_TRUE(volume_->set_policy({0}, *empty, id));
  // Two directories of one key name the same thing differently: each has a nonce of its own.
  remove(id);
  const auto shown = volume_->read_directory(*resolve(*volume_, "/vault"));
  ASSERT_TRUE(shown && shown->size() == 1);
  EXPECT_TRUE(volume_->stat(*sub)->locked);
}

TEST_F(VolumeKeys, a_broken_device_does_not_keep_a_key_alive) {
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/x");
  put("/vault/closed", "dirty");
  ASSERT_TRUE(volume_->fsync(handle));
  append(handle, "dirty");
  device_.inject({.kind = engine::OpKind::write, .sticky = true});
  const RemovalReport report = remove(id);
  EXPECT_EQ(report.state, KeyState::incompletely_removed);
  EXPECT_EQ(report.bytes_lost, 4096U);
  EXPECT_EQ(report.files_lost, 1U);
  EXPECT_EQ(code_of(volume_->close_handle(handle)), Errc::io);
  EXPECT_EQ(state(id), KeyState::absent);
  device_.clear_faults();
  volume_.reset();  // the store may have stopped: what is on the device is what counts
  expect_clean();
}

TEST_F(VolumeKeys, closing_a_volume_wipes_its_keys) {
  vault();
  const KeyNeedles needles = needles_of(Heap(64, std::byte{7}));
  open("/vault/x");
  EXPECT_TRUE(arena_holds(needles.hkdf_inner));
  ASSERT_TRUE(volume_->close());
  EXPECT_FALSE(arena_holds(needles.hkdf_inner));
  volume_.reset();
  expect_clean();
}

}  // namespace
}  // namespace latchkey::tests
