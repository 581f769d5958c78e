// Repair of what inodes say of themselves: items, maps, targets, extended attributes, counts.

#include <fmt/format.h>

#include <algorithm>

#include "extent/context.h"
#include "volume/map_records.h"
#include "volume/repair_state.h"
#include "volume/xattr_records.h"

namespace latchkey::volume {

namespace {

std::string offset_text(const TreeRecords& tree, const engine::Key& key) {
  return fmt::format("{}, file offset {}", tree.where(key.object), key.offset);
}

// --- inodes without an item ---------------------------------------------------------------------

// What an item has to say for the data to be readable: an extent knows its key, the inode's nonce
// is for names, targets and attributes, of which such an inode keeps none.
Result<Attributes> item_for_data(Mender& mender, const TreeRecords& tree, u64 number,
                                 const InodeRecords& inode) {
  Attributes item;
  item.mode = 0600;
  item.size = inode.data_end * engine::kBlockBytes;
  item.links = static_cast<u32>(std::min<std::size_t>(inode.names.size(), kLinksMax));
  set_all_times(item, mender.now_ns());
  std::optional<extent::Context> context;
  const engine::View view = mender.view();
  LK_TRY(const auto pieces, map_entries(view, {tree.id, number}, {0, kFileBlocksMax}));
  for (const extent::MapEntry& piece : pieces) {
    if (piece.promised) continue;
    const auto record = view.extent_at(piece.disk_block, 1);
    if (!record) continue;
    const auto decoded = extent::decode_context(record->context);
    if (!decoded) continue;
    context = *decoded;
    break;
  }
  if (!context) return item;
  item.encrypted = true;
  item.key_id = context->key_id;
  return item;
}

constexpr std::size_t kKeysAtOnce = 64;
constexpr u32 kXattrRecords = 300;  // bytes and pieces of the longest attribute, old and new

Result<void> erase_some(Mender& mender, const TreeRecords& tree, u64 number,
                        std::span<const engine::Key> keys, const std::string& what) {
  while (!keys.empty()) {
    const auto some = keys.first(std::min(kKeysAtOnce, keys.size()));
    keys = keys.subspan(some.size());
    const auto change = [&](engine::Transaction& transaction) -> Result<void> {
      for (const engine::Key& key : some) LK_TRYV(transaction.erase(tree.id, key));
      return {};
    };
    LK_TRYV(mender.mend(what, tree.where(number), change, static_cast<u32>(some.size())));
  }
  return {};
}

// Everything under the number that belongs to an inode, but for its map. If that is there, the
// names that the back items know stay, too, and an orphan is removed by the next open.
Result<void> erase_remains(Mender& mender, const TreeRecords& tree, u64 number, bool has_map) {
  for (;;) {
    std::vector<engine::Key> keys;
    LK_TRYV(mender.view().scan(tree.id, {number, kBackType, 0}, {number, kXattrType, ~u64{0}},
                               [&](const engine::Key& key, Bytes) {
                                 const bool stays =
                                     key.type == kMapType || (has_map && key.type == kBackType);
                                 if (!stays) keys.push_back(key);
                                 return keys.size() < kKeysAtOnce;
                               }));
    const engine::Key orphan = orphan_key({tree.id, number});
    LK_TRY(const auto is_orphan, mender.view().get(tree.id, orphan));
    if (is_orphan && !has_map) keys.push_back(orphan);
    if (keys.empty()) return {};
    LK_TRYV(erase_some(mender, tree, number, keys,
                       "what was left of an inode without an item was taken out"));
  }
}

}  // namespace

Result<bool> mend_missing_inodes(Mender& mender, const TreeRecords& tree) {
  const u64 before = mender.steps();
  for (const auto& [number, inode] : tree.inodes) {
    if (!inode.is_missing() || number == kRootNumber) continue;
    if (!inode.has_records && !inode.orphan) continue;  // names that lead nowhere
    if (inode.has_entries && !tree.can_find_the_lost()) continue;
    LK_TRYV(erase_remains(mender, tree, number, inode.map_end != 0));
    if (inode.map_end == 0 || inode.overlaps || !inode.bad_pieces.empty() ||
        !inode.long_pieces.empty() || inode.map_end > kFileBlocksMax)
      continue;
    LK_TRY(Attributes item, item_for_data(mender, tree, number, inode));
    if (item.encrypted) mender.random(item.nonce.bytes);
    LK_TRYV(mender.mend("data without an inode item is a file again", tree.where(number),
                        [&](engine::Transaction& transaction) {
                          return put_inode(transaction, {tree.id, number}, item);
                        }));
  }
  return mender.steps() != before;
}

// --- maps ---------------------------------------------------------------------------------------

namespace {

using Pieces = std::map<u64, extent::MapEntry>;  // by file block

// Takes [from, to) out of the pieces.
void punch(Pieces& pieces, u64 from, u64 to) {
  auto it = pieces.lower_bound(from);
  if (it != pieces.begin() && std::prev(it)->second.file_end() > from) --it;
  while (it != pieces.end() && it->first < to) {
    const extent::MapEntry old = it->second;
    it = pieces.erase(it);
    if (old.file_block < from)
      pieces[old.file_block] = {old.file_block, old.disk_block,
                                static_cast<u32>(from - old.file_block), old.promised};
    if (old.file_end() > to)
      pieces[to] = {to, old.disk_block + (old.promised ? 0 : to - old.file_block),
                    static_cast<u32>(old.file_end() - to), old.promised};
  }
}

Result<Pieces> read_pieces(const engine::View& view, InodeId inode) {
  Pieces pieces;
  LK_TRYV(view.scan(inode.subvolume, {inode.number, kMapType, 0}, {inode.number, kMapType, ~u64{0}},
                    [&](const engine::Key& key, Bytes value) {
                      if (const auto piece = extent::decode_map(key.offset, value))
                        pieces.emplace(piece->file_block, *piece);
                      return true;
                    }));
  return pieces;
}

// The records become `wanted`, a few hundred at a time: each step takes away and puts.
Result<void> put_pieces(Mender& mender, const TreeRecords& tree, u64 number, const Pieces& old,
                        const Pieces& wanted, const std::string& what) {
  struct Change {
    u64 file_block;
    const extent::MapEntry* put;
  };
  std::vector<Change> changes;
  for (const auto& [block, piece] : old)
    if (!wanted.contains(block)) changes.push_back({block, nullptr});
  for (const auto& [block, piece] : wanted)
    if (!old.contains(block) || old.at(block) != piece) changes.push_back({block, &piece});
  static constexpr std::size_t kAtOnce = 256;
  for (std::size_t first = 0; first < changes.size(); first += kAtOnce) {
    const auto some = std::span(changes).subspan(first, std::min(kAtOnce, changes.size() - first));
    const auto change = [&](engine::Transaction& transaction) -> Result<void> {
      for (const Change& one : some) {
        const engine::Key key{number, kMapType, one.file_block * engine::kBlockBytes};
        if (one.put == nullptr) {
          LK_TRYV(transaction.erase(tree.id, key));
          continue;
        }
        const extent::MapDisk disk = encode(*one.put);
        LK_TRYV(transaction.put(tree.id, key, std::as_bytes(std::span(&disk, 1))));
      }
      return {};
    };
    LK_TRYV(mender.mend(what, tree.where(number), change, static_cast<u32>(some.size())));
  }
  return {};
}

// What lies inside can be read.
Result<void> shorten_pieces(Mender& mender, const TreeRecords& tree, const InodeRecords& inode) {
  for (const engine::Key& key : inode.long_pieces) {
    const auto change = [&](engine::Transaction& transaction) -> Result<void> {
      LK_TRY(const auto record, transaction.get(tree.id, key));
      if (!record) return fail(Errc::not_found, "a piece of a file is gone");
      LK_TRY(extent::MapEntry piece, extent::decode_map(key.offset, record->value));
      piece.blocks = static_cast<u32>(mender.blocks() - piece.disk_block);
      const extent::MapDisk disk = encode(piece);
      return transaction.put(tree.id, key, std::as_bytes(std::span(&disk, 1)));
    };
    LK_TRYV(
        mender.mend("a piece of a file ends where the store does", offset_text(tree, key), change));
  }
  return {};
}

}  // namespace

// A piece that cannot be followed is a hole then, and the message says where zeros are read. Of two
// that overlap the later one stays whole, as if it had been written later.
Result<bool> mend_maps(Mender& mender, const TreeRecords& tree) {
  const u64 before = mender.steps();
  for (const auto& [number, inode] : tree.inodes) {
    if (inode.item_malformed) continue;
    for (const engine::Key& key : inode.bad_pieces)
      LK_TRYV(mender.mend("a piece of a file that led nowhere is a hole now",
                          offset_text(tree, key), [&](engine::Transaction& transaction) {
                            const auto erased = transaction.erase(tree.id, key);
                            return erased ? Result<void>() : std::unexpected(erased.error());
                          }));
    LK_TRYV(shorten_pieces(mender, tree, inode));
    if (!inode.overlaps) continue;
    LK_TRY(const Pieces old, read_pieces(mender.view(), {tree.id, number}));
    Pieces wanted;
    for (const auto& [block, piece] : old) {
      punch(wanted, piece.file_block, piece.file_end());
      wanted[block] = piece;
    }
    LK_TRYV(put_pieces(mender, tree, number, old, wanted,
                       "of two overlapping pieces of a file the later one stays"));
  }
  return mender.steps() != before;
}

Result<bool> mend_unheld(Mender& mender, const TreeRecords& tree,
                         const std::vector<extent::DiskRun>& unheld) {
  if (unheld.empty()) return false;
  const u64 before = mender.steps();
  for (const auto& [number, inode] : tree.inodes) {
    if (inode.map_end == 0 || inode.item_malformed) continue;
    LK_TRY(const Pieces old, read_pieces(mender.view(), {tree.id, number}));
    Pieces wanted = old;
    for (const auto& [block, piece] : old) {
      if (piece.promised) continue;
      auto run = std::ranges::upper_bound(unheld, piece.disk_block, {}, &extent::DiskRun::block);
      if (run != unheld.begin()) --run;
      for (; run != unheld.end() && run->block < piece.disk_block + piece.blocks; ++run) {
        const u64 from = std::max(run->block, piece.disk_block);
        const u64 to = std::min(run->block + run->blocks, piece.disk_block + piece.blocks);
        if (from < to)
          punch(wanted, block + (from - piece.disk_block), block + (to - piece.disk_block));
      }
    }
    LK_TRYV(put_pieces(mender, tree, number, old, wanted,
                       "a piece of a file over blocks that no extent holds is a hole now"));
  }
  return mender.steps() != before;
}

// --- items --------------------------------------------------------------------------------------

namespace {

// What is wrong with the size, and what it is; nothing: it is right, or nobody knows.
const char* right_size(const InodeRecords& inode, u64& size) {
  const Attributes& item = *inode.item;
  if (item.kind == FileKind::regular) {
    if (inode.data_end > (item.size + engine::kBlockBytes - 1) / engine::kBlockBytes &&
        inode.data_end <= kFileBlocksMax) {
      size = inode.data_end * engine::kBlockBytes;
      return "a file is as long as its map";
    }
  } else if (item.kind == FileKind::directory) {
    size = 0;
    if (item.size != 0) return "a directory has no size";
  } else if (item.kind == FileKind::symlink && inode.target_in_order && !inode.target.empty() &&
             inode.target.size() <= kStoredTargetMax && inode.target.size() != item.size) {
    const bool whole = item.encrypted ? !sealed_target(inode.target).empty()
                                      : inode.target.find('\0') == std::string::npos;
    size = inode.target.size();
    if (whole) return "a symlink is as long as its target";
  }
  return nullptr;
}

}  // namespace

Result<bool> mend_items(Mender& mender, const TreeRecords& tree) {
  const u64 before = mender.steps();
  for (const auto& [number, inode] : tree.inodes) {
    if (!inode.item) continue;
    Attributes item = *inode.item;
    const char* what = right_size(inode, item.size);
    if (what != nullptr)
      LK_TRYV(mender.mend(what, tree.where(number), [&](engine::Transaction& transaction) {
        return put_inode(transaction, {tree.id, number}, item);
      }));
    if (item.kind != FileKind::symlink)
      LK_TRYV(erase_some(mender, tree, number, inode.target_pieces,
                         "a target of something that is no symlink was taken out"));
  }
  return mender.steps() != before;
}

Result<bool> mend_xattrs(Mender& mender, const TreeRecords& tree) {
  const u64 before = mender.steps();
  for (const auto& [number, inode] : tree.inodes) {
    if (!inode.item) continue;
    const InodeId id{tree.id, number};
    LK_TRYV(erase_some(mender, tree, number, inode.bad_xattrs,
                       "records of an attribute that is not whole were taken out"));
    for (const engine::Key& first : inode.misplaced_xattrs) {
      const auto change = [&](engine::Transaction& transaction) -> Result<void> {
        std::vector<engine::Record> pieces;
        XattrReader reader(false);
        engine::Key last = first;
        last.offset |= kXattrSlotStep - 1;
        LK_TRYV(transaction.scan(tree.id, first, last, [&](const engine::Key& key, Bytes value) {
          (void)reader.add(key, value);
          pieces.push_back({key, {value.begin(), value.end()}});
          return true;
        }));
        (void)reader.end();
        const auto whole = reader.take();
        if (whole.size() != 1) return {};
        LK_TRY(const u64 offset, free_xattr_offset(transaction, id, whole[0].name));
        for (const engine::Record& piece : pieces) LK_TRYV(transaction.erase(tree.id, piece.key));
        for (const engine::Record& piece : pieces)
          LK_TRYV(transaction.put(tree.id,
                                  {number, kXattrType, offset + piece.key.offset - first.offset},
                                  piece.value));
        return {};
      };
      LK_TRYV(mender.mend("an attribute was put where it is looked for", tree.where(number), change,
                          kXattrRecords));
    }
  }
  return mender.steps() != before;
}

Result<bool> mend_count(Mender& mender, const TreeRecords& tree) {
  u64 inodes = 0;
  for (const auto& [number, inode] : tree.inodes) {
    if (inode.item_malformed) return false;  // nobody knows
    inodes += inode.item ? 1 : 0;
  }
  LK_TRY(const auto record, mender.view().get(tree.id, inode_count_key()));
  const u64 counted = tree.count.value_or(1);
  if (counted == inodes && record.has_value() == tree.count.has_value()) return false;
  const Le64 right(inodes);
  LK_TRYV(mender.mend(fmt::format("{} inodes were counted, there are {}", counted, inodes),
                      tree.where(kRootNumber), [&](engine::Transaction& transaction) {
                        return transaction.put(tree.id, inode_count_key(),
                                               std::as_bytes(std::span(&right, 1)));
                      }));
  return true;
}

}  // namespace latchkey::volume
