// Goal: each rule of the offline check about inodes and names finds what breaks it, at its place,
// and nothing else; a store that nobody damaged has no findings. It needs no key.
// Method: one record after the other is changed, see check_fixture.h.

#include "tests/support/check_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using engine::Key;
using engine::kFirstSubvolume;
using engine::Record;
using engine::Transaction;

constexpr u64 kBlock = engine::kBlockBytes;

// --- nothing is wrong ---------------------------------------------------------------------------

TEST_F(CheckTest, store_that_nobody_damaged_has_no_findings_and_is_counted) {
  expect({});
  const auto check = check_volume(device_, {}, system_env());
  ASSERT_TRUE(check);
  EXPECT_TRUE(check->notes.empty());
  EXPECT_EQ(check->inodes, 10U);
  EXPECT_EQ(check->directories, 5U);
  EXPECT_EQ(check->data_blocks, 3U + 1 + (300000 + kBlock - 1) / kBlock + 1 + 1);
}

TEST_F(CheckTest, file_that_was_unlinked_while_open_is_none) {
  open_again();
  add_key();
  (void)open("/vault/file", {});
  const HandleId plain = open("/plain", {.write = true});
  ASSERT_TRUE(volume_->unlink({kFirstSubvolume, vault_}, "file"));
  ASSERT_TRUE(volume_->unlink(kRootInode, "plain"));
  ASSERT_TRUE(volume_->append(plain, bytes_of("more")));
  ASSERT_TRUE(volume_->fsync(plain));
  volume_.reset();  // as a crash does: nobody reaped them
  expect({});
  const auto check = check_volume(device_, {}, system_env());
  EXPECT_EQ(check->inodes, 10U) << "they are still there";
}

// --- records by themselves ----------------------------------------------------------------------

TEST_F(CheckTest, records_of_unknown_types_and_places_are_found) {
  put_record({plain_, 99, 7}, bytes_of("x"));
  put_record({kRootNumber - 1, kInodeType, 0}, bytes_of("x"));
  put_record({kCounterObject, kCounterType, 1}, bytes_of("x"));
  damage([](Transaction& t) { return t.put(engine::kKeyTree, {1, 2, 3}, bytes_of("x")); });
  expect({"key (" + std::to_string(plain_) + ", 99, 7): a record of an unknown type",
          "key (255, 1, 0): a record of an unknown type",
          "key (1, 10, 1): a record of an unknown type",
          "key (1, 2, 3): a record of an unknown type in the tree of keys"});
}

TEST_F(CheckTest, tree_of_unknown_purpose_is_found) {
  damage([](Transaction& t) { return t.create_tree(999); });
  expect({"tree 999: a tree of an unknown purpose"});
}

TEST_F(CheckTest, counter_of_inode_numbers_must_be_there_and_ahead) {
  const Key counter{kCounterObject, kCounterType, 0};
  erase_record(counter);
  expect({"inode counter: the counter of inode numbers is missing"});
  put_record(counter, bytes_of("abc"));
  expect({"inode counter: the counter of inode numbers is missing",
          "key (1, 10, 0): the counter of inode numbers is malformed"});
  const Le64 low(last_);
  put_record(counter, std::as_bytes(std::span(&low, 1)));
  expect({at(last_) + ": an inode number beyond the counter"});
}

