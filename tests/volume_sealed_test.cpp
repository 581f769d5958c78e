// Goal: after a sealed removal the master is gone, and the files that were open go on without
// limit under keys of their own, which go with them (design 3, "sealed"). Method: each rule by name
// on a SimDevice; the arena is searched for what must and must not be in it.

#include <map>

#include "keymgr/own_keys.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;
using keymgr::RemovalMode;

class VolumeSealed : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
    id_ = vault();
  }
  RemovalReport seal() { return remove(id_, RemovalMode::sealed); }
  std::vector<MapRow> map_of(HandleId handle) {
    auto rows = volume_->map(handle);
    EXPECT_TRUE(rows);
    return rows ? *rows : std::vector<MapRow>{};
  }
  bool master_is_here() const {
    return arena_holds(needles_.master) || arena_holds(needles_.hkdf_inner) ||
           arena_holds(needles_.hkdf_outer);
  }

  crypto::KeyId id_;
  const Heap raw_ = Heap(64, std::byte{7});
  const KeyNeedles needles_ = needles_of(raw_);
};

TEST_F(VolumeSealed, open_files_go_on_without_the_master_and_nothing_is_lost) {
  const HandleId handle = open("/vault/open");
  append(handle, std::string(300000, 'a'));  // extents that it must be able to read
  ASSERT_TRUE(volume_->fsync(handle));
  append(handle, "dirty");
  put("/vault/closed", "closed");
  ASSERT_TRUE(master_is_here());
  const RemovalReport report = seal();
  EXPECT_EQ(report.state, KeyState::incompletely_removed);
  EXPECT_TRUE(report.files_busy);
  EXPECT_EQ(report.bytes_flushed, 4096U) << "of the closed one";
  EXPECT_EQ(report.own_keys, 3U);
  EXPECT_EQ(report.own_key_bytes, keymgr::OwnKeys::bytes_for(3));
  EXPECT_FALSE(master_is_here());
  EXPECT_EQ(open_error("/vault/open"), Errc::no_key);
  EXPECT_EQ(open_error("/vault/closed"), Errc::no_key);

  EXPECT_EQ(content(handle), std::string(300000, 'a') + "dirty");
  append(handle, " and more");
  ASSERT_TRUE(volume_->fsync(handle));
  ASSERT_TRUE(volume_->write(handle, 4096 * 7 + 100, bytes_of("inside")));
  ASSERT_TRUE(volume_->truncate(handle, 200000));
  append(handle, std::string(500000, 'b'));
  ASSERT_TRUE(volume_->punch(handle, 8192, 4096));
  ASSERT_TRUE(volume_->clone_range(handle, 0, handle, 1 << 20, 16384));
  ASSERT_TRUE(volume_->fsync(handle));
  const std::string all = content(handle);
  EXPECT_EQ(all.substr(4096 * 7 + 100, 6), "inside");
  EXPECT_EQ(all.substr(1 << 20, 16384), all.substr(0, 16384));
  EXPECT_FALSE(master_is_here());
  close(handle);
  EXPECT_EQ(state(id_), KeyState::absent);
  crash(1);
  add_key();
  EXPECT_EQ(content("/vault/open"), all) << "extents of the write key are derived as any other";
  EXPECT_EQ(content("/vault/closed"), "closed");
}

TEST_F(VolumeSealed, no_data_unit_of_the_write_key_is_used_twice) {
  const HandleId handle = open("/vault/open");
  seal();
  std::map<u64, u64> block_of;  // each unit that was ever seen, and where: never anywhere else
  crypto::Nonce nonce;
  for (int round = 0; round < 40; ++round) {
    ASSERT_TRUE(volume_->write(handle, static_cast<u64>(round % 7) * 4096,
                               bytes_of(std::string(12000, static_cast<char>('a' + round % 26)))));
    if (round % 3 == 0) {
      ASSERT_TRUE(volume_->truncate(handle, 20000 + static_cast<u64>(round)));
    }
    ASSERT_TRUE(volume_->fsync(handle));
    for (const MapRow& row : map_of(handle)) {
      if (round == 0) nonce = row.nonce;
      EXPECT_EQ(row.nonce, nonce) << "one write key";
      for (u64 i = 0; i < row.length / 4096; ++i) {
        const u64 block = row.device_offset / 4096 + i;
        const auto [seen, fresh] = block_of.try_emplace(row.first_unit + i, block);
        EXPECT_EQ(seen->second, block) << "unit " << row.first_unit + i;
      }
    }
  }
  EXPECT_GT(block_of.size(), 80U) << "each overwrite has units of its own";
  close(handle);
}

