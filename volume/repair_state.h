#pragma once
// What a repair of records has in its hands: everything that one subvolume's tree says, read at
// once, and steps that change it. Each step is whole or not there, and leaves nothing worse than it
// was, so that a repair which was cut off is simply begun again.

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/env.h"
#include "engine/store.h"
#include "extent/map.h"
#include "volume/format.h"
#include "volume/subvolumes.h"

namespace latchkey::volume {

class Mender {
 public:
  Mender(engine::Store& store, Env& env, u32 commit_every, std::vector<engine::Finding>& mended)
      : store_(store), env_(env), commit_every_(commit_every), mended_(mended) {}

  using Change = std::function<Result<void>(engine::Transaction&)>;
  // One transaction that puts or erases at most so many records of names' size. It looks up what it
  // needs before it changes anything.
  static constexpr u32 kRecords = 8;
  Result<void> mend(std::string what, std::string where, const Change& change,
                    u32 records = kRecords);
  u64 steps() const { return mended_.size(); }
  engine::View view() const { return store_.view(); }
  i64 now_ns() { return static_cast<i64>(env_.realtime_ns()); }
  void random(MutableBytes bytes) { env_.random(bytes); }
  u64 blocks() const { return store_.facts().size_bytes / engine::kBlockBytes; }

 private:
  engine::Store& store_;
  Env& env_;
  const u32 commit_every_;
  std::vector<engine::Finding>& mended_;
};

struct BackItem {
  engine::Key key;
  NameOfInode name;
};

// What a tree says of one inode number; by names that lead there, too.
struct InodeRecords {
  std::optional<Attributes> item;
  bool item_malformed = false;  // then nobody knows what it was, and nothing of it is changed
  std::vector<engine::Key> misplaced_items;
  bool has_records = false;  // other than an item
  bool orphan = false;
  bool has_entries = false;
  std::vector<BackItem> backs;
  std::vector<std::size_t> names;  // that lead to it: in TreeRecords::names
  u64 map_end = 0, data_end = 0;   // in blocks, with promises and without
  bool overlaps = false;
  std::vector<engine::Key> bad_pieces;   // of its map: malformed, or they begin behind the store
  std::vector<engine::Key> long_pieces;  // they end behind it
  std::string target;
  bool target_in_order = true;
  std::vector<engine::Key> target_pieces;
  std::vector<engine::Key> bad_xattrs;  // records of no whole attribute, or of one that is twice
  std::vector<engine::Key> misplaced_xattrs;  // first pieces

  bool is_directory() const { return item && item->kind == FileKind::directory; }
  bool is_missing() const { return !item && !item_malformed; }
};

struct TreeRecords {
  engine::TreeId id = 0;
  std::map<u64, InodeRecords> inodes;
  std::vector<Entry> names;            // well-formed ones, but for those of subvolumes
  std::vector<Entry> subvolume_names;  // well-formed ones
  std::vector<engine::Key> bad_entries, bad_backs, bad_orphans;
  u64 numbers_end = kRootNumber + 1;  // beyond every number that has an item
  std::optional<u64> counter, count;

  bool has_root() const {
    const InodeRecords* root = find(kRootNumber);
    return root != nullptr && root->is_directory();
  }
  // Whether there can be a lost+found: no name can be made in an encrypted root directory.
  bool can_find_the_lost() const { return has_root() && !find(kRootNumber)->item->encrypted; }
  std::string where(u64 number) const { return to_text({id, number}); }
  const InodeRecords* find(u64 number) const {
    const auto it = inodes.find(number);
    return it == inodes.end() ? nullptr : &it->second;
  }
};
Result<TreeRecords> read_tree(const engine::View& view, engine::TreeId id, u64 store_blocks);

// A place among the 256 of a hash; no_space: there is none.
Result<engine::Key> free_slot(const engine::View& view, engine::TreeId tree, engine::Key base);
// Entry and back item of one name.
Result<void> put_link(engine::Transaction& transaction, engine::TreeId tree,
                      const NameOfInode& name, InodeId inode, FileKind kind);

// The directory `lost+found` in the subvolume's root directory, made if it is not there. Nothing:
// there is no root directory, or it is encrypted, and no name can be made without its key.
Result<std::optional<u64>> lost_and_found(Mender& mender, const TreeRecords& tree);
// A name in it for that number that nobody has.
Result<std::string> free_name(const engine::View& view, InodeId directory, u64 number,
                              std::string_view prefix);

// Steps of a tree's repair: repair_names.cpp, repair_inodes.cpp. Each says whether it changed
// anything; then what was read is old.
Result<bool> mend_strays(Mender& mender, const TreeRecords& tree);
Result<bool> mend_missing_inodes(Mender& mender, const TreeRecords& tree);
Result<bool> mend_entries(Mender& mender, const TreeRecords& tree);
Result<bool> mend_back_items(Mender& mender, const TreeRecords& tree);
Result<bool> mend_counter(Mender& mender, const TreeRecords& tree);
Result<bool> mend_unreachable(Mender& mender, const TreeRecords& tree);
Result<bool> mend_links(Mender& mender, const TreeRecords& tree);
Result<bool> mend_maps(Mender& mender, const TreeRecords& tree);
Result<bool> mend_items(Mender& mender, const TreeRecords& tree);
Result<bool> mend_xattrs(Mender& mender, const TreeRecords& tree);
Result<bool> mend_count(Mender& mender, const TreeRecords& tree);

// References of extent records, from the maps of all files: repair_extents.cpp. Says which blocks
// maps refer to that no record holds.
Result<void> mend_references(Mender& mender, std::vector<extent::DiskRun>& unheld);
// Pieces of files' maps over those blocks are taken out. Not while trees share nodes.
Result<bool> mend_unheld(Mender& mender, const TreeRecords& tree,
                         const std::vector<extent::DiskRun>& unheld);

// The tree of subvolumes: repair_subvolumes.cpp. `trees` are those that could be read.
Result<bool> mend_subvolumes(Mender& mender, const std::vector<TreeRecords>& trees);

}  // namespace latchkey::volume