TEST_F(CheckTest, inode_item_must_be_what_we_write) {
  const std::string malformed = at(plain_) + ": an inode item is malformed";
  const std::function<void(InodeDisk&)> damages[] = {
      [](InodeDisk& d) { d.version = 2; },
      [](InodeDisk& d) { d.kind = 9; },
      [](InodeDisk& d) { d.kind = 3; },  // as long as no symlink is
      [](InodeDisk& d) { d.kind = 4; },  // a fifo has no size
      [](InodeDisk& d) { d.kind = 6, d.size = u64{1} << 32; },
      [](InodeDisk& d) { d.encrypted = 2; },
      [](InodeDisk& d) { d.contents_mode = 1; },
      [](InodeDisk& d) { d.names_mode = 4; },
      [](InodeDisk& d) { d.policy_flags = 3; },
      [](InodeDisk& d) { d.reserved0 = 1; },
      [](InodeDisk& d) { d.mode = 010000; },
      [](InodeDisk& d) { d.size = (u64{1} << 62) + 1; },
      [](InodeDisk& d) { d.key_id[0] = std::byte{1}; },
      [](InodeDisk& d) { d.nonce[15] = std::byte{1}; },
      [](InodeDisk& d) { d.reserved0 = 2; },
  };
  const SimImage whole = device_.durable();
  for (const auto& one : damages) {
    change_inode(plain_, one);
    expect({malformed});
    device_.restore(whole);
  }
  const std::string vault_malformed = at(file_) + ": an inode item is malformed";
  for (const auto& one : std::initializer_list<std::function<void(InodeDisk&)>>{
           [](InodeDisk& d) { d.contents_mode = 5; }, [](InodeDisk& d) { d.names_mode = 9; },
           [](InodeDisk& d) { d.policy_flags = 0; }, [](InodeDisk& d) { d.encrypted = 0; }}) {
    change_inode(file_, one);
    expect({vault_malformed});
    device_.restore(whole);
  }
  put_record(inode_key(plain_), bytes_of("short"));
  expect({at(plain_) + ": an inode item has a wrong size"});
  device_.restore(whole);
  damage([&](Transaction& t) -> Result<void> {
    LK_TRY(const auto item, t.get(kFirstSubvolume, inode_key(plain_)));
    if (!item) return fail(Errc::not_found, "the inode is gone");
    return t.put(kFirstSubvolume, {plain_, kInodeType, 5}, item->value);
  });
  expect({at(plain_) + ": an inode item lies at a wrong place"});
}

TEST_F(CheckTest, names_must_be_well_formed) {
  const SimImage whole = device_.durable();
  const Record back = back_of(small_, kRootNumber, "small");
  for (const std::size_t size : {0U, 8U, 9U, 13U, 15U}) {
    Record wrong = back;
    wrong.value.resize(size);
    put_record(back.key, wrong.value);
    const Record entry = entry_of(kRootNumber, small_);
    expect({at(small_) + ": a back item is malformed",
            at(kRootNumber, entry, small_) + ": a name without a back item"});
    device_.restore(whole);
  }
  const Record entry = entry_of(kRootNumber, small_);
  for (const auto& fn : std::initializer_list<std::function<void(Record&)>>{
           [](Record& r) { r.value.resize(9); }, [](Record& r) { r.value.push_back({}); },
           [](Record& r) { r.value[8] = std::byte{9}; },
           [](Record& r) { r.value.resize(10), r.value[9] = {}; }}) {
    Record wrong = entry;
    fn(wrong);
    put_record(entry.key, wrong.value);
    expect({at(kRootNumber, entry) + ": a directory entry is malformed",
            at(small_) + ", directory 256: a back item without a name",
            at(small_) + ": 0 names lead to an inode with 1 links"});
    device_.restore(whole);
  }
}

TEST_F(CheckTest, name_must_lie_where_it_is_looked_for) {
  Record entry = entry_of(kRootNumber, small_);
  erase_record(entry.key);
  entry.key.offset += kEntrySlots;
  put_record(entry.key, entry.value);
  expect({at(kRootNumber, entry, small_) + ": a directory entry lies at the wrong hash"});
}

