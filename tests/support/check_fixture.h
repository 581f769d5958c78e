#pragma once
// A small store, closed; changes of single records through the engine's own transactions, so that
// every checksum is right and only a rule is broken; and what the offline check finds then.

#include <algorithm>
#include <functional>

#include "engine/extent_table.h"
#include "extent/map.h"
#include "tests/support/volume_fixture.h"
#include "volume/format.h"

namespace latchkey::tests {

// A back item: where it lies, unless others have its hash, and what it says.
inline engine::Record back_of(u64 inode, u64 directory, std::string_view stored) {
  const volume::NameOfInode name{directory, std::string(stored)};
  return {{inode, volume::kBackType, volume::back_offset(name)}, volume::encode_back(name)};
}

inline std::vector<engine::Record> records(const engine::View& view, engine::TreeId tree,
                                           engine::Key first, engine::Key last) {
  std::vector<engine::Record> all;
  EXPECT_TRUE(view.scan(tree, first, last, [&](const engine::Key& key, Bytes value) {
    all.push_back({key, {value.begin(), value.end()}});
    return true;
  }));
  return all;
}

class CheckTest : public VolumeTest {
 protected:
  void SetUp() override {
    VolumeTest::SetUp();
    vault();
    put("/plain", std::string(3 * engine::kBlockBytes - 5, 'p'));
    put("/small", "s");
    put("/vault/file", std::string(300000, 'f'));
    for (const std::string_view path : {"/dir", "/dir/sub", "/vault/sub"})
      ASSERT_TRUE(volume::make_directory(*volume_, kUser, path)) << path;
    put("/dir/sub/file", "d");
    put("/vault/sub/file", "v");
    plain_ = number("/plain");
    small_ = number("/small");
    dir_ = number("/dir");
    sub_ = number("/dir/sub");
    vault_ = number("/vault");
    file_ = number("/vault/file");
    sub_file_ = number("/dir/sub/file");
    last_ = number("/vault/sub/file");
    ASSERT_TRUE(volume_->close());
    volume_.reset();
  }
  void unlock() {
    open_again();
    add_key();
  }
  void shut() {
    EXPECT_TRUE(volume_->close());
    volume_.reset();
  }
  u64 number(std::string_view path) {
    const auto found = volume::resolve(*volume_, path);
    EXPECT_TRUE(found) << path;
    return found.value_or(volume::InodeId{}).number;
  }

