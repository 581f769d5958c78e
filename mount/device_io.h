#pragma once
// How libfuse reads and writes the kernel's device: as it does by itself, but the answer to INIT
// asks for what libfuse 3.14 does not know, FUSE_HANDLE_KILLPRIV_V2. With it the kernel remembers
// that a file has no capabilities, and asks not at each write; to take set-user-id bits away is
// ours (FileSystem::setattr). A kernel before 5.11 does not know it and goes on as it did.

#include "base/result.h"
#include "mount/fuse.h"

namespace latchkey::mount {

// Of a session that is mounted and has answered nothing.
Result<void> use_device_io(fuse_session* session);
// By who answers INIT, in its thread and before the answer goes out.
void expect_init_answer();

}  // namespace latchkey::mount
