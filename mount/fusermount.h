#pragma once
// What fusermount3 (set-user-id root) does for who is not root: it mounts and unmounts. libfuse
// would start it, too, but let it say on standard error why it refuses.

#include <string>

#include "base/result.h"
#include "mount/unique_fd.h"

namespace latchkey::mount {

// The descriptor of the connection; `said` is why it refuses, in its own words or ours. permission:
// it does. unsupported: there is no fusermount3.
Result<UniqueFd> mount_by_fusermount(const std::string& directory, const std::string& options,
                                     std::string& said);
// With its flags for that: "-q", "-qz". False: it does not.
bool unmount_by_fusermount(const std::string& directory, const std::string& flags);

}  // namespace latchkey::mount