TEST_F(VolumeSealed, fsynced_data_is_there_after_a_crash_under_the_seal) {
  const HandleId handle = open("/vault/open");
  append(handle, "first ");
  seal();
  append(handle, "second");
  ASSERT_TRUE(volume_->fsync(handle));
  append(handle, ", third");
  ASSERT_TRUE(volume_->fsync(handle));  // into the log, with its unit
  crash(3);
  add_key();
  EXPECT_EQ(content("/vault/open"), "first second, third");
}

TEST_F(VolumeSealed, only_what_was_busy_keeps_keys_and_they_go_at_its_last_close) {
  const HandleId one = open("/vault/one"), two = open("/vault/two");
  append(one, "one");
  append(two, "two");
  ASSERT_TRUE(volume_->fsync(one));
  ASSERT_TRUE(volume_->fsync(two));
  const crypto::Nonce of_one = map_of(one).at(0).nonce, of_two = map_of(two).at(0).nonce;
  put("/vault/closed", "closed");
  seal();
  const auto raw_of = [&](const crypto::Nonce& nonce) {
    auto state = Secret<crypto::HkdfState>::create();
    SecretBytes secret = in_arena(raw_);
    crypto::hkdf_extract(secret.bytes(), **state);
    auto key = SecretBytes::create(64);
    crypto::hkdf_expand(**state, crypto::Context::per_extent, nonce.span(), key->bytes());
    return Heap(key->bytes().begin(), key->bytes().end());
  };
  EXPECT_TRUE(arena_holds(raw_of(of_one)));
  EXPECT_TRUE(arena_holds(raw_of(of_two)));
  EXPECT_EQ(content(one), "one");
  close(one);
  EXPECT_FALSE(arena_holds(raw_of(of_one)));
  EXPECT_FALSE(arena_holds(schedule_of(raw_, of_one).encrypt)) << "nor in a slot";
  EXPECT_TRUE(arena_holds(raw_of(of_two)));
  EXPECT_EQ(state(id_), KeyState::incompletely_removed);
  close(two);
  EXPECT_FALSE(arena_holds(raw_of(of_two)));
  EXPECT_EQ(state(id_), KeyState::absent);
}

TEST_F(VolumeSealed, directory_keeps_its_names_and_what_needs_the_master_is_refused) {
  put("/vault/name", "x");
  const InodeId directory = *resolve(*volume_, "/vault");
  const auto handle = volume_->open_directory(kUser, directory, "/vault");
  ASSERT_TRUE(handle);
  const HandleId file = open("/vault/name");
  ASSERT_TRUE(volume_->set_xattr(file, "user.a", bytes_of("value")));
  seal();
  const auto entries = volume_->read_directory(*handle);
  ASSERT_TRUE(entries);
  ASSERT_EQ(entries->size(), 1U);
  EXPECT_EQ(entries->front().name, "name");
  EXPECT_EQ(code_of(volume_->mkdir(kUser, directory, "new", 0755)), Errc::no_key);
  EXPECT_EQ(code_of(open_path(*volume_, kUser, "/vault/new", {.write = true, .create = true})),
            Errc::no_key);
  const auto value = volume_->get_xattr(file, "user.a");
  ASSERT_TRUE(value);
  EXPECT_EQ(value->size(), 5U);
  ASSERT_TRUE(volume_->set_xattr(file, "user.b", bytes_of("more")));
  EXPECT_TRUE(volume_->unlink(directory, "name"));
  append(file, "unlinked, and goes on");
  close(file);
  close(*handle);
  EXPECT_EQ(state(id_), KeyState::absent);
}

