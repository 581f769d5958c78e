// Goal: subvolumes, their records, trees and names are mended as files are, and so are counts of
// nodes that they share; whatever is wrong at once, and wherever a repair is cut off, the next one
// ends it. Method: as volume_repair_test.cpp's; a cut at every write and flush of a repair that
// commits each change.

#include <cstring>
#include <functional>

#include "engine/format.h"
#include "engine/free_space_format.h"
#include "engine/node.h"
#include "engine/superblock.h"
#include "tests/support/check_fixture.h"
#include "volume/subvolumes.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using engine::kExtentTree;
using engine::Key;
using engine::kFirstSubvolume;
using engine::Record;
using engine::Transaction;

constexpr Key kLast{~u64{0}, 255, ~u64{0}};

// /area with a file, a subvolume in it, and snapshots of it, one of them read-only.
class RepairTrees : public CheckTest {
 protected:
  void SetUp() override {
    CheckTest::SetUp();
    unlock();
    area_ = volume_->create_subvolume(kUser, kRootInode, "area", 0755)->subvolume;
    put("/area/file", "in the area");
    inner_ = volume_->create_subvolume(kUser, at_path("/area"), "inner", 0755)->subvolume;
    put("/area/inner/file", "inside");
    frozen_ = snapshot("/area", "frozen", true);
    copy_ = snapshot("/area", "copy", false);
    put("/area/file", "changed since");
    shut();
    expect({});
  }
  InodeId at_path(std::string_view path) { return *resolve(*volume_, path); }
  engine::TreeId snapshot(std::string_view of, std::string_view name, bool read_only) {
    auto made = volume_->snapshot(kUser, at_path(of), kRootInode, name, read_only);
    EXPECT_TRUE(made) << made.error().what;
    return made->subvolume;
  }
  std::vector<engine::Finding> repair(u32 commit_every = 256) {
    auto repaired = repair_volume(device_, system_env(), {.commit_every = commit_every});
    EXPECT_TRUE(repaired) << repaired.error().what;
    return repaired ? repaired->mended : std::vector<engine::Finding>{};
  }
  // The power goes in a repair that commits each change: at every write and flush up to about the
  // `dense`-th, wider apart after that. The next repair ends it; then `look`.
  void cut_repairs(u64 dense, const std::function<void()>& look) {
    const SimImage damaged = device_.snapshot();
    bool finished = false;
    u64 cut = 0;
    for (; !finished; cut += 1 + cut / dense) {
      ASSERT_LT(cut, 4000U);
      SCOPED_TRACE(cut);
      device_.restore(damaged);
      device_.cut_after(cut);
      finished = repair_volume(device_, system_env(), {.commit_every = 1}).has_value() &&
                 !device_.power_off();
      device_.crash(cut);
      device_.clear_faults();
      repair();
      expect({});
      look();
    }
    EXPECT_GT(cut, 40U);
  }
  void expect_repaired() {
    EXPECT_FALSE(findings().empty());
    EXPECT_FALSE(repair().empty());
    expect({});
    const u64 writes = device_.counters().writes;
    EXPECT_TRUE(repair().empty());
    EXPECT_EQ(device_.counters().writes, writes);
  }
  void expect_all_there() {
    unlock();
    EXPECT_EQ(content("/area/file"), "changed since");
    EXPECT_EQ(content("/frozen/file"), "in the area");
    EXPECT_EQ(content("/copy/file"), "in the area");
    EXPECT_EQ(content("/area/inner/file"), "inside");
    EXPECT_EQ(code_of(volume_->set_mode(at_path("/frozen/file"), 0600)), Errc::read_only);
    shut();
  }
  void change_subvolume(engine::TreeId id, const std::function<void(SubvolumeDisk&)>& fn) {
    damage([&](Transaction& t) -> Result<void> {
      LK_TRY(auto record, t.get(kSubvolumeTree, subvolume_key(id)));
      if (!record) return fail(Errc::not_found, "there is no such record");
      auto disk = load_disk<SubvolumeDisk>(record->value);
      fn(disk);
      store_disk(record->value, disk);
      return t.put(kSubvolumeTree, subvolume_key(id), record->value);
    });
  }
  // The entry of that name in a root directory.
  Record entry_named(engine::TreeId tree, std::string_view name) {
    Record found;
    damage([&](Transaction& t) -> Result<void> {
      for (Record& record :
           records(t, tree, {kRootNumber, kEntryType, 0}, {kRootNumber, kEntryType, ~u64{0}})) {
        auto entry = decode_entry(tree, record.key, record.value);
        if (entry && entry->stored == name) found = std::move(record);
      }
      return {};
    });
    EXPECT_FALSE(found.value.empty()) << name;
    return found;
  }
  void forget_counts_of_nodes() {
    damage([&](Transaction& t) -> Result<void> {
      u32 met = 0;
      for (const Record& record : records(t, kExtentTree, {}, kLast))
        if (record.key.type == engine::kNodeRecordType && ++met)
          LK_TRYV(t.erase(kExtentTree, record.key));
      EXPECT_NE(met, 0U);
      return {};
    });
  }
  // Written and synced by a block of the log, with no commit; then the power goes.
  void put_into_the_log(std::string_view path, std::string_view text) {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    unlock();
    const HandleId handle = open(path, {.write = true});
    const VolumeFacts before = volume_->facts();
    EXPECT_TRUE(volume_->write(handle, 0, bytes_of(text)));
    EXPECT_TRUE(volume_->fsync(handle));
    EXPECT_EQ(volume_->facts().commits, before.commits);
    EXPECT_EQ(volume_->facts().log_blocks, before.log_blocks + 1);
    volume_.reset();
    device_.crash(1);
  }
  // One bit of every block that begins with such a structure: twice, and it is as it was.
  template <class Disk>
  void flip_in_all(const std::function<bool(const Disk&)>& chosen) {
    std::array<std::byte, sizeof(Disk)> bytes;
    u32 met = 0;
    for (u64 at = 0; at < device_.info().size_bytes; at += engine::kBlockBytes) {
      device_.peek(at, bytes);
      if (!chosen(load_disk<Disk>(bytes))) continue;
      device_.flip_bit(at + 1000, 3);
      ++met;
    }
    EXPECT_NE(met, 0U);
  }
  // What one twin of the newest set said.
  void rot_a_superblock() {
    auto io = device_.make_io({});
    const auto scan = engine::scan_superblocks(**io, device_.info().size_bytes);
    const u32 place = scan->newest(false)->generation % 2;
    device_.rot(engine::superblock_place(place, device_.info().size_bytes) * engine::kBlockBytes,
                16, 1);
  }
  std::size_t notes_of_the_log() {
    const auto check = check_volume(device_, {}, system_env());
    EXPECT_TRUE(check);
    return static_cast<std::size_t>(
        std::ranges::count(check->notes, "fsync log", &engine::Finding::where));
  }
  void erase(engine::TreeId tree, Key key) {
    damage([&](Transaction& t) -> Result<void> {
      LK_TRY(const bool there, t.erase(tree, key));
      EXPECT_TRUE(there);
      return {};
    });
  }

