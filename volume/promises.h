#pragma once
// The part of a repair that counts promises of space.

#include <vector>

#include "engine/store.h"

namespace latchkey::volume {

// Makes each subvolume's tree count what its maps promise. The engine's part has made the trees and
// the superblock agree before. Leaves out what cannot be read.
Result<std::vector<engine::Finding>> mend_promises(engine::Store& store);

}  // namespace latchkey::volume