// Renames `inode` in `directory`, entry and back item.
TEST_F(CheckTest, name_must_be_one_that_could_be_made) {
  const SimImage whole = device_.durable();
  const auto rename = [&](u64 directory, u64 inode, std::string name) {
    Entry fresh;
    damage([&](Transaction& t) -> Result<void> {
      const Record old = entry_of(t, directory, inode);
      LK_TRYV(t.erase(kFirstSubvolume, old.key));
      LK_TRY(fresh, decode_entry(kFirstSubvolume, old.key, old.value));
      fresh.stored = name;
      fresh.key.offset = entry_offset(name) + 3;
      LK_TRYV(t.put(kFirstSubvolume, fresh.key, encode_entry(fresh)));
      for (const Record& back :
           records(t, kFirstSubvolume, {inode, kBackType, 0}, {inode, kBackType, ~u64{0}}))
        LK_TRYV(t.erase(kFirstSubvolume, back.key));
      const Record back = back_of(inode, directory, name);
      return t.put(kFirstSubvolume, back.key, back.value);
    });
    return Record{fresh.key, {}};
  };
  rename(kRootNumber, small_, "other");
  rename(vault_, file_, std::string(64, '\1'));
  rename(vault_, file_, std::string(255, '/'));
  expect({});
  for (const std::string& name :
       {std::string("a/b"), std::string("."), std::string(".."), std::string("nul\0", 4)}) {
    const Record entry = rename(kRootNumber, small_, name);
    expect({at(kRootNumber, entry, small_) + ": a directory entry has an impossible name"});
    device_.restore(whole);
  }
  for (const std::size_t size : {1U, 31U, 33U, 254U}) {
    const Record entry = rename(vault_, file_, std::string(size, 'n'));
    expect({at(vault_, entry, file_) + ": a directory entry has an impossible name"});
    device_.restore(whole);
  }
}

// --- names and inodes ---------------------------------------------------------------------------

TEST_F(CheckTest, name_and_back_item_must_agree) {
  const SimImage whole = device_.durable();
  const Record entry = entry_of(kRootNumber, small_);
  const Record back = back_of(small_, kRootNumber, "small");
  erase_record(back.key);
  expect({at(kRootNumber, entry, small_) + ": a name without a back item"});
  device_.restore(whole);
  erase_record(entry.key);
  expect({at(small_) + ", directory 256: a back item without a name",
          at(small_) + ": 0 names lead to an inode with 1 links"});
  device_.restore(whole);
  erase_record(back.key);
  const Record other = back_of(small_, kRootNumber, "other");
  put_record(other.key, other.value);
  expect({at(small_) + ", directory 256: a back item without a name",
          at(kRootNumber, entry, small_) + ": a name without a back item"});
  device_.restore(whole);
  put_record({small_, kBackType, back.key.offset + 1}, back.value);
  expect({at(small_) + ", directory 256: a back item without a name"});
  device_.restore(whole);
  erase_record(back.key);
  put_record({small_, kBackType, back.key.offset + kEntrySlots}, back.value);
  expect({at(small_) + ", directory 256: a back item lies at the wrong hash"});
}

TEST_F(CheckTest, directory_must_not_have_one_name_twice) {
  Record second;
  damage([&](Transaction& t) -> Result<void> {
    const Record one = entry_of(t, kRootNumber, plain_), other = entry_of(t, kRootNumber, small_);
    LK_TRY(Entry entry, decode_entry(kFirstSubvolume, one.key, one.value));
    entry.inode.number = small_;
    second.key = one.key;
    ++second.key.offset;
    LK_TRYV(t.erase(kFirstSubvolume, other.key));
    LK_TRYV(t.put(kFirstSubvolume, second.key, encode_entry(entry)));
    LK_TRYV(t.erase(kFirstSubvolume, back_of(small_, kRootNumber, "small").key));
    const Record back = back_of(small_, kRootNumber, "plain");
    return t.put(kFirstSubvolume, back.key, back.value);
  });
  expect({at(kRootNumber, second, small_) + ": a directory has one name twice"});
}

TEST_F(CheckTest, name_must_lead_to_an_inode_of_its_kind) {
  const Record entry = entry_of(kRootNumber, small_);
  damage([&](Transaction& t) {
    return change<EntryDisk>(t, entry.key, [](EntryDisk& disk) { disk.kind = 2; });
  });
  expect({at(kRootNumber, entry, small_) +
          ": a directory entry and its inode disagree about the kind"});
}

