// How full the volume is: what statfs says.

#include "volume/state.h"

namespace latchkey::volume {

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
