#pragma once
// Loop devices that detach themselves with their last user, and mounts that only this process sees:
// nothing outlives it. Needs root.

#include <string>

#include "base/result.h"
#include "engine/fd.h"

namespace latchkey::tests {

struct LoopDevice {
  engine::Fd device;  // open
  std::string path;
};
// A device with `image` behind it. `flags`: LO_FLAGS_..., autoclear is always one. `sector_bytes`:
// 0 for the kernel's choice. unavailable: none can be had; os_errno says why.
Result<LoopDevice> attach_loop(const engine::Fd& image, u32 flags = 0, u32 sector_bytes = 0);

// From now on what this process mounts is seen by nobody else; false: it has no right to that.
bool own_mounts();

}  // namespace latchkey::tests
