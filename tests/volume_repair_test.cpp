// Goal: what records say wrongly of each other is mended where it can be derived: the check that
// found it finds nothing then, files are there with their content, a second repair has nothing to
// do. Method: one record after the other is changed, see check_fixture.h.

#include "engine/node.h"
#include "tests/support/check_fixture.h"
#include "volume/subvolumes.h"
#include "volume/xattr_records.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using engine::ExtentRecord;
using engine::Key;
using engine::kFirstSubvolume;
using engine::Record;
using engine::Transaction;

constexpr u64 kBlock = engine::kBlockBytes;

class VolumeRepair : public CheckTest {
 protected:
  std::vector<std::string> repair() {
    std::vector<std::string> all;
    auto repaired = repair_volume(device_, system_env());
    EXPECT_TRUE(repaired) << repaired.error().what;
    if (!repaired) return all;
    for (const engine::Finding& finding : repaired->mended)
      all.push_back(finding.where + ": " + finding.what);
    return all;
  }
  // Says what was mended.
  std::string expect_repaired() {
    EXPECT_FALSE(findings().empty());
    std::string text;
    for (const std::string& line : repair()) text += line + "\n";
    EXPECT_FALSE(text.empty());
    expect({});
    const u64 writes = device_.counters().writes;
    EXPECT_EQ(repair(), std::vector<std::string>());
    EXPECT_EQ(device_.counters().writes, writes);
    return text;
  }
  void expect_left(const std::vector<std::string>& what) {
    repair();
    expect(what);
    const u64 writes = device_.counters().writes;
    EXPECT_EQ(repair(), std::vector<std::string>());
    EXPECT_EQ(device_.counters().writes, writes);
  }
  std::string text_of(std::string_view path) {
    const std::string text = content(path);
    return text.substr(0, 3) + std::to_string(text.size());
  }
  // Every file of the fixture, wherever it may be by now.
  void expect_all_there() {
    unlock();
    EXPECT_EQ(text_of("/plain"), "ppp" + std::to_string(3 * kBlock - 5));
    EXPECT_EQ(text_of("/small"), "s1");
    EXPECT_EQ(text_of("/vault/file"), "fff300000");
    EXPECT_EQ(text_of("/dir/sub/file"), "d1");
    EXPECT_EQ(text_of("/vault/sub/file"), "v1");
    put("/vault/sub/new", "goes on");
    put("/dir/new", "goes on");
    shut();
    expect({});
  }
  static std::string found(u64 inode) { return "/lost+found/#" + std::to_string(inode); }
  Record only(Key first, Key last) {
    Record record;
    damage([&](Transaction& t) -> Result<void> {
      auto all = records(t, kFirstSubvolume, first, last);
      EXPECT_EQ(all.size(), 1U);
      if (!all.empty()) record = all[0];
      return {};
    });
    return record;
  }
  Record back_item(u64 inode) { return only({inode, kBackType, 0}, {inode, kBackType, ~u64{0}}); }
};

TEST_F(VolumeRepair, of_a_sound_volume_does_nothing) {
  const u64 writes = device_.counters().writes;
  EXPECT_EQ(repair(), std::vector<std::string>());
  EXPECT_EQ(device_.counters().writes, writes);
  expect_all_there();
}

// --- links and names ----------------------------------------------------------------------------

TEST_F(VolumeRepair, link_counts_follow_the_names) {
  change_inode(small_, [](InodeDisk& disk) { disk.links = 7; });
  change_inode(sub_, [](InodeDisk& disk) { disk.links = 0; });
  change_inode(kRootNumber, [](InodeDisk& disk) { disk.links = 3; });
  const std::string text = expect_repaired();
  EXPECT_NE(text.find("7 links were counted, there are 1"), std::string::npos) << text;
  expect_all_there();
}

