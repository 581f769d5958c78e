// What is said of files, and extended attributes.

#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "base/env.h"
#include "base/secret.h"
#include "mount/attributes.h"
#include "mount/file_system.h"
#include "mount/replies.h"

namespace latchkey::mount {
namespace {

// A time that 64 bits of nanoseconds do not hold is the nearest second that they do.
i64 to_ns(const timespec& time) {
  constexpr i64 kSecondsMax = 9'223'372'035;
  return std::clamp(i64{time.tv_sec}, -kSecondsMax, kSecondsMax) * 1'000'000'000 + time.tv_nsec;
}

volume::AttributeChange to_change(const struct stat& wanted, int what) {
  const auto now = static_cast<i64>(system_env().realtime_ns());
  volume::AttributeChange change;
  if ((what & FUSE_SET_ATTR_MODE) != 0) change.mode = wanted.st_mode & kPermissionBits;
  if ((what & FUSE_SET_ATTR_UID) != 0) change.uid = wanted.st_uid;
  if ((what & FUSE_SET_ATTR_GID) != 0) change.gid = wanted.st_gid;
  if ((what & FUSE_SET_ATTR_ATIME) != 0)
    change.atime_ns = (what & FUSE_SET_ATTR_ATIME_NOW) != 0 ? now : to_ns(wanted.st_atim);
  if ((what & FUSE_SET_ATTR_MTIME) != 0)
    change.mtime_ns = (what & FUSE_SET_ATTR_MTIME_NOW) != 0 ? now : to_ns(wanted.st_mtim);
  return change;
}

bool changes_anything(const volume::AttributeChange& change) {
  return change.mode || change.uid || change.gid || change.atime_ns || change.mtime_ns;
}

// The store could keep an access control list, but nobody here would obey it.
bool is_acl(std::string_view name) { return name.starts_with("system.posix_acl_"); }

}  // namespace

double FileSystem::attributes_kept_s(const volume::Stat& stat) {
  if (pages_.open_files().is_written_directly(stat.inode)) return 0;
  return mount::attributes_kept_s(stat);
}

void FileSystem::getattr(fuse_req_t req, fuse_ino_t node, fuse_file_info*) {
  const auto stat = volume_.stat(inode_of(node));
  if (!stat) return reply_error(req, stat.error());
  const auto described = to_stat(*stat);
  if (!described) return reply_error(req, described.error());
  fuse_reply_attr(req, &*described, attributes_kept_s(*stat));
}

Result<void> FileSystem::set_size(fuse_req_t req, fuse_ino_t node, u64 size,
                                  const fuse_file_info* info) {
  const volume::IoFlags refuse{.wait = false};  // as in ops_data.cpp
  if (info != nullptr) return volume_.truncate(OpenFiles::at(info->fh).handle, size, refuse);
  LK_TRY(const volume::HandleId handle,
         open_node(caller_of(req), node, {.read = false, .write = true}));
  const auto cut = volume_.truncate(handle, size, refuse);
  const auto closed = volume_.close_handle(handle);
  return cut ? closed : cut;
}

namespace {

bool is_in_group(fuse_req_t req, u32 gid) {
  if (fuse_req_ctx(req)->gid == gid) return true;
  std::array<gid_t, 64> few{};
  const int count = fuse_req_getgroups(req, few.size(), few.data());
  if (count <= 0) return false;
  std::vector<gid_t> all(few.begin(), few.end());
  all.resize(static_cast<std::size_t>(count));
  if (all.size() > few.size()) (void)fuse_req_getgroups(req, count, all.data());
  return std::ranges::find(all, gid) != all.end();
}

}  // namespace

// Without the group's x the bit of setgid means a lock, which the group may keep.
Result<void> FileSystem::drop_privileges(fuse_req_t req, fuse_ino_t node) {
  LK_TRY(const volume::Stat stat, volume_.stat(inode_of(node)));
  if (stat.kind != volume::FileKind::regular || (stat.mode & (S_ISUID | S_ISGID)) == 0) return {};
  const bool is_lock = (stat.mode & S_IXGRP) == 0 && is_in_group(req, stat.gid);
  const u32 set_gid = is_lock ? 0 : S_ISGID;
  const u32 left = stat.mode & ~(S_ISUID | set_gid);
  if (left == stat.mode) return {};
  return on_inode(node, [&](auto inode) { return volume_.set_attributes(inode, {.mode = left}); });
}

// A request that wants nothing comes before what takes privileges away, a write or a new owner
// (device_io.h); the kernel has no other setattr of this inode under way.
void FileSystem::setattr(fuse_req_t req, fuse_ino_t node, struct stat* wanted, int what,
                         fuse_file_info* info) {
  const bool cut_by_user = (what & FUSE_SET_ATTR_SIZE) != 0 && fuse_req_ctx(req)->uid != 0;
  if (what == 0 || cut_by_user) {
    if (const auto dropped = drop_privileges(req, node); !dropped)
      return reply_error(req, dropped.error());
  }
  if ((what & FUSE_SET_ATTR_SIZE) != 0) {
    const auto cut = set_size(req, node, static_cast<u64>(wanted->st_size), info);
    if (!cut) return reply_error(req, cut.error());
  }
  if (const auto change = to_change(*wanted, what); changes_anything(change)) {
    const auto changed =
        on_inode(node, [&](auto inode) { return volume_.set_attributes(inode, change); });
    if (!changed) return reply_error(req, changed.error());
  }
  getattr(req, node, info);
}

void FileSystem::statfs(fuse_req_t req, fuse_ino_t) {
  const auto space = volume_.space();
  if (!space) return reply_error(req, space.error());
  struct statvfs out{};
  out.f_bsize = 4096;
  out.f_frsize = 4096;
  out.f_blocks = space->blocks_total;
  out.f_bfree = space->blocks_free;
  out.f_bavail = space->blocks_available;
  // There is no table of inodes: as many as blocks can be written.
  out.f_files = space->inodes + space->blocks_available;
  out.f_ffree = space->blocks_available;
  out.f_favail = space->blocks_available;
  out.f_namemax = 255;
  fuse_reply_statfs(req, &out);
}

// --- extended attributes ------------------------------------------------------------------------

void FileSystem::setxattr(fuse_req_t req, fuse_ino_t node, const char* name, const char* value,
                          size_t size, int flags) {
  if (is_acl(name)) {
    fuse_reply_err(req, EOPNOTSUPP);
    return;
  }
  const volume::XattrFlags how{.create = (flags & XATTR_CREATE) != 0,
                               .replace = (flags & XATTR_REPLACE) != 0};
  reply_done(req, on_inode(node, [&](auto inode) {
               return volume_.set_xattr(inode, name, std::as_bytes(std::span(value, size)), how);
             }));
}

namespace {

// A size of 0 asks how long the answer is.
void reply_sized(fuse_req_t req, std::string_view answer, size_t size) {
  if (size == 0)
    fuse_reply_xattr(req, answer.size());
  else if (answer.size() > size)
    fuse_reply_err(req, ERANGE);
  else
    fuse_reply_buf(req, answer.data(), answer.size());
}

}  // namespace

void FileSystem::getxattr(fuse_req_t req, fuse_ino_t node, const char* name, size_t size) {
  if (node == kRootNode && std::string_view(name) == kDaemonAttribute)
    return reply_sized(req, std::to_string(::getpid()), size);
  if (is_acl(name)) {
    fuse_reply_err(req, EOPNOTSUPP);
    return;
  }
  auto value = on_inode(node, [&](auto inode) { return volume_.get_xattr(inode, name); });
  if (!value) return reply_error(req, value.error());
  reply_sized(req, {reinterpret_cast<const char*>(value->data()), value->size()}, size);
  wipe(*value);
}

void FileSystem::listxattr(fuse_req_t req, fuse_ino_t node, size_t size) {
  const auto names = on_inode(node, [&](auto inode) { return volume_.list_xattrs(inode); });
  if (!names) return reply_error(req, names.error());
  std::string list;
  for (const std::string& name : *names) {
    if (is_acl(name)) continue;
    if (name.starts_with("trusted.") && fuse_req_ctx(req)->uid != 0) continue;
    list.append(name.c_str(), name.size() + 1);
  }
  reply_sized(req, list, size);
}

void FileSystem::removexattr(fuse_req_t req, fuse_ino_t node, const char* name) {
  if (is_acl(name)) {
    fuse_reply_err(req, EOPNOTSUPP);
    return;
  }
  reply_done(req, on_inode(node, [&](auto inode) { return volume_.remove_xattr(inode, name); }));
}

}  // namespace latchkey::mount
