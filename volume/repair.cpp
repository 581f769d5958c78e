// Repair: what the engine can derive, and promises of space. What else records of files say of each
// other is not repaired yet.

#include "engine/repair.h"

#include "volume/log_replay.h"
#include "volume/promises.h"
#include "volume/subvolumes.h"
#include "volume/volume.h"

namespace latchkey::volume {

Result<RepairFindings> repair_volume(engine::Device& device, Env& env) {
  engine::OpenOptions options;
  options.repair = true;
  options.runs_of = runs_of;
  options.replay = replay_record;
  LK_TRY(auto store, engine::Store::open(device, options, env));
  LK_TRY(engine::RepairResult repaired, engine::repair_store(*store));
  if (!repaired.sound) return RepairFindings{};
  LK_TRY(const auto promises, mend_promises(*store));
  repaired.mended.insert(repaired.mended.end(), promises.begin(), promises.end());
  return RepairFindings{std::move(repaired.mended)};
}

}  // namespace latchkey::volume
