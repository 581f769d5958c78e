#pragma once
// FUSE_TMPFILE, which libfuse 3.14 would refuse as unknown: read from the request's bytes and
// answered on the descriptor, by the kernel's own structs.

#include "base/types.h"
#include "mount/file_system.h"

namespace latchkey::mount {

// False: `request` is another one, and nothing was done.
bool answer_unnamed(FileSystem& file_system, int fuse_fd, Bytes request);

}  // namespace latchkey::mount
