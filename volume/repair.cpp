// Repair of a volume: first what the engine can derive, then what records say of each other.
//
// Records are believed only where all of them can be read: while a node is lost, a name that leads
// to nothing may lead into that node, and nothing here is done. Each round reads everything anew
// and makes the first kind of change that there is to make; when a round finds none the repair is
// finished, and so a second one finds nothing to do.

#include <algorithm>

#include "engine/repair.h"
#include "volume/log_replay.h"
#include "volume/promises.h"
#include "volume/repair_state.h"
#include "volume/volume.h"

namespace latchkey::volume {

namespace {

// Bounds a repair that would undo its own changes; more kinds of damage than this do not follow
// from each other.
constexpr u32 kRoundsMax = 200;
constexpr engine::Key kLastKey{~u64{0}, 255, ~u64{0}};

class VolumeRepair {
 public:
  VolumeRepair(engine::Store& store, Env& env, u32 commit_every,
               std::vector<engine::Finding>& mended)
      : store_(store), mender_(store, env, commit_every, mended) {}

  Result<void> run() {
    for (u32 round = 0; round < kRoundsMax; ++round) {
      const u64 before = mender_.steps();
      unheld_.clear();
      LK_TRYV(mend_references(mender_, unheld_));
      LK_TRY(const bool changed, mend_records());
      if (!changed && mender_.steps() == before) return {};
    }
    return {};
  }

 private:
  // To change a leaf that trees share is to count what its maps refer to: all of it must be there.
  Result<bool> may_change() {
    if (!store_.view().shares_nodes()) return true;
    bool outside = false;
    const u64 blocks = mender_.blocks();
    LK_TRYV(mender_.view().scan_distinct([&](engine::TreeId, const engine::Key& key, Bytes value) {
      const auto run = runs_of(key, value);
      outside = run && (run->block >= blocks || run->count > blocks - run->block);
      return !outside;
    }));
    return !outside && unheld_.empty();
  }

  Result<bool> mend_records() {
    LK_TRY(const bool may, may_change());
    if (!may) return false;
    std::vector<TreeRecords> trees;
    LK_TRY(const std::vector<engine::TreeId> ids, subvolumes());
    for (const engine::TreeId id : ids) {
      LK_TRY(TreeRecords tree, read_tree(mender_.view(), id, mender_.blocks()));
      LK_TRY(const bool changed, mend_tree(tree));
      if (changed) return true;
      trees.push_back(std::move(tree));
    }
    return mend_subvolumes(mender_, trees);
  }

  // Those with a tree that nobody drops: such a tree has lost records from its end.
  Result<std::vector<engine::TreeId>> subvolumes() {
    std::set<engine::TreeId> ids;
    LK_TRYV(mender_.view().scan(engine::kRootTree, {engine::kFirstSubvolume, 0, 0}, kLastKey,
                                [&](const engine::Key& key, Bytes) {
                                  ids.insert(key.object);
                                  return true;
                                }));
    LK_TRYV(mender_.view().scan(
        kSubvolumeTree, {1, 0, 0}, kLastKey, [&](const engine::Key& key, Bytes value) {
          const auto record = decode_subvolume(value);
          if (record && record->removed && key.object != kRootInode.subvolume)
            ids.erase(key.object);
          return true;
        }));
    return std::vector<engine::TreeId>(ids.begin(), ids.end());
  }

  Result<bool> mend_tree(const TreeRecords& tree) {
    using Step = Result<bool> (*)(Mender&, const TreeRecords&);
    static constexpr Step kMaps[] = {mend_strays, mend_maps};
    static constexpr Step kSteps[] = {mend_missing_inodes, mend_entries,     mend_back_items,
                                      mend_counter,        mend_unreachable, mend_links,
                                      mend_items,          mend_xattrs,      mend_count};
    for (const Step step : kMaps) {
      LK_TRY(const bool changed, step(mender_, tree));
      if (changed) return true;
    }
    // Before sizes, which follow from maps.
    LK_TRY(const bool punched, mend_unheld(mender_, tree, unheld_));
    if (punched) return true;
    for (const Step step : kSteps) {
      const bool of_names = step == mend_missing_inodes || step == mend_entries ||
                            step == mend_back_items || step == mend_links || step == mend_count;
      if (of_names && !tree.has_root()) continue;  // nobody knows what its names are
      LK_TRY(const bool changed, step(mender_, tree));
      if (changed) return true;
    }
    return false;
  }

  engine::Store& store_;
  Mender mender_;
  std::vector<extent::DiskRun> unheld_;
};

}  // namespace

Result<RepairFindings> repair_volume(engine::Device& device, Env& env,
                                     const RepairOptions& options) {
  engine::OpenOptions open_options;
  open_options.repair = true;
  open_options.runs_of = runs_of;
  open_options.is_name = is_name;
  open_options.replay = replay_record;
  LK_TRY(auto store, engine::Store::open(device, open_options, env));
  LK_TRY(engine::RepairResult repaired, engine::repair_store(*store));
  RepairFindings findings{std::move(repaired.mended)};
  if (!repaired.sound || repaired.log_waits) return findings;
  if (repaired.whole) {
    const auto mended =
        VolumeRepair(*store, env, std::max(1U, options.commit_every), findings.mended).run();
    // What there was room for is mended; the check tells what is left.
    if (!mended && mended.error().code != Errc::no_space) return std::unexpected(mended.error());
  }
  LK_TRY(const auto promises, mend_promises(*store));
  findings.mended.insert(findings.mended.end(), promises.begin(), promises.end());
  LK_TRYV(store->close());
  return findings;
}

}  // namespace latchkey::volume
