#include "mount/attributes.h"

#include "mount/node_ids.h"

namespace latchkey::mount {
namespace {

constexpr double kBlocksKept = 1;  // st_blocks moves when dirty pages go down, unseen by the kernel

timespec to_timespec(i64 ns) {
  i64 seconds = ns / 1'000'000'000;
  i64 rest = ns % 1'000'000'000;
  if (rest < 0) {
    --seconds;
    rest += 1'000'000'000;
  }
  return {.tv_sec = seconds, .tv_nsec = rest};
}

// A special file does not say whether its directory is encrypted, so its name is not kept either.
double name_kept_s(const volume::Stat& stat) {
  return stat.key_id || volume::is_special(stat.kind) ? 0 : kKeptLong;
}

}  // namespace

mode_t type_bits(volume::FileKind kind) {
  switch (kind) {
    case volume::FileKind::regular:
      return S_IFREG;
    case volume::FileKind::directory:
      return S_IFDIR;
    case volume::FileKind::symlink:
      return S_IFLNK;
    case volume::FileKind::fifo:
      return S_IFIFO;
    case volume::FileKind::socket:
      return S_IFSOCK;
    case volume::FileKind::char_device:
      return S_IFCHR;
    case volume::FileKind::block_device:
      return S_IFBLK;
    case volume::FileKind::subvolume:
      return S_IFDIR;
  }
  return S_IFREG;
}

Result<struct stat> to_stat(const volume::Stat& stat) {
  const auto number = number_of(stat.inode);
  if (!number) return fail(Errc::too_big, "an inode's number is too large for the kernel");
  struct stat out{};
  out.st_ino = *number;
  out.st_mode = type_bits(stat.kind) | stat.mode;
  out.st_nlink = stat.links;
  out.st_uid = stat.uid;
  out.st_gid = stat.gid;
  out.st_rdev = stat.device;
  out.st_size = static_cast<off_t>(stat.size);
  out.st_blksize = 4096;
  out.st_blocks = static_cast<blkcnt_t>(stat.blocks * (4096 / 512));
  out.st_atim = to_timespec(stat.atime_ns);
  out.st_mtim = to_timespec(stat.mtime_ns);
  out.st_ctim = to_timespec(stat.ctime_ns);
  return out;
}

double attributes_kept_s(const volume::Stat& stat) {
  if (stat.kind == volume::FileKind::symlink && stat.key_id) return 0;
  return stat.kind == volume::FileKind::regular ? kBlocksKept : kKeptLong;
}

Result<fuse_entry_param> to_entry(const volume::Stat& stat) {
  fuse_entry_param entry{};
  LK_TRY(entry.attr, to_stat(stat));
  entry.ino = *node_of(stat.inode);
  entry.attr_timeout = attributes_kept_s(stat);
  entry.entry_timeout = name_kept_s(stat);
  return entry;
}

}  // namespace latchkey::mount
