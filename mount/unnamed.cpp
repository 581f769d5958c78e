#include "mount/unnamed.h"

#include <linux/fuse.h>
#include <sys/uio.h>

#include <array>
#include <cmath>
#include <cstring>
#include <new>

#include "base/result.h"

namespace latchkey::mount {
namespace {

template <class T>
T load(Bytes bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

void set_timeout(double seconds, u64& whole, u32& nanoseconds) {
  whole = static_cast<u64>(seconds);
  nanoseconds = static_cast<u32>((seconds - std::floor(seconds)) * 1e9);
}

fuse_attr to_attr(const struct stat& stat) {
  fuse_attr attr{};
  attr.ino = stat.st_ino;
  attr.size = static_cast<u64>(stat.st_size);
  attr.blocks = static_cast<u64>(stat.st_blocks);
  attr.atime = static_cast<u64>(stat.st_atim.tv_sec);
  attr.atimensec = static_cast<u32>(stat.st_atim.tv_nsec);
  attr.mtime = static_cast<u64>(stat.st_mtim.tv_sec);
  attr.mtimensec = static_cast<u32>(stat.st_mtim.tv_nsec);
  attr.ctime = static_cast<u64>(stat.st_ctim.tv_sec);
  attr.ctimensec = static_cast<u32>(stat.st_ctim.tv_nsec);
  attr.mode = stat.st_mode;
  attr.nlink = static_cast<u32>(stat.st_nlink);
  attr.uid = stat.st_uid;
  attr.gid = stat.st_gid;
  attr.blksize = static_cast<u32>(stat.st_blksize);
  return attr;
}

struct Reply {
  fuse_out_header header;
  fuse_entry_out entry;
  fuse_open_out open;
};
static_assert(sizeof(Reply) ==
              sizeof(fuse_out_header) + sizeof(fuse_entry_out) + sizeof(fuse_open_out));

Reply to_reply(const FileSystem::Unnamed& made) {
  Reply reply{};
  reply.entry.nodeid = made.entry.ino;
  set_timeout(made.entry.entry_timeout, reply.entry.entry_valid, reply.entry.entry_valid_nsec);
  set_timeout(made.entry.attr_timeout, reply.entry.attr_valid, reply.entry.attr_valid_nsec);
  reply.entry.attr = to_attr(made.entry.attr);
  reply.open.fh = made.file;
  reply.open.open_flags = FOPEN_KEEP_CACHE;
  return reply;
}

}  // namespace

bool answer_unnamed(FileSystem& file_system, int fuse_fd, Bytes request) {
  if (request.size() < sizeof(fuse_in_header)) return false;
  const auto in = load<fuse_in_header>(request, 0);
  if (in.opcode != FUSE_TMPFILE) return false;

  int refused = EINVAL;
  Reply reply{};
  FileSystem::Unnamed unwanted;
  if (request.size() >= sizeof(fuse_in_header) + sizeof(fuse_create_in)) {
    const auto wanted = load<fuse_create_in>(request, sizeof(fuse_in_header));
    try {
      const auto made =
          file_system.make_unnamed({.uid = in.uid, .gid = in.gid, .pid = in.pid}, in.nodeid,
                                   wanted.mode, static_cast<int>(wanted.flags));
      refused = made ? 0 : posix_errno(made.error());
      if (made) {
        reply = to_reply(*made);
        unwanted = *made;
      }
    } catch (const std::bad_alloc&) {
      refused = ENOMEM;
    }
  }
  const std::size_t size = refused != 0 ? sizeof reply.header : sizeof reply;
  reply.header.len = static_cast<u32>(size);
  reply.header.error = -refused;
  reply.header.unique = in.unique;
  iovec piece{.iov_base = &reply, .iov_len = size};
  // ENOENT: the call was interrupted, so nobody will release the file.
  if (::writev(fuse_fd, &piece, 1) < 0 && refused == 0) file_system.forget_unnamed(unwanted);
  return true;
}

}  // namespace latchkey::mount
