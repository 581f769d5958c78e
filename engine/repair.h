#pragma once
// Offline repair of what the engine can derive: places of nodes from their twins, free space from
// what is reachable, superblock copies from the newest. What is lost with both its places stays so;
// nothing that could be read before is worse after, and a repair that was cut off is begun again.

#include "engine/store.h"

namespace latchkey::engine {

struct RepairResult {
  std::vector<Finding> mended;
  bool space_rebuilt = false;
};

// The store was opened with OpenOptions::repair and nobody else uses it. Errors: damaged (free
// space is wrong and cannot be derived, because a node that may refer to blocks is lost: nothing
// was changed); io, read_only.
Result<RepairResult> repair_store(Store& store);

}  // namespace latchkey::engine