  using Change = std::function<Result<void>(engine::Transaction&)>;
  void damage(const Change& change) {
    auto store = engine::Store::open(device_, {}, system_env());
    ASSERT_TRUE(store) << store.error().what;
    auto space = (*store)->reserve({0, 64, 16000});
    ASSERT_TRUE(space);
    {
      auto transaction = (*store)->begin(std::move(*space));
      ASSERT_TRUE(transaction);
      const auto changed = change(*transaction);
      ASSERT_TRUE(changed) << changed.error().what;
    }
    ASSERT_TRUE((*store)->close());
  }
  void put_record(engine::Key key, Bytes value) {
    damage([&](engine::Transaction& t) { return t.put(engine::kFirstSubvolume, key, value); });
  }
  void erase_record(engine::Key key) {
    damage([&](engine::Transaction& t) -> Result<void> {
      LK_TRY(const bool there, t.erase(engine::kFirstSubvolume, key));
      EXPECT_TRUE(there);
      return {};
    });
  }
  template <class Disk>
  static Result<void> change(engine::Transaction& t, engine::Key key,
                             const std::function<void(Disk&)>& fn) {
    LK_TRY(auto record, t.get(engine::kFirstSubvolume, key));
    EXPECT_TRUE(record);
    auto disk = load_disk<Disk>(record->value);
    fn(disk);
    store_disk(record->value, disk);
    return t.put(engine::kFirstSubvolume, key, record->value);
  }
  void change_inode(u64 inode, const std::function<void(volume::InodeDisk&)>& fn) {
    damage([&](engine::Transaction& t) {
      return change<volume::InodeDisk>(t, volume::inode_key(inode), fn);
    });
  }
  // The entry by which `directory` names `inode`.
  static engine::Record entry_of(const engine::View& view, u64 directory, u64 inode) {
    for (engine::Record& record :
         records(view, engine::kFirstSubvolume, {directory, volume::kEntryType, 0},
                 {directory, volume::kEntryType, ~u64{0}}))
      if (load_disk<volume::EntryDisk>(record.value).inode == inode) return std::move(record);
    ADD_FAILURE() << "no entry of inode " << inode << " in directory " << directory;
    return {};
  }
  engine::Record entry_of(u64 directory, u64 inode) {
    engine::Record entry;
    damage([&](engine::Transaction& t) -> Result<void> {
      entry = entry_of(t, directory, inode);
      return {};
    });
    return entry;
  }
  // The name of `inode` moves from one directory to another, and its way back with it.
  void move_entry(u64 inode, std::string_view name, u64 from, u64 to) {
    damage([&](engine::Transaction& t) -> Result<void> {
      engine::Record entry = entry_of(t, from, inode);
      LK_TRYV(t.erase(engine::kFirstSubvolume, entry.key));
      entry.key.object = to;
      LK_TRYV(t.put(engine::kFirstSubvolume, entry.key, entry.value));
      LK_TRYV(t.erase(engine::kFirstSubvolume, back_of(inode, from, name).key));
      const engine::Record back = back_of(inode, to, name);
      return t.put(engine::kFirstSubvolume, back.key, back.value);
    });
  }
  // The extent record that holds the file's first block, as the engine's lookups give it.
  static engine::ExtentRecord extent_of(const engine::View& view, u64 inode) {
    const auto map = view.get(engine::kFirstSubvolume, {inode, volume::kMapType, 0});
    EXPECT_TRUE(map && *map);
    const auto entry = extent::decode_map(0, (*map)->value);
    auto record = view.extent_at(entry->disk_block, entry->blocks);
    EXPECT_TRUE(record);
    return *record;
  }
  engine::ExtentRecord extent_of(u64 inode) {
    engine::ExtentRecord record;
    damage([&](engine::Transaction& t) -> Result<void> {
      record = extent_of(t, inode);
      return {};
    });
    return record;
  }
  static Result<void> put_extent(engine::Transaction& t, const engine::ExtentRecord& record) {
    return t.put(engine::kExtentTree, {record.run.block, 1, 0}, engine::encode_extent(record));
  }
  void change_extent(u64 inode, const std::function<void(engine::ExtentRecord&)>& fn) {
    damage([&](engine::Transaction& t) {
      engine::ExtentRecord record = extent_of(t, inode);
      fn(record);
      return put_extent(t, record);
    });
  }

  std::vector<std::string> findings() {
    std::vector<std::string> all;
    auto check = volume::check_volume(device_, {}, system_env());
    EXPECT_TRUE(check) << check.error().what;
    if (!check) return all;
    for (const engine::Finding& finding : check->findings)
      all.push_back(finding.where + ": " + finding.what);
    std::ranges::sort(all);
    return all;
  }
  void expect(std::vector<std::string> wanted) {
    std::ranges::sort(wanted);
    EXPECT_EQ(findings(), wanted);
  }

  static std::string at(u64 inode) { return "inode " + std::to_string(inode); }
  static std::string at(u64 inode, u64 file_block) {
    return at(inode) + ", file offset " + std::to_string(file_block * engine::kBlockBytes);
  }
  static std::string at_block(u64 block) {
    return "device offset " + std::to_string(block * engine::kBlockBytes);
  }
  static std::string at(u64 directory, const engine::Record& entry) {
    std::array<char, 32> text{};
    (void)std::snprintf(text.data(), text.size(), "%#llx",
                        static_cast<unsigned long long>(entry.key.offset));
    return "directory " + std::to_string(directory) + ", entry " + text.data();
  }
  static std::string at(u64 directory, const engine::Record& entry, u64 inode) {
    return at(directory, entry) + ", " + at(inode);
  }

  u64 plain_ = 0, small_ = 0, dir_ = 0, sub_ = 0, vault_ = 0, file_ = 0, last_ = 0, sub_file_ = 0;
};

}  // namespace latchkey::tests