  engine::TreeId area_ = 0, inner_ = 0, frozen_ = 0, copy_ = 0;
};

TEST_F(RepairTrees, of_a_sound_volume_does_nothing) {
  const u64 writes = device_.counters().writes;
  EXPECT_TRUE(repair().empty());
  EXPECT_EQ(device_.counters().writes, writes);
  expect_all_there();
}

TEST_F(RepairTrees, name_that_the_record_knows_is_made_anew) {
  erase(kFirstSubvolume, entry_named(kFirstSubvolume, "area").key);
  erase(area_, entry_named(area_, "inner").key);
  expect_repaired();
  expect_all_there();
}

TEST_F(RepairTrees, record_says_where_the_name_is) {
  change_subvolume(area_, [](SubvolumeDisk& disk) { disk.directory = 9000; });
  change_subvolume(inner_, [](SubvolumeDisk& disk) { disk.parent = 9000; });
  expect_repaired();
  expect_all_there();
}

TEST_F(RepairTrees, record_that_is_gone_or_malformed_is_made_anew) {
  erase(kSubvolumeTree, subvolume_key(area_));
  change_subvolume(copy_, [](SubvolumeDisk& disk) { disk.flags = 99; });
  EXPECT_FALSE(Volume::open(device_, options_, system_env()));
  expect_repaired();
  expect_all_there();
}

