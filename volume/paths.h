#pragma once
// Paths on top of inode calls, for the command line and tests: "/", "/vault/x", slashes repeated or
// at the end are ignored, "." and ".." are not resolved (invalid).

#include <string>
#include <string_view>

#include "volume/volume.h"

namespace latchkey::volume {

struct ParentAndName {
  InodeId directory;
  std::string name;  // empty: the path is the root
};
Result<ParentAndName> resolve_parent(Volume& volume, std::string_view path);
Result<InodeId> resolve(Volume& volume, std::string_view path);
Result<HandleId> open_path(Volume& volume, Caller caller, std::string_view path, OpenFlags flags,
                           u32 mode = 0644);
Result<InodeId> make_directory(Volume& volume, Caller caller, std::string_view path,
                               u32 mode = 0755);
// rm -r: the name and everything below it.
Result<void> remove_tree(Volume& volume, std::string_view path);

}  // namespace latchkey::volume
