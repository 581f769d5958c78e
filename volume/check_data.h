#pragma once
// The second half of an offline check: what the files' maps refer to, against the extent table.

#include <functional>
#include <optional>
#include <vector>

#include "engine/store.h"
#include "volume/types.h"

namespace latchkey::volume {

// One piece of a file's map.
struct MapPiece {
  u64 disk_block = 0;
  u64 file_block = 0;
  InodeId inode;
  u32 blocks = 0;
  u32 held = 0;  // blocks that extent records hold: check_data() counts
};

// The key that an inode's data is encrypted under, nullopt for a clear one. Outer nullopt: there is
// no such inode, which is told elsewhere.
using PolicyOf = std::function<std::optional<std::optional<crypto::KeyId>>(InodeId)>;

// Finds blocks that no record holds, references that are not what the records count, contexts that
// are malformed or not the file's, and a key and tweak that stand over two blocks (K1). Pieces lie
// inside of the device.
Result<void> check_data(const engine::View& view, std::vector<MapPiece> pieces,
                        const PolicyOf& policy_of, std::vector<engine::Finding>& findings);

}  // namespace latchkey::volume
