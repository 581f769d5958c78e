#pragma once
// The words behind `mount -o`: mount(8)'s, mount.fuse(8)'s and our own.

#include <string>

#include "base/result.h"
#include "mount/mount.h"
#include "volume/types.h"

namespace latchkey::cli {

// Comma-separated. The word that is not understood is left in `unknown`: invalid.
Result<void> parse_mount_options(const std::string& words, volume::VolumeOptions& volume,
                                 mount::MountOptions& mount, std::string& unknown);

}  // namespace latchkey::cli
