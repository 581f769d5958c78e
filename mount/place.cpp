#include "mount/place.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>

#include "mount/fusermount.h"

namespace latchkey::mount {
namespace {

// Of a kernel since 6.8: a number that no later mount has again. Older ones ignore the bit.
constexpr unsigned kUniqueMountNumber = 0x4000;
constexpr unsigned kMountNumber = 0x1000;

}  // namespace

std::optional<Place> Place::of(const std::string& directory) {
  struct statx seen{};
  const int flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT;
  if (::statx(AT_FDCWD, directory.c_str(), flags, kMountNumber | kUniqueMountNumber, &seen) != 0)
    return std::nullopt;
  Place place;
  place.directory_ = directory;
  place.device_ = ::gnu_dev_makedev(seen.stx_dev_major, seen.stx_dev_minor);
  if ((seen.stx_mask & (kMountNumber | kUniqueMountNumber)) != 0) place.mount_ = seen.stx_mnt_id;
  return place;
}

bool Place::is_there() const {
  const auto now = of(directory_);
  return now && now->device_ == device_ && now->mount_ == mount_;
}

bool Place::take_away() const {
  if (!is_there()) return false;
  if (::umount2(directory_.c_str(), UMOUNT_NOFOLLOW) == 0) return true;
  if (errno == EPERM)
    return unmount_by_fusermount(directory_, "-q") ||
           (is_there() && unmount_by_fusermount(directory_, "-qz"));
  return is_there() && ::umount2(directory_.c_str(), MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW) == 0;
}

}  // namespace latchkey::mount
