#pragma once
// Who else reaches the same bytes: a loop device and the file behind it, a mount. From sysfs and
// procfs, so that no privilege is needed; what cannot be read counts as no relation.

#include <sys/stat.h>

#include <optional>
#include <string>

#include "base/types.h"

namespace latchkey::engine {

// True for /dev/loopN by its device number.
bool is_loop_device(const struct stat& device);

// "/dev/loopN" when an attached loop device is backed by this file.
std::optional<std::string> loop_device_of(const struct stat& file);

// The path of the file behind a loop device, as its own kernel entry names it; nothing if it is
// not attached or its file is deleted.
std::optional<std::string> backing_file_of(const struct stat& loop_device);

// True when a file system on this block device is mounted, as far as the process's own mount
// namespace tells.
bool is_mounted(const struct stat& block_device);

// A limit of a block device's request queue in bytes, such as "discard_max_bytes"; 0 if unknown.
u64 queue_limit(const struct stat& device, const char* name);

}  // namespace latchkey::engine
