#pragma once
// Where a daemon puts its control socket: a directory in which nobody but its owner makes names.
//
// Root's is /run/latchkey. An ordinary user's is `latchkey` in $XDG_RUNTIME_DIR or in
// /run/user/UID; where there is neither (su, cron, a container) it is /tmp/latchkey-UID, if /tmp is
// root's and sticky. Whoever makes that name first has only kept its owner from having a socket:
// the directory is looked at before it is used, and a client looks at who listens.

#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "mount/unique_fd.h"

namespace latchkey::mount {

inline constexpr const char* kRootRunDirectory = "/run/latchkey";

// Of daemons that run as `uid`, the first ones first.
std::vector<std::string> run_directories(u32 uid);

// The first of them that can be had, made if missing; held so that no other daemon looks for stale
// sockets meanwhile.
class RunDirectory {
 public:
  // permission: what is there is not only ours. unsupported: there is no place for one.
  static Result<RunDirectory> open(u32 uid);
  const std::string& path() const { return path_; }

 private:
  RunDirectory(UniqueFd held, std::string path) : held_(std::move(held)), path_(std::move(path)) {}
  UniqueFd held_;
  std::string path_;
};

}  // namespace latchkey::mount
