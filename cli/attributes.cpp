#include "cli/attributes.h"

#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "cli/report.h"
#include "volume/xattr_records.h"

namespace latchkey::cli {

namespace {

constexpr const char* kAttributes = "extended attributes cannot be read";

bool as_root() { return ::geteuid() == 0; }

bool is_kept(const std::string& name) {
  return volume::check_xattr_name(name).has_value() && (as_root() || volume::is_user_xattr(name));
}

// The host's side: a descriptor, or a path whose last word is not followed.
class HostFile {
 public:
  HostFile(const std::string& path, int fd) : path_(path.c_str()), fd_(fd) {}

  // None on a file system that knows none.
  Result<std::vector<std::string>> names() const {
    LK_TRY(const auto list, grow([&](char* into, std::size_t size) {
             return fd_ >= 0 ? ::flistxattr(fd_, into, size) : ::llistxattr(path_, into, size);
           }));
    std::vector<std::string> names;
    for (auto at = list.begin(); at != list.end();) {
      const auto end = std::find(at, list.end(), '\0');
      if (std::string name(at, end); is_kept(name)) names.push_back(std::move(name));
      at = end == list.end() ? end : end + 1;
    }
    return names;
  }

  Result<std::vector<char>> value(const std::string& name) const {
    return grow([&](char* into, std::size_t size) {
      return fd_ >= 0 ? ::fgetxattr(fd_, name.c_str(), into, size)
                      : ::lgetxattr(path_, name.c_str(), into, size);
    });
  }

  bool set(const std::string& name, Bytes value) const {
    return (fd_ >= 0 ? ::fsetxattr(fd_, name.c_str(), value.data(), value.size(), 0)
                     : ::lsetxattr(path_, name.c_str(), value.data(), value.size(), 0)) == 0;
  }
  bool remove(const std::string& name) const {
    return (fd_ >= 0 ? ::fremovexattr(fd_, name.c_str()) : ::lremovexattr(path_, name.c_str())) ==
           0;
  }

  bool set_owner(u32 uid, u32 gid) const {
    return (fd_ >= 0 ? ::fchown(fd_, uid, gid) : ::lchown(path_, uid, gid)) == 0;
  }
  bool set_mode(u32 mode) const {
    return (fd_ >= 0 ? ::fchmod(fd_, mode) : ::chmod(path_, mode)) == 0;
  }
  bool set_times(const timespec (&times)[2]) const {
    return (fd_ >= 0 ? ::futimens(fd_, times)
                     : ::utimensat(AT_FDCWD, path_, times, AT_SYMLINK_NOFOLLOW)) == 0;
  }

 private:
  // `call` is asked how much there is until it fits: somebody may change it in between.
  static Result<std::vector<char>> grow(const auto& call) {
    std::vector<char> bytes;
    for (;;) {
      const ssize_t wanted = call(nullptr, 0);
      if (wanted < 0 && (errno == ENOTSUP || errno == ENODATA)) return std::vector<char>{};
      if (wanted < 0) return std::unexpected(host_error(kAttributes));
      bytes.resize(static_cast<std::size_t>(wanted) + 1);
      const ssize_t got = call(bytes.data(), bytes.size());
      if (got < 0 && errno == ERANGE) continue;
      if (got < 0) return std::unexpected(host_error(kAttributes));
      bytes.resize(static_cast<std::size_t>(got));
      return bytes;
    }
  }

  const char* path_;
  const int fd_;
};

i64 to_ns(const timespec& time) { return i64{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

// Rounded down, as a time before 1970 has to be.
timespec to_timespec(i64 ns) {
  constexpr i64 kSecond = 1'000'000'000;
  const i64 rest = (ns % kSecond + kSecond) % kSecond;
  return {(ns - rest) / kSecond, rest};
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

}  // namespace

Result<void> put_attributes(volume::Volume& volume, volume::InodeId inode,
                            const std::string& source, const struct stat& info) {
  const HostFile host(source, -1);
  LK_TRY(const auto names, host.names());
  LK_TRY(const auto before, volume.list_xattrs(inode));
  for (const std::string& name : before)
    if (is_kept(name) && !contains(names, name)) LK_TRYV(volume.remove_xattr(inode, name));
  for (const std::string& name : names) {
    LK_TRY(const auto value, host.value(name));
    LK_TRYV(volume.set_xattr(inode, name, std::as_bytes(std::span(value))));
  }
  volume::AttributeChange change;
  change.atime_ns = to_ns(info.st_atim);
  change.mtime_ns = to_ns(info.st_mtim);
  if (!S_ISLNK(info.st_mode)) change.mode = info.st_mode & 07777;
  if (as_root()) {
    change.uid = info.st_uid;
    change.gid = info.st_gid;
  }
  return volume.set_attributes(inode, change);
}

Result<void> get_attributes(volume::Volume& volume, const volume::Stat& stat,
                            const std::string& target, int fd, std::vector<LeftAttribute>& left) {
  const HostFile host(target, fd);
  // A new owner takes setuid and security.capability away, so it comes first.
  if (as_root() && !host.set_owner(stat.uid, stat.gid))
    return std::unexpected(host_error("the owner cannot be set"));
  if (stat.kind != volume::FileKind::symlink && !host.set_mode(stat.mode))
    return std::unexpected(host_error("mode and times cannot be set"));
  LK_TRY(const auto names, volume.list_xattrs(stat.inode));
  LK_TRY(const auto before, host.names());
  const auto tell = [&](bool taken, const std::string& name) {
    if (!taken) left.push_back({target, name, std::strerror(errno)});
  };
  // What the host's own policies put there stays (security.selinux, inherited ACLs).
  for (const std::string& name : before)
    if (volume::is_user_xattr(name) && !contains(names, name)) tell(host.remove(name), name);
  for (const std::string& name : names) {
    if (!is_kept(name)) continue;
    LK_TRY(const auto value, volume.get_xattr(stat.inode, name));
    tell(host.set(name, value), name);
  }
  const timespec times[2] = {to_timespec(stat.atime_ns), to_timespec(stat.mtime_ns)};
  if (!host.set_times(times)) return std::unexpected(host_error("mode and times cannot be set"));
  return {};
}

}  // namespace latchkey::cli
