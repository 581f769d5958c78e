#pragma once
// Back items: by which names of which directories an inode is reached. One for each link, written
// and erased in the transaction that does so with the name.

#include <optional>
#include <vector>

#include "engine/store.h"
#include "volume/format.h"

namespace latchkey::volume {

// Nothing: the name has no back item, which is damage that check finds.
Result<std::optional<engine::Key>> find_back(const engine::View& view, InodeId inode,
                                             const NameOfInode& name);
// Where a back item for a new name goes; in the place of `old`, which goes, if that has the same
// hash. no_space: the inode has too many names of one hash.
Result<engine::Key> place_of_back(const engine::View& view, InodeId inode, const NameOfInode& name,
                                  const std::optional<engine::Key>& old = std::nullopt);
// The directories that have names of the inode, each once.
Result<std::vector<InodeId>> parents_of(const engine::View& view, InodeId inode);
// The directory that holds this one; malformed if there is none.
Result<InodeId> parent_of(const engine::View& view, InodeId directory);

}  // namespace latchkey::volume