TEST_F(VolumeRepair, name_without_a_back_item_gets_one) {
  for (const u64 inode : {small_, file_, sub_}) erase_record(back_item(inode).key);
  expect_repaired();
  expect_all_there();
}

TEST_F(VolumeRepair, malformed_and_stray_back_items_go) {
  const Record back = back_item(small_);
  put_record({small_, kBackType, back.key.offset + 3}, back.value);  // twice
  put_record({small_, kBackType, back.key.offset + 3 * kEntrySlots}, back.value);
  put_record({small_, kBackType, 77}, bytes_of("short"));
  const Record stray = back_of(file_, dir_, "no such name");
  put_record(stray.key, stray.value);
  expect_repaired();
  expect_all_there();
}

// An encrypted name, too, whose key nobody has here.
TEST_F(VolumeRepair, name_that_only_its_back_item_knows_is_made_anew) {
  const std::pair<u64, u64> gone[] = {{kRootNumber, small_}, {vault_, file_}, {dir_, sub_}};
  for (const auto& [directory, inode] : gone) erase_record(entry_of(directory, inode).key);
  const std::string text = expect_repaired();
  EXPECT_NE(text.find("made anew"), std::string::npos) << text;
  EXPECT_EQ(text.find("lost+found"), std::string::npos) << text;
  expect_all_there();
}

TEST_F(VolumeRepair, entries_are_well_formed_in_their_place_and_of_the_right_kind) {
  Record entry = entry_of(kRootNumber, small_);
  erase_record(entry.key);
  entry.key.offset += 5 * kEntrySlots;
  put_record(entry.key, entry.value);
  damage([&](Transaction& t) {
    return change<EntryDisk>(t, entry_of(t, dir_, sub_).key,
                             [](EntryDisk& disk) { disk.kind = 5; });
  });
  put_record({dir_, kEntryType, 4096}, bytes_of("none"));
  put_record({small_, kEntryType, 4096}, bytes_of("none"));
  expect_repaired();
  expect_all_there();
}

TEST_F(VolumeRepair, names_that_lead_to_nothing_go) {
  const auto add = [&](u64 directory, std::string name, u64 inode, FileKind kind) {
    const Entry entry{
        {directory, kEntryType, entry_offset(name)}, {kFirstSubvolume, inode}, kind, name};
    put_record(entry.key, encode_entry(entry));
  };
  add(dir_, "dangling", 9000, FileKind::regular);
  add(9001, "in no directory", small_, FileKind::regular);
  add(small_, "in a file", plain_, FileKind::regular);
  add(dir_, "a/b", plain_, FileKind::regular);
  add(dir_, "to the root", kRootNumber, FileKind::directory);
  add(dir_, "to a counter", 1, FileKind::regular);
  add(plain_, "second of a directory", sub_, FileKind::directory);
  add(dir_, "another of a directory", sub_, FileKind::directory);
  expect_repaired();
  expect_all_there();
}

TEST_F(VolumeRepair, of_one_name_twice_the_other_inode_is_in_lost_and_found) {
  damage([&](Transaction& t) -> Result<void> {
    const Record entry = entry_of(t, kRootNumber, small_);
    LK_TRY(Entry twin, decode_entry(kFirstSubvolume, entry.key, entry.value));
    LK_TRYV(t.erase(kFirstSubvolume, entry_of(t, dir_, sub_).key));
    twin.inode.number = sub_;
    twin.kind = FileKind::directory;
    ++twin.key.offset;
    return t.put(kFirstSubvolume, twin.key, encode_entry(twin));
  });
  erase_record(back_item(sub_).key);
  expect_repaired();
  unlock();
  EXPECT_EQ(text_of("/small"), "s1");
  EXPECT_EQ(text_of(found(sub_) + "/file"), "d1");
  shut();
}

