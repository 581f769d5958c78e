#pragma once
// Inode items and file maps in a subvolume's tree, read and changed through the engine's views and
// transactions.

#include <span>
#include <vector>

#include "engine/store.h"
#include "extent/map.h"
#include "volume/format.h"

namespace latchkey::volume {

inline constexpr u64 kFileBytesMax = u64{1} << 62;
inline constexpr u64 kFileBlocksMax = kFileBytesMax / engine::kBlockBytes;

Result<void> put_inode(engine::Transaction& transaction, InodeId inode,
                       const Attributes& attributes);
// not_found: there is no such inode.
// How many inodes the subvolume has, the root directory included; 1 where nobody counted yet.
Result<u64> inode_count(const engine::View& view, engine::TreeId subvolume);
Result<Attributes> get_inode(const engine::View& view, InodeId inode);

// A symlink's stored target, in pieces.
Result<void> put_target(engine::Transaction& transaction, InodeId inode, std::string_view stored);

// The entries that touch the range, in order.
Result<std::vector<extent::MapEntry>> map_entries(const engine::View& view, InodeId inode,
                                                  extent::FileRange range);
// The last `count_max` entries that reach beyond `first_block`, the last one first.
Result<std::vector<extent::MapEntry>> last_entries(const engine::View& view, InodeId inode,
                                                   u64 first_block, std::size_t count_max);
// Applies an edit of the map and releases what it no longer refers to.
Result<void> apply(engine::Transaction& transaction, InodeId inode, const extent::MapEdit& edit);
// Enters `fresh` (ascending, apart from each other) in place of what lay there. All look-ups come
// before the first change: when one fails nothing has changed.
Result<void> replace_entries(engine::Transaction& transaction, InodeId inode,
                             std::span<const extent::MapEntry> fresh);

}  // namespace latchkey::volume