TEST_F(VolumeSealed, adding_the_key_again_is_not_noticed_and_sealing_again_works) {
  const HandleId handle = open("/vault/open");
  std::string expected;
  for (int round = 0; round < 4; ++round) {
    const std::string text = "round " + std::to_string(round) + ";" + std::string(9000, 'r');
    append(handle, text);
    expected += text;
    EXPECT_EQ(seal().state, KeyState::incompletely_removed);
    append(handle, "sealed;");
    expected += "sealed;";
    if (round % 2 == 0) {
      ASSERT_TRUE(volume_->fsync(handle));
    }
    EXPECT_EQ(content(handle), expected);
    add_key();
    EXPECT_EQ(state(id_), KeyState::present);
    EXPECT_EQ(content(handle), expected);
  }
  const auto rows = map_of(handle);
  close(handle);
  EXPECT_EQ(remove(id_).state, KeyState::absent);
  add_key();
  EXPECT_EQ(content("/vault/open"), expected);
}

TEST_F(VolumeSealed, past_its_bound_of_memory_it_refuses_and_changes_nothing) {
  options_.sealed_bytes_max = keymgr::OwnKeys::bytes_for(2);
  reopen();
  add_key();
  const HandleId handle = open("/vault/open");
  append(handle, std::string(300000, 'a'));
  ASSERT_TRUE(volume_->fsync(handle));
  RemovalReport report;
  const auto refused = volume_->remove_key(kUser, id_, {.mode = RemovalMode::sealed}, report);
  EXPECT_EQ(code_of(refused), Errc::no_memory);
  EXPECT_EQ(report.own_keys, 0U);
  EXPECT_EQ(state(id_), KeyState::present);
  append(handle, "b");
  put("/vault/new", "the door is open");
  ASSERT_TRUE(volume_->truncate(handle, 4096));
  ASSERT_TRUE(volume_->fsync(handle));
  EXPECT_EQ(seal().own_keys, 1U);
  close(handle);
}

TEST_F(VolumeSealed, clone_between_files_is_refused_for_they_have_no_key_in_common) {
  const HandleId from = open("/vault/from"), to = open("/vault/to");
  append(from, std::string(8192, 'f'));
  append(to, std::string(8192, 't'));
  seal();
  EXPECT_EQ(code_of(volume_->clone_range(from, 0, to, 0, 4096)), Errc::no_key);
  EXPECT_EQ(content(to), std::string(8192, 't'));
  close(from);
  close(to);
}

TEST_F(VolumeSealed, goes_back_when_the_device_refuses_the_flush) {
  const HandleId handle = open("/vault/open");
  append(handle, "open");
  put("/vault/closed", "dirty");
  device_.inject({.kind = engine::OpKind::write, .sticky = true});
  RemovalReport report;
  EXPECT_EQ(code_of(volume_->remove_key(kUser, id_, {.mode = RemovalMode::sealed}, report)),
            Errc::io);
  EXPECT_EQ(state(id_), KeyState::present);
  EXPECT_TRUE(master_is_here());
  device_.clear_faults();
  const HandleId closed = open("/vault/closed", {});
  EXPECT_EQ(content(closed), "dirty");
  EXPECT_EQ(code_of(volume_->close_handle(closed)), Errc::io) << "the error is told once";
  append(handle, "!");
  seal();
  EXPECT_EQ(content(handle), "open!");
  close(handle);
}

TEST_F(VolumeSealed, hard_on_top_loses_what_is_dirty_and_says_so) {
  const HandleId handle = open("/vault/open");
  append(handle, "durable");
  ASSERT_TRUE(volume_->fsync(handle));
  seal();
  append(handle, "lost");
  const RemovalReport report = remove(id_, RemovalMode::hard);
  EXPECT_EQ(report.state, KeyState::absent);
  EXPECT_EQ(report.bytes_lost, 4096U);
  EXPECT_EQ(read_error(handle), Errc::no_key);
  EXPECT_EQ(code_of(volume_->close_handle(handle)), Errc::io);
  add_key();
  EXPECT_EQ(content("/vault/open"), "durable");
}

}  // namespace
}  // namespace latchkey::tests