TEST_F(RepairTrees, record_without_a_tree_goes_with_its_name) {
  damage([&](Transaction& t) -> Result<void> {
    Subvolume ghost;
    ghost.directory = kRootInode;
    ghost.stored = "ghost";
    LK_TRYV(put_subvolume(t, 300, ghost));
    const Key key{kRootNumber, kEntryType, entry_offset("ghost")};
    LK_TRYV(t.put(kFirstSubvolume, key,
                  encode_entry({key, {300, kRootNumber}, FileKind::subvolume, "ghost"})));
    Subvolume nameless;
    return put_subvolume(t, 301, nameless);
  });
  expect_repaired();
  expect_all_there();
}

TEST_F(RepairTrees, tree_without_a_record_and_name_is_in_lost_and_found) {
  erase(kSubvolumeTree, subvolume_key(copy_));
  erase(kFirstSubvolume, entry_named(kFirstSubvolume, "copy").key);
  change_subvolume(inner_, [](SubvolumeDisk& disk) { disk.directory = 9000; });
  erase(area_, entry_named(area_, "inner").key);
  expect_repaired();
  unlock();
  const auto lost = [](engine::TreeId id) {
    return "/lost+found/subvolume-" + std::to_string(id) + "/file";
  };
  EXPECT_EQ(content(lost(copy_)), "in the area");
  // What the copy has of it leads there now.
  EXPECT_EQ(content("/lost+found/subvolume-" + std::to_string(copy_) + "/inner/file"), "inside");
  shut();
}

TEST_F(RepairTrees, names_that_are_too_many_or_lead_to_nothing_go) {
  damage([&](Transaction& t) -> Result<void> {
    for (const auto& [name, id] : {std::pair("second", area_), {"nothing", engine::TreeId{999}}}) {
      const Key key{dir_, kEntryType, entry_offset(name)};
      LK_TRYV(t.put(kFirstSubvolume, key,
                    encode_entry({key, {id, kRootNumber}, FileKind::subvolume, name})));
    }
    return {};
  });
  expect_repaired();
  expect_all_there();
}

TEST_F(RepairTrees, circle_of_subvolumes_is_opened) {
  const Record entry = entry_named(kFirstSubvolume, "area");
  damage([&](Transaction& t) -> Result<void> {
    LK_TRYV(t.erase(kFirstSubvolume, entry.key));
    LK_TRYV(t.put(inner_, entry.key, entry.value));
    return {};
  });
  change_subvolume(area_, [&](SubvolumeDisk& disk) { disk.parent = inner_; });
  expect_repaired();
  unlock();
  EXPECT_EQ(content("/lost+found/subvolume-" + std::to_string(area_) + "/inner/file"), "inside");
  shut();
}

TEST_F(RepairTrees, counter_of_subvolumes_is_ahead) {
  erase(kSubvolumeTree, kSubvolumeIdKey);
  expect_repaired();
  const Le64 low(257);
  damage([&](Transaction& t) {
    return t.put(kSubvolumeTree, kSubvolumeIdKey, std::as_bytes(std::span(&low, 1)));
  });
  expect_repaired();
  expect_all_there();
}

// A first subvolume that says that it was removed would be dropped by whoever opens the volume.
TEST_F(RepairTrees, first_subvolume_is_never_dropped) {
  change_subvolume(kFirstSubvolume, [](SubvolumeDisk& disk) { disk.flags = kSubvolumeRemoved; });
  EXPECT_FALSE(Volume::open(device_, options_, system_env()));
  expect_repaired();
  expect_all_there();
}

TEST_F(RepairTrees, records_of_each_tree_are_mended) {
  damage([&](Transaction& t) -> Result<void> {
    for (const engine::TreeId tree : {area_, frozen_, copy_}) {
      const Record entry = records(t, tree, {257, kBackType, 0}, {257, kBackType, ~u64{0}}).at(0);
      LK_TRYV(t.erase(tree, entry.key));
    }
    LK_TRY(auto item, t.get(copy_, inode_key(257)));
    if (!item) return fail(Errc::not_found, "there is no such record");
    auto disk = load_disk<InodeDisk>(item->value);
    disk.links = 5;
    store_disk(item->value, disk);
    return t.put(copy_, inode_key(257), item->value);
  });
  expect_repaired();
  expect_all_there();
}

