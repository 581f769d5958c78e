// Reads a subvolume's tree for its repair, and what its steps share.

#include <algorithm>

#include "volume/repair_state.h"
#include "volume/xattr_records.h"

namespace latchkey::volume {

namespace {

constexpr engine::Key kLastKey{~u64{0}, 255, ~u64{0}};
constexpr u64 kRecordBytes = 300;
constexpr u64 kNumbersMax = ~u64{0} - kInodeChunk;

class Reader {
 public:
  Reader(engine::TreeId id, u64 store_blocks) : store_blocks_(store_blocks) { tree_.id = id; }

  Result<TreeRecords> read(const engine::View& view) {
    LK_TRYV(view.scan(tree_.id, {}, kLastKey, [&](const engine::Key& key, Bytes value) {
      if (!xattr_keys_.empty() && (key.object != xattr_keys_.front().object ||
                                   key.type != kXattrType || slot(key) != slot(xattr_keys_[0])))
        end_xattr();
      if (key.object >= kRootNumber)
        of_inode(key, value);
      else
        of_tree(key, value);
      return true;
    }));
    if (!xattr_keys_.empty()) end_xattr();
    for (std::size_t i = 0; i < tree_.names.size(); ++i) {
      const u64 number = tree_.names[i].inode.number;
      if (number < kRootNumber) continue;
      tree_.inodes[number].names.push_back(i);
    }
    return std::move(tree_);
  }

 private:
  void of_tree(const engine::Key& key, Bytes value) {
    if (key.object == kOrphanObject && key.type == kOrphanType) {
      if (!value.empty() || key.offset < kRootNumber) return tree_.bad_orphans.push_back(key);
      tree_.inodes[key.offset].orphan = true;
      return;
    }
    if (value.size() != sizeof(Le64)) return;
    if (key == engine::Key{kCounterObject, kCounterType, 0}) tree_.counter = load_disk<Le64>(value);
    if (key == inode_count_key()) tree_.count = load_disk<Le64>(value);
  }

  void of_inode(const engine::Key& key, Bytes value) {
    if (key.type < kInodeType || key.type > kXattrType) return;
    InodeRecords& inode = tree_.inodes[key.object];
    inode.has_records = inode.has_records || key.type != kInodeType;
    if (key.type == kInodeType) return item(inode, key, value);
    if (key.type == kBackType) return back(inode, key, value);
    if (key.type == kEntryType) return entry(inode, key, value);
    if (key.type == kMapType) return piece(inode, key, value);
    if (key.type == kTargetType) return target(inode, key, value);
    return xattr(key, value);
  }

  void item(InodeRecords& inode, const engine::Key& key, Bytes value) {
    const auto attributes = decode_inode(value);
    if (key.offset != 0) {
      if (attributes) inode.misplaced_items.push_back(key);
      return;
    }
    inode.item_malformed = !attributes;
    if (!attributes) return;
    inode.item = *attributes;
    if (key.object != ~u64{0}) tree_.numbers_end = std::max(tree_.numbers_end, key.object + 1);
  }

  void back(InodeRecords& inode, const engine::Key& key, Bytes value) {
    auto name = decode_back(value);
    if (!name) return tree_.bad_backs.push_back(key);
    inode.backs.push_back({key, std::move(*name)});
  }

  void entry(InodeRecords& directory, const engine::Key& key, Bytes value) {
    directory.has_entries = true;
    auto decoded = decode_entry(tree_.id, key, value);
    if (!decoded) return tree_.bad_entries.push_back(key);
    const bool crosses = decoded->kind == FileKind::subvolume;
    (crosses ? tree_.subvolume_names : tree_.names).push_back(std::move(*decoded));
  }

  void piece(InodeRecords& inode, const engine::Key& key, Bytes value) const {
    auto entry = extent::decode_map(key.offset, value);
    if (!entry || (!entry->promised && entry->disk_block >= store_blocks_))
      return inode.bad_pieces.push_back(key);
    if (!entry->promised && entry->blocks > store_blocks_ - entry->disk_block) {
      inode.long_pieces.push_back(key);
      entry->blocks = static_cast<u32>(store_blocks_ - entry->disk_block);
    }
    if (!entry->promised) inode.data_end = std::max(inode.data_end, entry->file_end());
    inode.overlaps = inode.overlaps || entry->file_block < inode.map_end;
    inode.map_end = std::max(inode.map_end, entry->file_end());
  }

  static void target(InodeRecords& inode, const engine::Key& key, Bytes value) {
    inode.target_pieces.push_back(key);
    if (key.offset != inode.target.size() || key.offset % kTargetPieceBytes != 0 || value.empty())
      inode.target_in_order = false;
    inode.target.append(reinterpret_cast<const char*>(value.data()), value.size());
  }

  // --- attributes: all records of one slot are one attribute, or none ---------------------------

  static u64 slot(const engine::Key& key) { return key.offset / kXattrSlotStep; }

  void xattr(const engine::Key& key, Bytes value) {
    xattr_wrong_ = !xattrs_.add(key, value) || xattr_wrong_;
    xattr_keys_.push_back(key);
  }