TEST_F(CheckTest, name_map_or_orphan_without_an_inode_is_found) {
  erase_record(inode_key(small_));
  put_record({9000, kMapType, 0}, std::vector<std::byte>(16));
  put_record({kOrphanObject, kOrphanType, 9001}, {});
  const std::string what = ": records of an inode without an inode item";
  expect({at(small_) + what, at(9000) + what, at(9000, 0) + ": map record: no blocks",
          at(9001) + what});
}

TEST_F(CheckTest, links_are_counted) {
  change_inode(small_, [](InodeDisk& disk) { disk.links = 2; });
  change_inode(sub_, [](InodeDisk& disk) { disk.links = 2; });
  expect({at(small_) + ": 1 names lead to an inode with 2 links",
          at(sub_) + ": 1 names lead to an inode with 2 links",
          at(sub_) + ": a directory has several links"});
}

TEST_F(CheckTest, orphan_has_no_links_and_no_name_and_a_record) {
  const SimImage whole = device_.durable();
  const Key orphan{kOrphanObject, kOrphanType, small_};
  put_record(orphan, {});
  expect({at(small_) + ": 1 names lead to an inode with 1 links",
          at(small_) + ": an orphan record for an inode with 1 links"});
  put_record(orphan, bytes_of("x"));
  expect({at(small_) + ": 1 names lead to an inode with 1 links",
          at(small_) + ": an orphan record for an inode with 1 links",
          at(small_) + ": an orphan record is malformed"});
  device_.restore(whole);
  change_inode(small_, [](InodeDisk& disk) { disk.links = 0; });
  expect({at(small_) + ": 1 names lead to an inode with 0 links",
          at(small_) + ": an inode without links and without an orphan record"});
}

TEST_F(CheckTest, every_name_of_an_inode_counts) {
  open_again();
  ASSERT_TRUE(volume_->link({kRootInode.subvolume, small_}, kRootInode, "second"));
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  expect({});
  const SimImage whole = device_.durable();
  change_inode(small_, [](InodeDisk& disk) { disk.links = 1; });
  expect({at(small_) + ": 2 names lead to an inode with 1 links"});
  device_.restore(whole);
  const Record back = back_of(small_, kRootNumber, "second");
  erase_record(back.key);
  const std::string place = at(kRootNumber, {{0, 0, entry_offset("second")}, {}}, small_);
  expect({place + ": a name without a back item"});
  device_.restore(whole);
  erase_record({kRootNumber, kEntryType, entry_offset("second")});
  expect({at(small_) + ", directory 256: a back item without a name",
          at(small_) + ": 1 names lead to an inode with 2 links"});
  device_.restore(whole);
  put_record({small_, kBackType, back.key.offset + 7}, back.value);
  expect({at(small_) + ", directory 256: a back item without a name"});
  device_.restore(whole);
  // The next open would take the file from under its names.
  put_record({kOrphanObject, kOrphanType, small_}, {});
  expect({at(small_) + ": 2 names lead to an inode with 2 links",
          at(small_) + ": an orphan record for an inode with 2 links"});
}

TEST_F(CheckTest, symlink_has_a_whole_target_and_nothing_else_has_one) {
  open_again();
  add_key();
  const auto plain = volume_->symlink(kUser, kRootInode, "s", std::string(2000, 's'));
  const auto sealed = volume_->symlink(kUser, {kRootInode.subvolume, vault_}, "s", "target");
  ASSERT_TRUE(plain && sealed);
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  expect({});
  const SimImage whole = device_.durable();
  const std::string not_whole = ": a symlink whose target is not whole";
  const std::string malformed = ": a symlink whose target is malformed";
  erase_record({plain->number, kTargetType, kTargetPieceBytes});
  expect({at(plain->number) + not_whole,
          "key (" + std::to_string(plain->number) +
              ", 5, 1792): a piece of a symlink's target lies at a wrong place"});
  device_.restore(whole);
  change_inode(plain->number, [](InodeDisk& disk) { disk.size = 1999; });
  expect({at(plain->number) + not_whole});
  device_.restore(whole);
  put_record({plain->number, kTargetType, 0}, std::vector<std::byte>(kTargetPieceBytes));
  expect({at(plain->number) + malformed});
  device_.restore(whole);
  put_record({sealed->number, kTargetType, 0}, std::vector<std::byte>(34));
  expect({at(sealed->number) + malformed});
  device_.restore(whole);
  put_record({small_, kTargetType, 0}, bytes_of("x"));
  expect({at(small_) + ": an inode that is not a symlink has a target"});
}

