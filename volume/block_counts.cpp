#include "volume/block_counts.h"

namespace latchkey::volume {

std::optional<u64> BlockCounts::find(InodeId inode, u64& seen) {
  Lock lock(mutex_);
  const Shard& shard = shard_of(inode);
  seen = shard.changes;
  const auto row = shard.rows.find(inode);
  if (row == shard.rows.end()) return std::nullopt;
  return row->second;
}

void BlockCounts::remember(InodeId inode, u64 blocks, u64 seen) {
  Lock lock(mutex_);
  Shard& shard = shard_of(inode);
  if (shard.changes != seen) return;
  if (shard.rows.size() >= kRowsMax) shard.rows.clear();
  shard.rows.insert_or_assign(inode, blocks);
}

void BlockCounts::changed(InodeId inode) noexcept {
  Lock lock(mutex_);
  Shard& shard = shard_of(inode);
  ++shard.changes;
  shard.rows.erase(inode);
}

}  // namespace latchkey::volume