  void end_xattr() {
    xattr_wrong_ = !xattrs_.end() || xattr_wrong_;
    const std::vector<Xattr> whole = xattrs_.take();
    const engine::Key first = xattr_keys_.front();
    InodeRecords& inode = tree_.inodes[first.object];
    if (first.object != xattr_names_of_) xattr_names_.clear();
    xattr_names_of_ = first.object;
    if (xattr_wrong_ || whole.size() != 1 || !check_xattr_name(whole[0].name) ||
        !xattr_names_.insert(whole[0].name).second)
      std::ranges::copy(xattr_keys_, std::back_inserter(inode.bad_xattrs));
    else if (xattr_offset(whole[0].name) != first.offset / kXattrHashStep * kXattrHashStep)
      inode.misplaced_xattrs.push_back(first);
    xattr_wrong_ = false;
    xattr_keys_.clear();
  }

  const u64 store_blocks_;
  TreeRecords tree_;
  XattrReader xattrs_{false};
  bool xattr_wrong_ = false;
  std::vector<engine::Key> xattr_keys_;
  u64 xattr_names_of_ = 0;
  std::set<std::string> xattr_names_;
};

}  // namespace

Result<TreeRecords> read_tree(const engine::View& view, engine::TreeId id, u64 store_blocks) {
  return Reader(id, store_blocks).read(view);
}

Result<void> Mender::mend(std::string what, std::string where, const Change& change, u32 records) {
  LK_TRY(auto space, store_.reserve({0, records, records * kRecordBytes}, true));
  {
    LK_TRY(engine::Transaction transaction, store_.begin(std::move(space)));
    LK_TRYV(change(transaction));
  }
  mended_.push_back({std::move(what), std::move(where), true});
  return mended_.size() % commit_every_ == 0 ? store_.commit() : Result<void>();
}

Result<engine::Key> free_slot(const engine::View& view, engine::TreeId tree, engine::Key base) {
  engine::Key place = base;
  engine::Key last = base;
  last.offset += kEntrySlots - 1;
  LK_TRYV(view.scan(tree, base, last, [&](const engine::Key& key, Bytes) {
    if (key == place) ++place.offset;
    return true;
  }));
  if (place.offset > last.offset) return fail(Errc::no_space, "too many names of one hash");
  return place;
}

Result<void> put_link(engine::Transaction& transaction, engine::TreeId tree,
                      const NameOfInode& name, InodeId inode, FileKind kind) {
  LK_TRY(const engine::Key entry,
         free_slot(transaction, tree, {name.directory, kEntryType, entry_offset(name.stored)}));
  LK_TRY(const engine::Key back,
         free_slot(transaction, tree, {inode.number, kBackType, back_offset(name)}));
  LK_TRYV(transaction.put(tree, entry, encode_entry({entry, inode, kind, name.stored})));
  return transaction.put(tree, back, encode_back(name));
}

namespace {

Result<bool> is_taken(const engine::View& view, InodeId directory, std::string_view stored) {
  bool taken = false;
  const u64 base = entry_offset(stored);
  LK_TRYV(view.scan(directory.subvolume, {directory.number, kEntryType, base},
                    {directory.number, kEntryType, base + kEntrySlots - 1},
                    [&](const engine::Key& key, Bytes value) {
                      const auto entry = decode_entry(directory.subvolume, key, value);
                      taken = taken || (entry && entry->stored == stored);
                      return !taken;
                    }));
  return taken;
}

}  // namespace

Result<std::string> free_name(const engine::View& view, InodeId directory, u64 number,
                              std::string_view prefix) {
  const std::string first = std::string(prefix) + std::to_string(number);
  std::string name = first;
  for (u32 i = 1;; ++i) {
    LK_TRY(const bool taken, is_taken(view, directory, name));
    if (!taken) return name;
    name = first + "-" + std::to_string(i);
  }
}

Result<std::optional<u64>> lost_and_found(Mender& mender, const TreeRecords& tree) {
  if (!tree.can_find_the_lost()) return std::optional<u64>{};
  std::map<std::string, const Entry*> taken;
  for (const std::vector<Entry>* names : {&tree.names, &tree.subvolume_names})
    for (const Entry& entry : *names)
      if (entry.key.object == kRootNumber) taken.emplace(entry.stored, &entry);
  std::string name = "lost+found";
  for (u32 i = 1; taken.contains(name); ++i) {
    const Entry& entry = *taken.at(name);
    const InodeRecords* there = tree.find(entry.inode.number);
    if (entry.kind == FileKind::directory && there->is_directory() && !there->item->encrypted)
      return std::optional(entry.inode.number);
    name = "lost+found-" + std::to_string(i);
  }
  InodeId made{tree.id, std::max(tree.numbers_end, tree.counter.value_or(0))};
  while (tree.inodes.contains(made.number)) ++made.number;
  if (made.number >= kNumbersMax) return std::optional<u64>{};
  Attributes item;
  item.kind = FileKind::directory;
  item.mode = 0700;
  set_all_times(item, mender.now_ns());
  const auto change = [&](engine::Transaction& transaction) -> Result<void> {
    LK_TRYV(put_link(transaction, tree.id, {kRootNumber, name}, made, item.kind));
    const InodeDisk disk = encode(item);
    LK_TRYV(transaction.put(tree.id, inode_key(made.number), std::as_bytes(std::span(&disk, 1))));
    const Le64 counter(made.number + kInodeChunk), count(tree.count.value_or(1) + 1);
    LK_TRYV(transaction.put(tree.id, {kCounterObject, kCounterType, 0},
                            std::as_bytes(std::span(&counter, 1))));
    return transaction.put(tree.id, inode_count_key(), std::as_bytes(std::span(&count, 1)));
  };
  LK_TRYV(mender.mend("directory " + name + " was made for what has no name",
                      tree.where(kRootNumber), change));
  return std::optional(made.number);
}

}  // namespace latchkey::volume