TEST_F(VolumeRepair, second_name_of_a_file_stays) {
  const Entry entry{{dir_, kEntryType, entry_offset("second")},
                    {kFirstSubvolume, plain_},
                    FileKind::regular,
                    "second"};
  put_record(entry.key, encode_entry(entry));
  expect_repaired();
  unlock();
  EXPECT_EQ(volume_->stat(*resolve(*volume_, "/plain"))->links, 2U);
  EXPECT_EQ(*resolve(*volume_, "/dir/second"), *resolve(*volume_, "/plain"));
  shut();
  expect_all_there();
}

// --- what nothing leads to ----------------------------------------------------------------------

TEST_F(VolumeRepair, inodes_without_a_name_are_in_lost_and_found) {
  for (const auto& [directory, inode] :
       {std::pair(kRootNumber, small_), {vault_, file_}, {dir_, sub_}, {kRootNumber, vault_}}) {
    erase_record(entry_of(directory, inode).key);
    erase_record(back_item(inode).key);
  }
  expect_repaired();
  unlock();
  EXPECT_EQ(text_of(found(small_)), "s1");
  EXPECT_EQ(text_of(found(sub_) + "/file"), "d1");
  // The encrypted directory is what it was, below a plain one, and so is its file.
  EXPECT_EQ(text_of(found(vault_) + "/sub/file"), "v1");
  EXPECT_EQ(text_of(found(file_)), "fff300000");
  const auto vault = volume_->stat(*resolve(*volume_, found(vault_)));
  EXPECT_TRUE(vault->key_id);
  EXPECT_EQ(volume_->stat(*resolve(*volume_, "/lost+found"))->mode, 0700U);
  // From there they go where they belong; into the vault only what has its policy.
  const InodeId lost = *resolve(*volume_, "/lost+found");
  const auto name = [](u64 inode) { return "#" + std::to_string(inode); };
  ASSERT_TRUE(volume_->rename(lost, name(vault_), kRootInode, "vault"));
  const InodeId home = *resolve(*volume_, "/vault");
  ASSERT_TRUE(volume_->rename(lost, name(file_), home, "file"));
  ASSERT_TRUE(volume_->rename(lost, name(small_), kRootInode, "small"));
  ASSERT_TRUE(volume_->rename(lost, name(sub_), *resolve(*volume_, "/dir"), "sub"));
  ASSERT_TRUE(volume_->rmdir(kRootInode, "lost+found"));
  shut();
  expect_all_there();
}

TEST_F(VolumeRepair, lost_and_found_takes_no_name_of_others) {
  unlock();
  put("/lost+found", "a file of that name");
  ASSERT_TRUE(make_directory(*volume_, kUser, "/lost+found-1"));
  put("/lost+found-1/#" + std::to_string(small_), "another");
  shut();
  erase_record(entry_of(kRootNumber, small_).key);
  erase_record(back_item(small_).key);
  expect_repaired();
  unlock();
  EXPECT_EQ(content("/lost+found-1/#" + std::to_string(small_) + "-1"), "s");
  EXPECT_EQ(content("/lost+found"), "a file of that name");
  shut();
}

TEST_F(VolumeRepair, circle_of_directories_is_opened) {
  move_entry(dir_, "dir", kRootNumber, sub_);
  expect_repaired();
  unlock();
  EXPECT_EQ(text_of(found(dir_) + "/sub/file"), "d1");
  shut();
}

TEST_F(VolumeRepair, orphan_that_has_names_is_none) {
  put_record({kOrphanObject, kOrphanType, small_}, {});
  put_record({kOrphanObject, kOrphanType, plain_}, bytes_of("x"));
  put_record({kOrphanObject, kOrphanType, 9000}, {});
  put_record({kOrphanObject, kOrphanType, kRootNumber}, {});
  expect_repaired();
  expect_all_there();
}

