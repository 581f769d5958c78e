#pragma once
// How many blocks files have, of those that were asked about last: a map is read for that once
// until it changes, not at each look at the file.

#include <array>
#include <optional>
#include <unordered_map>

#include "base/mutex.h"
#include "volume/types.h"

namespace latchkey::volume {

// Thread-safe. A count is that of the committed or running tree, as the reader's view has it.
class BlockCounts {
 public:
  // `seen`: for remember(), asked for before the map is read.
  std::optional<u64> find(InodeId inode, u64& seen) LK_EXCLUDES(mutex_);
  // Not if the map has changed since. Forgets others where there are too many.
  void remember(InodeId inode, u64 blocks, u64 seen) LK_EXCLUDES(mutex_);
  // Inside of the transaction that changes the map: who reads it then reads it changed.
  void changed(InodeId inode) noexcept LK_EXCLUDES(mutex_);

 private:
  static constexpr u32 kShards = 16;
  static constexpr std::size_t kRowsMax = 256;  // of a shard
  struct Shard {
    u64 changes = 0;
    std::unordered_map<InodeId, u64> rows;
  };
  Shard& shard_of(InodeId inode) LK_REQUIRES(mutex_) {
    return shards_[std::hash<InodeId>{}(inode) % kShards];
  }

  Mutex mutex_;
  std::array<Shard, kShards> shards_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::volume
