#pragma once
// Offline repair of what the engine can derive: places of nodes from their twins, free space and
// counts of references to nodes from what is reachable, the sum of promises from the trees,
// superblock copies from the newest. What is lost with both its places stays so, and with it free
// space, since nobody knows what it referred to. Where a block is referred to twice nothing is
// changed at all. Nothing that could be read before is worse after, and a repair that was cut off
// is begun again.

#include "engine/store.h"

namespace latchkey::engine {

struct RepairResult {
  std::vector<Finding> mended;
  bool space_rebuilt = false;
  bool sound = true;   // false: nothing may be changed
  bool whole = false;  // every record can be read, and changes of records make nothing worse
  // Not whole, and the fsync log could not be entered: a commit would end it, so nothing is
  // committed, and it waits for the next open.
  bool log_waits = false;
};

// The store was opened with OpenOptions::repair and nobody else uses it. What it could not mend a
// check tells. Errors: io, no_memory.
Result<RepairResult> repair_store(Store& store);

}  // namespace latchkey::engine