TEST_F(VolumeRepair, real_orphan_stays_one) {
  unlock();
  (void)open("/vault/file", {});
  ASSERT_TRUE(volume_->unlink(*resolve(*volume_, "/vault"), "file"));
  ASSERT_TRUE(volume_->sync());
  volume_.reset();
  EXPECT_EQ(repair(), std::vector<std::string>());
  put_record({kOrphanObject, kOrphanType, file_}, bytes_of("malformed"));
  // An open would not know it for one; nothing is in lost+found either.
  const auto check = findings();
  EXPECT_EQ(check.size(), 1U);
}

TEST_F(VolumeRepair, inode_that_only_an_orphan_record_and_links_know_is_kept) {
  erase_record(entry_of(kRootNumber, small_).key);
  erase_record(back_item(small_).key);
  put_record({kOrphanObject, kOrphanType, small_}, {});
  expect_repaired();
  unlock();
  EXPECT_EQ(text_of(found(small_)), "s1");
  shut();
}

// --- items --------------------------------------------------------------------------------------

TEST_F(VolumeRepair, data_without_an_item_is_a_file_again) {
  erase_record(inode_key(plain_));
  erase_record(inode_key(file_));
  expect_repaired();
  unlock();
  const std::string plain = content("/plain");  // its size is that of its map now
  EXPECT_EQ(plain, std::string(3 * kBlock - 5, 'p') + std::string(5, '\0'));
  EXPECT_EQ(content("/vault/file").substr(0, 300000), std::string(300000, 'f'));
  EXPECT_EQ(volume_->stat(*resolve(*volume_, "/plain"))->mode, 0600U);
  shut();
}

TEST_F(VolumeRepair, children_of_a_directory_without_an_item_are_in_lost_and_found) {
  erase_record(inode_key(sub_));
  expect_repaired();
  unlock();
  EXPECT_EQ(text_of(found(sub_file_)), "d1");
  shut();
}

TEST_F(VolumeRepair, item_at_a_wrong_place_is_put_right) {
  damage([&](Transaction& t) -> Result<void> {
    LK_TRY(const auto item, t.get(kFirstSubvolume, inode_key(small_)));
    LK_TRYV(t.erase(kFirstSubvolume, inode_key(small_)));
    return t.put(kFirstSubvolume, {small_, kInodeType, 9}, item->value);
  });
  expect_repaired();
  expect_all_there();
}

TEST_F(VolumeRepair, what_nobody_can_understand_is_left_alone) {
  const SimImage whole = device_.durable();
  change_inode(sub_, [](InodeDisk& disk) { disk.version = 9; });
  expect_left({at(sub_) + ": an inode item is malformed"});
  change_inode(sub_, [](InodeDisk& disk) { disk.version = 1; });
  expect_all_there();
  device_.restore(whole);
  put_record({plain_, 99, 7}, bytes_of("x"));
  expect_left({"key (" + std::to_string(plain_) + ", 99, 7): a record of an unknown type"});
  device_.restore(whole);
  // A plain file in an encrypted directory.
  const Entry entry{{vault_, kEntryType, entry_offset(std::string(32, 'n'))},
                    {kFirstSubvolume, small_},
                    FileKind::regular,
                    std::string(32, 'n')};
  erase_record(entry_of(kRootNumber, small_).key);
  erase_record(back_item(small_).key);
  put_record(entry.key, encode_entry(entry));
  expect_left({at(vault_, {entry.key, {}}, small_) +
               ": an inode does not have the policy of its directory"});
}

