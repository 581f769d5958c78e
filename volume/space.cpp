// How full the volume is: what statfs says.

#include "volume/state.h"

namespace latchkey::volume {

Result<engine::Reservation> Volume::State::reserve(const engine::SpaceNeed& need,
                                                   bool use_reserve) {
  auto space = store->reserve(need, use_reserve);
  if (space || !made_room(space.error())) return space;
  return store->reserve(need, use_reserve);
}

// What dirty pages have reserved is the most that they may need, above all where trees share nodes.
// Flushed they have what they do need, and what is left over may be enough.
bool Volume::State::made_room(const Error& error) {
  if (error.code != Errc::no_space) return false;
  const std::vector<InodePtr> dirty = dirty_inodes();
  const Flushed flushed = flush_many(dirty, true);
  for (const InodePtr& inode : dirty) forget_if_idle(inode);
  return flushed.pages != 0;
}

Result<VolumeSpace> Volume::space() {
  State& state = *state_;
  const engine::SpaceFacts facts = state.store->space();
  VolumeSpace space;
  space.blocks_total = facts.blocks_total;
  space.blocks_free = facts.blocks_total - facts.blocks_used;
  space.blocks_available = facts.blocks_available;
  const std::vector<engine::TreeId> subvolumes = state.all_subvolumes();
  const engine::View view = state.store->view();
  for (const engine::TreeId subvolume : subvolumes) {
    LK_TRY(const bool there, view.tree_exists(subvolume));
    if (!there) continue;  // removed this moment
    LK_TRY(const u64 inodes, inode_count(view, subvolume));
    space.inodes += inodes;
  }
  return space;
}

}  // namespace latchkey::volume
