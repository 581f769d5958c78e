// What is in files.

#include <linux/falloc.h>

#include <algorithm>

#include "mount/file_system.h"
#include "mount/replies.h"
#include "mount/reply_buffer.h"

namespace latchkey::mount {
namespace {

constexpr u64 kBlock = 4096;
constexpr u64 kCopiedAtOnce = kMiB;  // without a clone
constexpr u64 kClonedAtOnce = kGiB;
// A truncate or a copy that waited would keep the kernel from writing that file's pages back, and
// whoever takes them would wait for it.
constexpr volume::IoFlags kRefuse{.wait = false};

}  // namespace

void FileSystem::fallocate(fuse_req_t req, fuse_ino_t, int mode, off_t offset, off_t length,
                           fuse_file_info* info) {
  const volume::HandleId handle = OpenFiles::at(info->fh).handle;
  const auto from = static_cast<u64>(offset);
  const auto size = static_cast<u64>(length);
  const bool keep_size = (mode & FALLOC_FL_KEEP_SIZE) != 0;
  switch (mode & ~FALLOC_FL_KEEP_SIZE) {
    case 0:
      return reply_done(req, volume_.allocate(handle, from, size, keep_size));
    case FALLOC_FL_PUNCH_HOLE:
      return reply_done(req, volume_.punch(handle, from, size, kRefuse));
    case FALLOC_FL_ZERO_RANGE: {
      if (const auto punched = volume_.punch(handle, from, size, kRefuse); !punched)
        return reply_error(req, punched.error());
      return reply_done(req, volume_.allocate(handle, from, size, keep_size));
    }
    default:
      fuse_reply_err(req, EOPNOTSUPP);
  }
}

void FileSystem::lseek(fuse_req_t req, fuse_ino_t, off_t offset, int whence, fuse_file_info* info) {
  if (offset < 0) {
    fuse_reply_err(req, ENXIO);
    return;
  }
  const auto found = volume_.seek(OpenFiles::at(info->fh).handle, static_cast<u64>(offset),
                                  whence == SEEK_DATA ? volume::Seek::data : volume::Seek::hole);
  if (!found) return reply_error(req, found.error());
  if (!*found) {
    fuse_reply_err(req, ENXIO);
    return;
  }
  fuse_reply_lseek(req, static_cast<off_t>(**found));
}

// --- copies -------------------------------------------------------------------------------------

// What can be shared is cloned, in whole blocks; else a piece is copied. Less than was asked for is
// an answer, too: the caller comes again.
Result<u64> FileSystem::copy_range(OpenFile& from, u64 from_offset, OpenFile& to, u64 to_offset,
                                   u64 size) {
  LK_TRY(const volume::Stat source, volume_.stat(from.handle));
  if (from_offset >= source.size) return 0;
  size = std::min(size, source.size - from_offset);
  if (from_offset % kBlock == 0 && to_offset % kBlock == 0) {
    LK_TRY(const volume::Stat target, volume_.stat(to.handle));
    // The last block goes along where it is the last one of both.
    const bool to_the_end = from_offset + size == source.size && to_offset + size >= target.size;
    u64 cloned = std::min(size, kClonedAtOnce);
    if (cloned != size || !to_the_end) cloned -= cloned % kBlock;
    if (cloned != 0) {
      const auto done = volume_.clone_range(from.handle, from_offset, to.handle, to_offset, cloned);
      if (done) return cloned;
      const Errc code = done.error().code;
      const bool copy_instead =
          code == Errc::invalid || code == Errc::cross_key || code == Errc::unsupported;
      if (!copy_instead) return std::unexpected(done.error());
    }
  } else if (from_offset % kBlock == to_offset % kBlock) {
    size = std::min(size, kBlock - from_offset % kBlock);  // the rest can be cloned
  }
  const ReplyBuffer buffer(std::min(size, kCopiedAtOnce));
  LK_TRY(const u64 got, volume_.read(from.handle, from_offset, buffer.bytes(), kRefuse));
  return volume_.write(to.handle, to_offset, buffer.bytes().first(got), kRefuse);
}

void FileSystem::copy_file_range(fuse_req_t req, fuse_ino_t, off_t from_offset,
                                 fuse_file_info* from, fuse_ino_t, off_t to_offset,
                                 fuse_file_info* to, size_t size, int flags) {
  if (flags != 0) {
    fuse_reply_err(req, EINVAL);
    return;
  }
  const auto copied = copy_range(OpenFiles::at(from->fh), static_cast<u64>(from_offset),
                                 OpenFiles::at(to->fh), static_cast<u64>(to_offset), size);
  if (!copied) return reply_error(req, copied.error());
  fuse_reply_write(req, *copied);
}

}  // namespace latchkey::mount