TEST_F(CheckTest, special_file_lies_in_an_encrypted_directory_without_a_policy) {
  open_again();
  add_key();
  const auto pipe = volume_->make_node(kUser, {kRootInode.subvolume, vault_}, "pipe", {});
  ASSERT_TRUE(pipe);
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  expect({});
  change_inode(pipe->number, [](InodeDisk& disk) {
    disk.encrypted = disk.contents_mode = 1, disk.names_mode = 4, disk.policy_flags = 3;
  });
  expect({at(pipe->number) + ": an inode item is malformed"});
}

TEST_F(CheckTest, root_must_be_a_directory_that_nothing_names) {
  const SimImage whole = device_.durable();
  damage([&](Transaction& t) -> Result<void> {
    Entry entry;
    entry.inode.number = kRootNumber;
    entry.kind = FileKind::directory;
    entry.stored = "loop";
    LK_TRYV(t.put(kFirstSubvolume, {sub_, kEntryType, entry_offset("loop")}, encode_entry(entry)));
    const Record back = back_of(kRootNumber, sub_, "loop");
    return t.put(kFirstSubvolume, back.key, back.value);
  });
  expect({at(kRootNumber) + ": 1 names lead to an inode with 1 links"});
  device_.restore(whole);
  change_inode(kRootNumber, [](InodeDisk& disk) { disk.kind = 1; });
  expect({at(kRootNumber) + ": the root is not a directory",
          at(kRootNumber) + ": names in something that is not a directory"});
  device_.restore(whole);
  erase_record(inode_key(kRootNumber));
  expect({at(kRootNumber) + ": there is no root directory"});
}

// Two directories that hold each other: every name and every count is right.
TEST_F(CheckTest, what_no_path_leads_to_is_found) {
  move_entry(dir_, "dir", kRootNumber, sub_);
  const std::string what = ": an inode that cannot be reached from the root directory";
  expect({at(dir_) + what, at(sub_) + what, at(sub_file_) + what});
}

TEST_F(CheckTest, only_directories_have_names_and_only_files_have_data) {
  move_entry(small_, "small", kRootNumber, plain_);
  change_inode(dir_, [](InodeDisk& disk) { disk.size = 1; });
  expect({at(plain_) + ": names in something that is not a directory",
          at(dir_) + ": a directory has data"});
}

TEST_F(CheckTest, what_lies_in_an_encrypted_directory_has_its_policy) {
  const SimImage whole = device_.durable();
  const Record entry = entry_of(vault_, file_);
  const std::string what =
      at(vault_, entry, file_) + ": an inode does not have the policy of its directory";
  const std::string extents = ": an extent is not encrypted as its file is";
  const auto only_policies = [&] {
    std::vector<std::string> all = findings();
    std::erase_if(all, [&](const std::string& line) { return line.ends_with(extents); });
    EXPECT_EQ(all, std::vector{what});
  };
  change_inode(file_, [](InodeDisk& disk) { disk.key_id[3] ^= std::byte{1}; });
  only_policies();
  device_.restore(whole);
  change_inode(file_, [](InodeDisk& disk) {
    disk.encrypted = disk.contents_mode = disk.names_mode = disk.policy_flags = 0;
    disk.key_id = disk.nonce = {};
  });
  only_policies();
}

}  // namespace
}  // namespace latchkey::tests
