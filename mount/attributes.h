#pragma once
// What the library says of an inode, in the kernel's words, and how long the kernel may believe it.
//
// Only the kernel's own requests change names and attributes, so it may keep them; but names in
// encrypted directories and the targets of encrypted symlinks change when a key comes or goes.
// Nothing is kept of those. What an inode says of itself leaves open in which directory its name
// is; of an encrypted directory that is asked, since what it holds is found by its name each time.

#include "base/result.h"
#include "mount/fuse.h"
#include "volume/types.h"

namespace latchkey::mount {

inline constexpr double kKeptLong = 86400;  // seconds

// too_big: see node_ids.h.
Result<struct stat> to_stat(const volume::Stat& stat);
double attributes_kept_s(const volume::Stat& stat);
Result<fuse_entry_param> to_entry(const volume::Stat& stat);
mode_t type_bits(volume::FileKind kind);  // S_IFREG, ...

}  // namespace latchkey::mount
