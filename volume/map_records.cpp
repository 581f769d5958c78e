#include "volume/map_records.h"

#include <map>

namespace latchkey::volume {

namespace {

constexpr u64 kBlock = engine::kBlockBytes;

engine::Key map_key(InodeId inode, u64 file_block) {
  return {inode.number, kMapType, file_block * kBlock};
}

}  // namespace

Result<void> put_inode(engine::Transaction& transaction, InodeId inode,
                       const Attributes& attributes) {
  const InodeDisk disk = encode(attributes);
  return transaction.put(inode.subvolume, inode_key(inode.number),
                         std::as_bytes(std::span(&disk, 1)));
}

Result<Attributes> get_inode(const engine::View& view, InodeId inode) {
  if (inode.number == kEmptyNumber) {
    Attributes empty;
    empty.kind = FileKind::directory;
    empty.mode = 0555;
    return empty;
  }
  LK_TRY(const auto record, view.get(inode.subvolume, inode_key(inode.number)));
  if (!record) return fail(Errc::not_found, "there is no such file");
  return decode_inode(record->value);
}

Result<u64> inode_count(const engine::View& view, engine::TreeId subvolume) {
  LK_TRY(const auto record, view.get(subvolume, inode_count_key()));
  if (!record) return u64{1};
  if (record->value.size() != sizeof(Le64))
    return fail(Errc::malformed, "the count of inodes is malformed");
  return u64{load_disk<Le64>(record->value)};
}

Result<void> count_inodes(engine::Transaction& transaction, engine::TreeId subvolume, i64 change) {
  LK_TRY(const u64 before, inode_count(transaction, subvolume));
  const Le64 after(before + static_cast<u64>(change));
  return transaction.put(subvolume, inode_count_key(), std::as_bytes(std::span(&after, 1)));
}

Result<u64> number_limit(const engine::View& view, engine::TreeId subvolume) {
  LK_TRY(const auto record, view.get(subvolume, {kCounterObject, kCounterType, 0}));
  if (!record || record->value.size() != sizeof(Le64))
    return fail(Errc::malformed, "a subvolume has no counter of inode numbers");
  return u64{load_disk<Le64>(record->value)};
}

Result<void> put_number_limit(engine::Transaction& transaction, engine::TreeId subvolume,
                              u64 limit) {
  const Le64 value(limit);
  return transaction.put(subvolume, {kCounterObject, kCounterType, 0},
                         std::as_bytes(std::span(&value, 1)));
}

Result<std::vector<extent::MapEntry>> map_entries(const engine::View& view, InodeId inode,
                                                  extent::FileRange range, std::size_t count_max) {
  std::vector<extent::MapEntry> entries;
  if (range.blocks == 0) return entries;
  Result<void> wrong;
  const auto add = [&](const engine::Key& key, Bytes value) {
    auto entry = extent::decode_map(key.offset, value);
    if (!entry) {
      wrong = std::unexpected(entry.error());
      return false;
    }
    if (entry->file_end() <= range.first_block || entry->file_block >= range.end()) return true;
    if (!entries.empty() && entries.back().file_end() > entry->file_block) {
      wrong = fail(Errc::malformed, "two pieces of a file's map overlap");
      return false;
    }
    entries.push_back(*entry);
    return entries.size() < count_max;
  };
  // One entry may begin before the range and reach into it.
  LK_TRY(const auto before, view.at_or_before(inode.subvolume, map_key(inode, range.first_block)));
  const bool has_before =
      before && before->key.object == inode.number && before->key.type == kMapType;
  if (has_before && !add(before->key, before->value) && wrong) return entries;
  const u64 first = has_before ? before->key.offset + 1 : range.first_block * kBlock;
  LK_TRYV(view.scan(inode.subvolume, {inode.number, kMapType, first},
                    map_key(inode, range.end() - 1), add));
  LK_TRYV(wrong);
  return entries;
}

Result<std::vector<extent::MapEntry>> last_entries(const engine::View& view, InodeId inode,
                                                   u64 first_block, std::size_t count_max) {
  std::vector<extent::MapEntry> entries;
  engine::Key key{inode.number, kMapType, ~u64{0}};
  while (entries.size() < count_max) {
    LK_TRY(const auto record, view.at_or_before(inode.subvolume, key));
    if (!record || record->key.object != inode.number || record->key.type != kMapType) break;
    LK_TRY(const auto entry, extent::decode_map(record->key.offset, record->value));
    if (entry.file_end() <= first_block) break;
    if (!entries.empty() && entry.file_end() > entries.back().file_block)
      return fail(Errc::malformed, "two pieces of a file's map overlap");
    entries.push_back(entry);
    if (record->key.offset == 0) break;
    key.offset = record->key.offset - 1;
  }
  return entries;
}

namespace {

// All but the promises: how many of this tree's are gone.
Result<u64> apply_records(engine::Transaction& transaction, InodeId inode,
                          const extent::MapEdit& edit) {
  for (const u64 block : edit.erase)
    LK_TRYV(transaction.erase(inode.subvolume, map_key(inode, block)));
  for (const extent::MapEntry& entry : edit.put) {
    const extent::MapDisk disk = extent::encode(entry);
    LK_TRYV(transaction.put(inode.subvolume, map_key(inode, entry.file_block),
                            std::as_bytes(std::span(&disk, 1))));
  }
  for (const extent::DiskRun& run : edit.release)
    LK_TRYV(transaction.release_extent({run.block, run.blocks}));
  u64 ended = 0;
  for (const extent::EndedPromise& promise : edit.ended)
    if (promise.tree == inode.subvolume) ended += promise.blocks;
  return ended;
}

Result<void> end_promises(engine::Transaction& transaction, engine::TreeId subvolume, u64 ended,
                          engine::DrawnPromise& drawn) {
  if (ended == 0) return {};
  return transaction.end_promise(subvolume, ended, drawn);
}

}  // namespace

Result<void> apply(engine::Transaction& transaction, InodeId inode, const extent::MapEdit& edit) {
  engine::DrawnPromise none;
  LK_TRY(const u64 ended, apply_records(transaction, inode, edit));
  return end_promises(transaction, inode.subvolume, ended, none);
}

Result<void> replace_entries(engine::Transaction& transaction, InodeId inode,
                             std::span<const extent::MapEntry> fresh, engine::DrawnPromise& drawn) {
  // The entries in question as they become, one fresh entry after the other.
  std::map<u64, extent::MapEntry> entries;
  for (const extent::MapEntry& entry : fresh) {
    LK_TRY(const auto old, map_entries(transaction, inode, {entry.file_block, entry.blocks}));
    for (const extent::MapEntry& one : old) entries.emplace(one.file_block, one);
  }
  u64 ended = 0;
  for (const extent::MapEntry& entry : fresh) {
    const extent::FileRange range{entry.file_block, entry.blocks};
    std::vector<extent::MapEntry> touched;
    auto it = entries.upper_bound(range.first_block);
    if (it != entries.begin()) --it;
    for (; it != entries.end() && it->first < range.end(); ++it)
      if (it->second.file_end() > range.first_block) touched.push_back(it->second);
    const extent::MapEdit edit = extent::replace(touched, range, {entry});
    for (const u64 block : edit.erase) entries.erase(block);
    for (const extent::MapEntry& put : edit.put) entries.insert_or_assign(put.file_block, put);
    LK_TRY(const u64 here, apply_records(transaction, inode, edit));
    ended += here;
  }
  return end_promises(transaction, inode.subvolume, ended, drawn);
}

}  // namespace latchkey::volume
