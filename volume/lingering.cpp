// compat_fscrypt alone: what the kernel's cache of names does to a removal. There a name in use
// keeps the directories above it unlocked. And who leaves a key that is incompletely removed stays
// in memory, unlocked, though nobody has it open: until somebody asks for the removal again, or its
// last name goes.

#include "base/no_memory.h"
#include "volume/back_items.h"
#include "volume/state.h"

namespace latchkey::volume {

// That directory and those above it in its subvolume, as far as they are encrypted: in use, and
// unlocked if they can be.
std::vector<Volume::State::Use> Volume::State::pin_from(InodeId directory) {
  std::vector<Use> pinned;
  while (options.compat_fscrypt) {
    auto used = use(directory);
    if (!used || !(*used)->encrypted()) break;
    (void)unlock_inode(**used);
    pinned.push_back(std::move(*used));
    if (directory.number == kRootNumber) break;
    const auto above = parent_of(store->view(), directory);
    if (!above) break;
    directory = *above;
  }
  return pinned;
}

// Ends a handle's use of an inode, or of one above it.
Result<void> Volume::State::leave(const InodePtr& inode) {
  if (options.compat_fscrypt && key_is_leaving(*inode)) {
    const auto lingers = or_no_memory([&]() -> Result<bool> {
      Lock lock(table_mutex);
      return !inode->unlinked && lingering.try_emplace(inode->id(), inode).second;
    });
    if (lingers && *lingers) return {};
  }
  return end_use(inode);
}

// By a removal, which then finds them without a user and does with them as with all such.
void Volume::State::stop_lingering(const crypto::KeyId& id) {
  Lock lock(table_mutex);
  std::erase_if(lingering, [&](const auto& entry) LK_NO_ANALYSIS {
    if (entry.second->key_id() != id) return false;
    --entry.second->users;
    return true;
  });
}

// By a user of the inode.
void Volume::State::stop_lingering_if_unlinked(Inode& inode) {
  if (!options.compat_fscrypt || !inode.unlinked) return;
  Lock lock(table_mutex);
  if (lingering.erase(inode.id()) != 0) --inode.users;
}

}  // namespace latchkey::volume
