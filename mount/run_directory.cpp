#include "mount/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

namespace latchkey::mount {

namespace {

constexpr const char* kSharedFolder = "/tmp";

bool is_owned_by(const std::string& path, u32 uid) {
  struct stat facts{};
  return ::lstat(path.c_str(), &facts) == 0 && S_ISDIR(facts.st_mode) && facts.st_uid == uid;
}

// Nobody but its owner can take a name away there.
bool keeps_names(const char* path) {
  struct stat facts{};
  if (::lstat(path, &facts) != 0 || !S_ISDIR(facts.st_mode) || facts.st_uid != 0) return false;
  return (facts.st_mode & S_ISVTX) != 0 || (facts.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

Result<UniqueFd> open_own(const std::string& path, u32 uid) {
  const mode_t mode = uid == 0 ? 0755 : 0700;
  if (::mkdir(path.c_str(), mode) != 0 && errno != EEXIST)
    return fail_os(Errc::permission, errno, "the run directory cannot be made");
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return fail_os(Errc::permission, errno, "the run directory cannot be opened");
  struct stat facts{};
  if (::fstat(fd.get(), &facts) != 0)
    return fail_os(Errc::io, errno, "the run directory cannot be looked at");
  if (facts.st_uid != uid || (facts.st_mode & (S_IWGRP | S_IWOTH)) != 0)
    return fail(Errc::permission, "the run directory belongs to somebody else");
  // A umask may have made it narrower.
  if ((facts.st_mode & 07777) != mode && ::fchmod(fd.get(), mode) != 0)
    return fail_os(Errc::permission, errno, "the run directory's mode cannot be set");
  while (::flock(fd.get(), LOCK_EX) != 0)
    if (errno != EINTR) return fail_os(Errc::io, errno, "the run directory cannot be locked");
  return fd;
}

}  // namespace

std::vector<std::string> run_directories(u32 uid) {
  if (uid == 0) return {kRootRunDirectory};
  std::vector<std::string> found;
  const char* runtime = ::secure_getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && runtime[0] == '/') found.push_back(std::string(runtime) + "/latchkey");
  const std::string usual = "/run/user/" + std::to_string(uid);
  if (is_owned_by(usual, uid)) found.push_back(usual + "/latchkey");
  if (keeps_names(kSharedFolder))
    found.push_back(std::string(kSharedFolder) + "/latchkey-" + std::to_string(uid));
  return found;
}

Result<RunDirectory> RunDirectory::open(u32 uid) {
  Error refused{Errc::unsupported, "there is no place for a run directory"};
  for (std::string& path : run_directories(uid)) {
    auto held = open_own(path, uid);
    if (held) return RunDirectory(std::move(*held), std::move(path));
    refused = held.error();
  }
  return std::unexpected(refused);
}

}  // namespace latchkey::mount
