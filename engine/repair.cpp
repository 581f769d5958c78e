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

// Whether they were wrong; the next commit writes them.
bool set_node_counts(StoreState& state, const Checked& checked, std::vector<Finding>& mended) {
  ExclusiveLock lock(state.forest_lock);
  Forest& forest = *state.forest;
  const u64 nodes = checked.result.nodes;
  if (forest.node_count() == nodes && forest.extent_node_count() == checked.extent_nodes)
    return false;
  forest.set_node_counts(nodes, checked.extent_nodes);
  state.node_count.store(nodes, std::memory_order_relaxed);
  state.note_forest();
  mended.push_back({"tree nodes were counted anew", "superblock", true});
  return true;
}

Result<void> put_count(Transaction& transaction, const NodeCount& count) {
  const NodeRecordDisk record{count.references};
  if (count.references >= 2)
    return transaction.put(kExtentTree, count.key, std::as_bytes(std::span(&record, 1)));
  const auto erased = transaction.erase(kExtentTree, count.key);
  return erased ? Result<void>() : std::unexpected(erased.error());
}

// The extent table's own nodes are never shared, so that it can be changed while counts are wrong.
Result<void> mend_counts(Transaction& transaction, const std::vector<NodeCount>& wrong,
                         std::vector<Finding>& mended) {
  for (const NodeCount& count : wrong) {
    LK_TRYV(put_count(transaction, count));
    mended.push_back({"references to a tree node were counted anew",
                      "device offset " + std::to_string(count.key.object * kBlockBytes), true});
  }
  return {};
}

}  // namespace

Result<RepairResult> repair_store(Store& store) {
  StoreState& state = *store.state_;
  RepairResult repair;
  LK_TRY(const Checked checked, check_state(state, {}));
  repair.sound = checked.sound;
  if (!checked.sound) return repair;
  repair.whole = checked.whole;
  const bool rebuilds = checked.space_wrong && checked.whole;
  if (rebuilds) {
    Lock lock(state.space_mutex);
    state.space->rebuild(store.facts().generation, checked.reachable);
  }
  const bool recount = checked.whole && set_node_counts(state, checked, repair.mended);
  // Counts first, or the replay would change nodes that it takes for one tree's own. Both in one
  // transaction: whatever is committed before the log is entered ends it.
  std::function<Result<void>(Transaction&)> counts;
  if (!checked.counts_wrong.empty())
    counts = [&](Transaction& transaction) {
      return mend_counts(transaction, checked.counts_wrong, repair.mended);
    };
  if (checked.whole)
    LK_TRYV(store.replay_log(counts));
  else
    repair.log_waits = !state.log_found.records.empty() || state.fixed.log_damaged;
  if (checked.whole && (recount || counts)) LK_TRYV(commit_twice(state));
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
  LK_TRY(ScrubResult scrubbed,
         scrub_store(store, {.data = false, .commits = !repair.log_waits, .progress = {}}));
  for (Finding& finding : scrubbed.findings)
    if (finding.repairable) repair.mended.push_back(std::move(finding));
  return repair;
}

}  // namespace latchkey::engine
