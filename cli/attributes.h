#pragma once
// What put -r and get -r keep beside data, as rsync -aX does: mode and times; as root the owner,
// too; user.* attributes, as root those of all namespaces that the store keeps. What the target
// has of those and the source has not goes.

#include <sys/stat.h>

#include <string>
#include <vector>

#include "volume/volume.h"

namespace latchkey::cli {

// One that the host did not take: told, and no failure.
struct LeftAttribute {
  std::string path;
  std::string name;
  std::string why;
};

// From the host's `source`, which is not followed, to the store. An error with os_errno is the
// host's.
Result<void> put_attributes(volume::Volume& volume, volume::InodeId inode,
                            const std::string& source, const struct stat& info);

// From the store to the host's `target`: through `fd` if there is one, else by a path that is not
// followed. The volume's errors, and those of the host about mode, owner and times.
Result<void> get_attributes(volume::Volume& volume, const volume::Stat& stat,
                            const std::string& target, int fd, std::vector<LeftAttribute>& left);

}  // namespace latchkey::cli
