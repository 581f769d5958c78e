#include "engine/repair.h"

#include "engine/check_state.h"
#include "engine/scrub.h"

namespace latchkey::engine {

namespace {

// Each commit writes one set of superblocks and the map of its generation.
Result<void> commit_twice(StoreState& state) {
  for (int i = 0; i < 2; ++i)
    LK_TRYV(state.commit_through(state.running.load(std::memory_order_acquire), true));
  return {};
}

}  // namespace

Result<RepairResult> repair_store(Store& store) {
  StoreState& state = *store.state_;
  RepairResult repair;
  LK_TRY(const Checked checked, check_state(state, {}));
  repair.sound = checked.sound;
  if (!checked.sound) return repair;
  const bool rebuilds = checked.space_wrong && checked.whole;
  if (rebuilds) {
    Lock lock(state.space_mutex);
    state.space->rebuild(store.facts().generation, checked.reachable);
  }
  // Before anything is committed, which would end it.
  if (checked.whole) LK_TRYV(store.replay_log());
  if (rebuilds) {
    LK_TRYV(commit_twice(state));
    repair.space_rebuilt = true;
    repair.mended.push_back({"free space was written anew from what is in use", "bitmaps", true});
  }
  if (checked.promised_wrong && checked.whole) {
    {
      Lock lock(state.space_mutex);
      state.promised = checked.promised;
    }
    LK_TRYV(commit_twice(state));
    repair.mended.push_back({"promises were counted anew from the trees", "superblock", true});
  }
  if (state.fixed.log_damaged && checked.whole)
    repair.mended.push_back(
        {"the fsync log was damaged: what was synced after that block is lost", "fsync log", true});
  LK_TRY(ScrubResult scrubbed, scrub_store(store, {.data = false, .progress = {}}));
  for (Finding& finding : scrubbed.findings)
    if (finding.repairable) repair.mended.push_back(std::move(finding));
  return repair;
}

}  // namespace latchkey::engine
