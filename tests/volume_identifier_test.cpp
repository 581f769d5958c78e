// Goal: a key is used for what its own identifier names, and for nothing else: whatever identifier
// a caller gives, and whatever somebody else has written to the device.
// Method: identifiers of no key, and of another key that is present, are put into inode items
// (every checksum is right), and then everything is tried. (Those in extents' contexts:
// check_data_test.)

#include <cerrno>
#include <cstring>

#include "tests/support/check_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

class Identifier : public CheckTest {
 protected:
  void SetUp() override {
    CheckTest::SetUp();
    unlock();
    const auto vault = resolve(*volume_, "/vault");
    ASSERT_TRUE(vault && volume_->symlink(kUser, *vault, "link", "file"));
    put("/vault/empty", "");
    ASSERT_TRUE(volume_->link(*resolve(*volume_, "/vault/file"), kRootInode, "outside"));
    link_ = number("/vault/link");
    empty_ = number("/vault/empty");
    sub_vault_ = number("/vault/sub");
    mine_ = *volume_->stat(*vault)->key_id;
    shut();
  }
  // An expected clean store is not: what is planted stays.
  void TearDown() override {
    if (!volume_) return;
    EXPECT_TRUE(volume_->close());
    volume_.reset();
  }
  void plant(u64 inode, const crypto::KeyId& id) {
    change_inode(inode, [&](InodeDisk& disk) { disk.key_id = id.bytes; });
  }
  // The vault's key and the other one are present, so is a claim of the user on both.
  void unlock_both() {
    unlock();
    const auto id = volume_->add_key(kUser, master_key(8));
    ASSERT_TRUE(id);
    ASSERT_EQ(*id, other_);
  }
  Errc open_by_inode(u64 inode, OpenFlags flags = {.write = true}) {
    return code_of(volume_->open(kUser, {kRootInode.subvolume, inode}, flags, "it"));
  }
  Errc error_at(std::string_view path, OpenFlags flags = {.write = true}) {
    return code_of(open_path(*volume_, kUser, path, flags));
  }
  u64 holders(const crypto::KeyId& id) {
    u64 inside = 0;
    for (const KeyReport& report : volume_->key_list({0}))
      if (report.key_id == id) inside = report.holders.size();
    return inside;
  }

  crypto::KeyId mine_;
  const crypto::KeyId other_ = needles_of(Heap(64, std::byte{8})).id;
  const crypto::KeyId nobodys_ = needles_of(Heap(64, std::byte{9})).id;
  u64 link_ = 0, empty_ = 0, sub_vault_ = 0;
};

// The file is empty, so no extent says under what it was sealed: what is written into it would be
// under the other key.
TEST_F(Identifier, a_file_with_another_policy_than_its_directorys_is_not_opened) {
  for (const crypto::KeyId& planted : {other_, nobodys_}) {
    plant(empty_, planted);
    unlock_both();
    EXPECT_EQ(error_at("/vault/empty"), Errc::not_permitted);
    EXPECT_EQ(error_at("/vault/empty", {.write = true, .create = true, .truncate = true}),
              Errc::not_permitted);
    EXPECT_EQ(open_by_inode(empty_), Errc::not_permitted);
    EXPECT_EQ(holders(other_), 0U);
    EXPECT_TRUE(open_path(*volume_, kUser, "/vault/file", {})) << "others are as ever";
    shut();
  }
  unlock_both();
  EXPECT_TRUE(volume_->unlink(*resolve(*volume_, "/vault"), "empty")) << "it can be removed";
}

TEST_F(Identifier, a_plain_file_in_an_encrypted_directory_is_not_opened) {
  change_inode(empty_, [](InodeDisk& disk) {
    disk.encrypted = disk.contents_mode = disk.names_mode = disk.policy_flags = 0;
    disk.key_id = disk.nonce = {};
  });
  unlock();
  EXPECT_EQ(error_at("/vault/empty"), Errc::not_permitted);
  EXPECT_EQ(open_by_inode(empty_), Errc::not_permitted);
}

TEST_F(Identifier, nor_is_a_directory_or_a_symlink_entered) {
  for (const crypto::KeyId& planted : {other_, nobodys_}) {
    plant(sub_vault_, planted);
    plant(link_, planted);
    unlock_both();
    EXPECT_EQ(code_of(resolve(*volume_, "/vault/sub")), Errc::not_permitted);
    EXPECT_EQ(code_of(resolve(*volume_, "/vault/link")), Errc::not_permitted);
    EXPECT_EQ(error_at("/vault/sub/file"), Errc::not_permitted);
    EXPECT_EQ(error_at("/vault/sub/new", {.write = true, .create = true}), Errc::not_permitted);
    shut();
  }
}

// By a name in a plain directory the file is reached all the same: nothing is read under a key that
// did not seal it, and of an identifier that is no key's none is used at all.
TEST_F(Identifier, what_another_key_sealed_is_not_opened_under_this_one) {
  plant(file_, other_);
  unlock_both();
  const HandleId handle = open("/outside", {.write = true});
  EXPECT_EQ(read_error(handle), Errc::damaged);
  EXPECT_EQ(read_error(handle, 131072), Errc::damaged);
  std::byte part{};
  EXPECT_EQ(code_of(volume_->write(handle, 100, {&part, 1})), Errc::damaged)
      << "a block that is not written whole is read first";
  close(handle);
  shut();

  plant(file_, nobodys_);
  unlock_both();
  EXPECT_EQ(error_at("/outside"), Errc::no_key);
  EXPECT_EQ(code_of(volume_->set_xattr(*resolve(*volume_, "/outside"), "user.a", {})),
            Errc::no_key);
}

TEST_F(Identifier, the_topmost_directory_with_nobodys_identifier_is_locked_whatever_is_present) {
  plant(vault_, nobodys_);
  unlock_both();
  const auto entries = volume_->read_directory({kRootInode.subvolume, vault_});
  ASSERT_TRUE(entries);
  for (const DirEntry& entry : *entries) EXPECT_NE(entry.name, "file");
  EXPECT_EQ(error_at("/vault/file"), Errc::no_key);
  EXPECT_EQ(error_at("/vault/new", {.write = true, .create = true}), Errc::no_key);
}

// What a caller gives names a key that is present, or nothing; it never becomes a key's name.
TEST_F(Identifier, an_identifier_of_the_callers_is_looked_for_and_not_believed) {
  unlock();
  const auto made = make_directory(*volume_, kUser, "/made");
  ASSERT_TRUE(made);
  for (const u32 bit : {0U, 7U, 64U, 127U}) {
    crypto::KeyId wrong = mine_;
    wrong.bytes[bit / 8] ^= std::byte(1U << bit % 8);
    EXPECT_EQ(code_of(volume_->set_policy(kUser, *made, wrong)), Errc::no_key);
    EXPECT_EQ(code_of(volume_->set_policy({0}, *made, wrong)), Errc::no_key);
    EXPECT_EQ(code_of(volume_->remove_key(kUser, wrong, keymgr::RemovalMode::soft)), Errc::no_key);
    EXPECT_EQ(state(wrong), keymgr::KeyState::absent);
  }
  EXPECT_EQ(state(mine_), keymgr::KeyState::present);
  EXPECT_FALSE(volume_->stat(*made)->key_id);
}

}  // namespace
}  // namespace latchkey::tests