TEST_F(RepairTrees, references_to_shared_nodes_are_counted_anew) {
  const auto counts = [&](const std::function<Result<void>(Transaction&, const Record&)>& fn) {
    damage([&](Transaction& t) -> Result<void> {
      u32 met = 0;
      for (const Record& record : records(t, kExtentTree, {}, kLast))
        if (record.key.type == engine::kNodeRecordType && ++met) LK_TRYV(fn(t, record));
      EXPECT_NE(met, 0U);
      return {};
    });
  };
  const SimImage whole = device_.durable();
  counts([](Transaction& t, const Record& record) {
    auto disk = load_disk<engine::NodeRecordDisk>(record.value);
    disk.references = disk.references + 3;
    return t.put(kExtentTree, record.key, std::as_bytes(std::span(&disk, 1)));
  });
  expect_repaired();
  expect_all_there();
  device_.restore(whole);
  counts([](Transaction& t, const Record& record) -> Result<void> {
    LK_TRYV(t.erase(kExtentTree, record.key));
    const engine::NodeRecordDisk none{7};
    return t.put(kExtentTree, {5, engine::kNodeRecordType, 0}, std::as_bytes(std::span(&none, 1)));
  });
  expect_repaired();
  expect_all_there();
}

// What waits in the log goes into a leaf that trees share. If the log were entered before the
// counts are right, the snapshot would change; if anything were committed before, the log would be
// gone.
TEST_F(RepairTrees, log_is_entered_over_mended_counts_wherever_the_power_goes) {
  change_inode(small_, [](InodeDisk& disk) { disk.links = 7; });
  erase(kFirstSubvolume, entry_named(kFirstSubvolume, "area").key);
  forget_counts_of_nodes();
  put_into_the_log("/copy/file", "in the log!");
  flip_in_all<engine::BitmapSlotDisk>(
      [](const engine::BitmapSlotDisk& slot) { return slot.magic == engine::kBitmapMagic; });
  rot_a_superblock();
  cut_repairs(60, [&] {
    unlock();
    EXPECT_EQ(content("/copy/file"), "in the log!");
    EXPECT_EQ(content("/frozen/file"), "in the area");
    EXPECT_EQ(content("/area/file"), "changed since");
    shut();
  });
}

// A commit would end the log, and while a node is lost nobody knows whether it may be entered.
TEST_F(RepairTrees, log_waits_while_a_node_is_lost) {
  put_into_the_log("/copy/file", "in the log!");
  const auto of_inner = [&](const engine::NodeHeader& node) {
    return node.magic == engine::kNodeMagic && node.tree == inner_;
  };
  flip_in_all<engine::NodeHeader>(of_inner);
  rot_a_superblock();
  EXPECT_EQ(notes_of_the_log(), 1U);
  const u64 writes = device_.counters().writes;
  EXPECT_TRUE(repair().empty());
  EXPECT_EQ(device_.counters().writes, writes);
  flip_in_all<engine::NodeHeader>(of_inner);
  EXPECT_EQ(notes_of_the_log(), 1U);
  EXPECT_FALSE(repair().empty());  // the superblock
  EXPECT_EQ(notes_of_the_log(), 0U);
  expect({});
  unlock();
  EXPECT_EQ(content("/copy/file"), "in the log!");
  EXPECT_EQ(content("/frozen/file"), "in the area");
  shut();
}

// Everything at once; what it cuts off is what one crash can leave.
TEST_F(RepairTrees, goes_on_after_a_crash_anywhere) {
  change_inode(small_, [](InodeDisk& disk) { disk.links = 7; });
  erase_record(entry_of(vault_, file_).key);
  erase_record(entry_of(dir_, sub_).key);
  damage([&](Transaction& t) -> Result<void> {
    for (const Record& back :
         records(t, kFirstSubvolume, {sub_, kBackType, 0}, {sub_, kBackType, ~u64{0}}))
      LK_TRYV(t.erase(kFirstSubvolume, back.key));
    return {};
  });
  change_extent(plain_, [](engine::ExtentRecord& record) { record.references = 3; });
  erase(kSubvolumeTree, subvolume_key(copy_));
  erase(kFirstSubvolume, entry_named(kFirstSubvolume, "frozen").key);
  erase_record(inode_count_key());
  put_record({kOrphanObject, kOrphanType, plain_}, {});
  cut_repairs(40, [] {});
  expect_all_there();
  unlock();
  EXPECT_EQ(content("/vault/file"), std::string(300000, 'f'));
  EXPECT_EQ(content("/lost+found/#" + std::to_string(sub_) + "/file"), "d");
  shut();
}

}  // namespace
}  // namespace latchkey::tests