TEST_F(VolumeRepair, sizes_follow_maps_and_targets) {
  unlock();
  ASSERT_TRUE(volume_->symlink(kUser, kRootInode, "link", "where it leads"));
  ASSERT_TRUE(volume_->symlink(kUser, *resolve(*volume_, "/vault"), "link", "in secret"));
  const u64 link = number("/link"), secret = number("/vault/link");
  shut();
  change_inode(plain_, [](InodeDisk& disk) { disk.size = kBlock; });
  change_inode(dir_, [](InodeDisk& disk) { disk.size = 1; });
  change_inode(link, [](InodeDisk& disk) { disk.size = 3; });
  change_inode(secret, [](InodeDisk& disk) { disk.size = 3; });
  put_record({small_, kTargetType, 0}, bytes_of("of a file"));
  expect_repaired();
  unlock();
  EXPECT_EQ(content("/plain").substr(0, 3 * kBlock - 5), std::string(3 * kBlock - 5, 'p'));
  EXPECT_EQ(*volume_->read_link(*resolve(*volume_, "/link")), "where it leads");
  EXPECT_EQ(*volume_->read_link(*resolve(*volume_, "/vault/link")), "in secret");
  shut();
}

TEST_F(VolumeRepair, counters_are_set) {
  const SimImage whole = device_.durable();
  const Key counter{kCounterObject, kCounterType, 0};
  const Le64 low(last_), wrong(77);
  for (const Bytes value : {Bytes(bytes_of("abc")), std::as_bytes(std::span(&low, 1))}) {
    put_record(counter, value);
    expect_repaired();
    expect_all_there();
    device_.restore(whole);
  }
  erase_record(counter);
  expect_repaired();
  device_.restore(whole);
  put_record(inode_count_key(), std::as_bytes(std::span(&wrong, 1)));
  expect_repaired();
  put_record(inode_count_key(), bytes_of("abc"));
  expect_repaired();
  erase_record(inode_count_key());
  expect_repaired();
  expect_all_there();
}

TEST_F(VolumeRepair, attributes_are_whole_and_found) {
  const auto encoded = [](std::string name, std::size_t size) {
    Xattr xattr;
    xattr.offset = xattr_offset(name);
    xattr.name = std::move(name);
    xattr.stored.assign(size, std::byte{7});
    return std::pair(xattr, encode_xattr(xattr, 4000));
  };
  const auto put_at = [&](u64 offset, const std::vector<std::vector<std::byte>>& pieces) {
    for (std::size_t i = 0; i < pieces.size(); ++i)
      put_record({small_, kXattrType, offset + i}, pieces[i]);
  };
  const auto [good, good_pieces] = encoded("trusted.good", 9000);
  put_at(good.offset, good_pieces);
  put_at(good.offset + kXattrSlotStep, good_pieces);  // twice
  const auto [moved, moved_pieces] = encoded("trusted.moved", 9000);
  put_at(moved.offset + 9 * kXattrHashStep, moved_pieces);
  const auto [cut, cut_pieces] = encoded("trusted.cut", 9000);
  put_at(cut.offset, cut_pieces);
  erase_record({small_, kXattrType, cut.offset + 1});
  put_record({small_, kXattrType, 5 * kXattrHashStep + 3}, bytes_of("a piece alone"));
  put_at(encoded("nothing.known", 5).first.offset, encoded("nothing.known", 5).second);
  expect_repaired();
  unlock();
  const InodeId small = *resolve(*volume_, "/small");
  auto names = *volume_->list_xattrs(small);
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"trusted.good", "trusted.moved"}));
  EXPECT_EQ(volume_->get_xattr(small, "trusted.moved")->size(), 9000U);
  shut();
}

// --- maps and extents ---------------------------------------------------------------------------

TEST_F(VolumeRepair, references_are_counted_anew) {
  const u64 used = [&] {
    open_again();
    const u64 blocks = volume_->facts().space.blocks_used;
    shut();
    return blocks;
  }();
  change_extent(plain_, [](ExtentRecord& record) { record.references = 5; });
  damage([&](Transaction& t) { return t.share_extent({extent_of(t, file_).run.block + 2, 3}); });
  expect_repaired();
  erase_record({small_, kMapType, 0});
  erase_record({last_, kMapType, 0});
  expect_repaired();
  unlock();
  EXPECT_EQ(text_of("/plain"), "ppp" + std::to_string(3 * kBlock - 5));
  EXPECT_EQ(text_of("/vault/file"), "fff300000");
  EXPECT_EQ(volume_->facts().space.blocks_used, used - 2);
  shut();
}

