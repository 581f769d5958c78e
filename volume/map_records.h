#pragma once
// Inode items and file maps in a subvolume's tree, read and changed through the engine's views and
// transactions.

#include <cstdint>
#include <span>
#include <vector>

#include "engine/store.h"
#include "extent/map.h"
#include "volume/format.h"

namespace latchkey::volume {

inline constexpr u64 kFileBytesMax = u64{1} << 62;
inline constexpr u64 kFileBlocksMax = kFileBytesMax / engine::kBlockBytes;

// Leaves that a change of so many map records of one file, which lie side by side, and of its inode
// item is reckoned to touch: a quarter of a node of 4 KiB holds 16 records, the ends may be split.
constexpr u32 leaves_of_neighbours(u64 records) { return static_cast<u32>(3 + records / 16); }

Result<void> put_inode(engine::Transaction& transaction, InodeId inode,
                       const Attributes& attributes);
// How many inodes the subvolume has, the root directory included; 1 where nobody counted yet.
Result<u64> inode_count(const engine::View& view, engine::TreeId subvolume);
// In the transaction that makes or reaps an inode. A subvolume without a record has its root alone.
Result<void> count_inodes(engine::Transaction& transaction, engine::TreeId subvolume, i64 change);
// From which number on the subvolume has no inode.
Result<u64> number_limit(const engine::View& view, engine::TreeId subvolume);
Result<void> put_number_limit(engine::Transaction& transaction, engine::TreeId subvolume,
                              u64 limit);
// not_found: there is no such inode.
Result<Attributes> get_inode(const engine::View& view, InodeId inode);

// A symlink's stored target, in pieces.
Result<void> put_target(engine::Transaction& transaction, InodeId inode, std::string_view stored);

// The entries that touch the range, in order; the first `count_max` of them.
Result<std::vector<extent::MapEntry>> map_entries(const engine::View& view, InodeId inode,
                                                  extent::FileRange range,
                                                  std::size_t count_max = SIZE_MAX);
// The last `count_max` entries that reach beyond `first_block`, the last one first.
Result<std::vector<extent::MapEntry>> last_entries(const engine::View& view, InodeId inode,
                                                   u64 first_block, std::size_t count_max);
// Blocks that the entry has or was promised, in a file of that subvolume.
inline u64 blocks_held(const extent::MapEntry& entry, engine::TreeId subvolume) {
  return entry.promised && entry.disk_block != subvolume ? 0 : entry.blocks;
}
// Applies an edit of the map, releases what it no longer refers to and ends its promises.
Result<void> apply(engine::Transaction& transaction, InodeId inode, const extent::MapEdit& edit);
// Enters `fresh` (ascending, apart from each other) in place of what lay there; `drawn`: the
// promises there that it drew, which it uses up. All look-ups come before the first change: when
// one fails nothing has changed.
Result<void> replace_entries(engine::Transaction& transaction, InodeId inode,
                             std::span<const extent::MapEntry> fresh, engine::DrawnPromise& drawn);

}  // namespace latchkey::volume
