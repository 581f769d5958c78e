#pragma once
// The tree of subvolumes: what is known of each, apart from its own tree, which is shared with its
// snapshots (docs/disk_format.md).
//
// A subvolume has one name, an entry of kind subvolume in a directory of its parent. The same entry
// in a snapshot of the parent leads nowhere: there it stands for an empty directory.

#include <optional>
#include <string>
#include <vector>

#include "base/disk.h"
#include "engine/store.h"
#include "volume/types.h"

namespace latchkey::volume {

inline constexpr engine::TreeId kSubvolumeTree = 4;
inline constexpr u8 kSubvolumeType = 1;    // (subvolume, 1, 0): SubvolumeDisk and its stored name
inline constexpr u8 kSubvolumeIdType = 2;  // (0, 2, 0): Le64, no id from here on has been used

inline constexpr u32 kNewTreeRecords = 16;  // of a reservation that a new tree comes out of

inline constexpr u64 kSubvolumeReadOnly = 1;
inline constexpr u64 kSubvolumeRemoved = 2;  // has no name; its tree is being dropped

struct SubvolumeDisk {
  Le64 flags;
  Le64 parent;     // the subvolume that has its name; 0: it has none
  Le64 directory;  // in the parent
  Le64 origin;     // that it was a snapshot of; 0: none
  Le64 created_ns;
  std::array<u8, 16> reserved;
  u8 name_size;
};
LK_DISK_STRUCT(SubvolumeDisk, 57);

struct Subvolume {
  bool read_only = false;
  bool removed = false;
  InodeId directory;  // {}: none
  engine::TreeId origin = 0;
  i64 created_ns = 0;
  std::string stored;  // its name's bytes on disk
};
std::vector<std::byte> encode_subvolume(const Subvolume& subvolume);
// malformed for anything that encode_subvolume would not write.
Result<Subvolume> decode_subvolume(Bytes value);

inline engine::Key subvolume_key(engine::TreeId id) { return {id, kSubvolumeType, 0}; }
inline constexpr engine::Key kSubvolumeIdKey{0, kSubvolumeIdType, 0};

Result<void> put_subvolume(engine::Transaction& transaction, engine::TreeId id,
                           const Subvolume& subvolume);
// The next id, which nobody gets again; the counter is put in the transaction.
Result<engine::TreeId> take_subvolume_id(engine::Transaction& transaction);

// For the engine (OpenOptions::runs_of): the data blocks that a record of a subvolume refers to.
std::optional<engine::BlockRun> runs_of(const engine::Key& key, Bytes value);

}  // namespace latchkey::volume