// Too few are the dangerous ones: the first unlink would free what others still need.
TEST_F(VolumeRepair, too_few_references_are_made_enough) {
  ASSERT_NO_FATAL_FAILURE(damage([&](Transaction& t) -> Result<void> {
    const ExtentRecord record = extent_of(t, plain_);
    const extent::MapDisk disk{record.run.block, 3, 0};
    return t.put(kFirstSubvolume, {small_, kMapType, 0}, std::as_bytes(std::span(&disk, 1)));
  }));
  expect_repaired();
  unlock();
  ASSERT_TRUE(volume_->unlink(kRootInode, "small"));
  EXPECT_EQ(text_of("/plain"), "ppp" + std::to_string(3 * kBlock - 5));
  shut();
  expect({});
}

TEST_F(VolumeRepair, pieces_that_lead_nowhere_are_holes) {
  change_inode(plain_, [](InodeDisk& disk) { disk.size = 200 * kBlock; });
  const extent::MapDisk outside{device_.info().size_bytes / kBlock - 1, 2, 0}, none{5000, 0, 0};
  put_record({plain_, kMapType, 100 * kBlock}, std::as_bytes(std::span(&outside, 1)));
  put_record({plain_, kMapType, 101 * kBlock}, std::as_bytes(std::span(&none, 1)));
  put_record({plain_, kMapType, 102 * kBlock}, bytes_of("short"));
  put_record({plain_, kMapType, 103 * kBlock + 1}, std::as_bytes(std::span(&outside, 1)));
  const extent::MapDisk behind{device_.info().size_bytes / kBlock, 1, 0};
  put_record({plain_, kMapType, 104 * kBlock}, std::as_bytes(std::span(&behind, 1)));
  damage([&](Transaction& t) { return t.release_extent({extent_of(t, file_).run.block + 1, 2}); });
  const std::string text = expect_repaired();
  for (const char* said :
       {", file offset 409600: a piece of a file ends where the store does",
        ", file offset 425984: a piece of a file that led nowhere is a hole now"})
    EXPECT_NE(text.find(said), std::string::npos) << text;
  unlock();
  EXPECT_EQ(content("/plain"),
            std::string(3 * kBlock - 5, 'p') + std::string(197 * kBlock + 5, '\0'));
  EXPECT_EQ(content("/vault/file"), std::string(kBlock, 'f') + std::string(2 * kBlock, '\0') +
                                        std::string(300000 - 3 * kBlock, 'f'));
  shut();
}

TEST_F(VolumeRepair, piece_that_is_too_long_keeps_what_lies_inside) {
  const u64 block = extent_of(last_).run.block;
  const extent::MapDisk disk{block, 1U << 20, 0};
  put_record({last_, kMapType, 0}, std::as_bytes(std::span(&disk, 1)));
  expect_repaired();
  expect_all_there();
}

TEST_F(VolumeRepair, of_overlapping_pieces_the_later_one_stays) {
  damage([&](Transaction& t) -> Result<void> {
    const ExtentRecord record = extent_of(t, small_);
    LK_TRYV(t.share_extent({record.run.block, 1}));
    const extent::MapDisk disk{record.run.block, 1, 0};
    return t.put(kFirstSubvolume, {plain_, kMapType, kBlock}, std::as_bytes(std::span(&disk, 1)));
  });
  expect_repaired();
  unlock();
  const std::string text = content("/plain");
  EXPECT_EQ(text.substr(0, kBlock), std::string(kBlock, 'p'));
  EXPECT_EQ(text.substr(kBlock, 2), std::string("s\0", 2));
  EXPECT_EQ(text.substr(2 * kBlock), std::string(kBlock - 5, 'p'));
  shut();
}

}  // namespace
}  // namespace latchkey::tests
