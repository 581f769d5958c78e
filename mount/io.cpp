// Reads and writes: done, refused, or parked until their key is worth another try.

#include <fcntl.h>

#include <cerrno>
#include <new>
#include <utility>

#include "mount/file_system.h"
#include "mount/replies.h"
#include "mount/reply_buffer.h"

namespace latchkey::mount {

namespace {

// A fault of a mapping comes with its file's O_DIRECT, too, but has a page locked; only what is
// done for a system call has an owner of locks.
bool is_direct(const fuse_file_info& info) {
  return (info.flags & O_DIRECT) != 0 && info.lock_owner != 0;
}

}  // namespace

void FileSystem::read(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                      fuse_file_info* info) {
  Io io;
  io.req = req;
  io.node = node;
  io.file = &OpenFiles::at(info->fh);
  io.direct = is_direct(*info);
  io.offset = static_cast<u64>(offset);
  io.size = size;
  if (!io.direct) io.file->shared->has_pages = true;
  perform(std::move(io));
}

void FileSystem::write(fuse_req_t req, fuse_ino_t node, const char* data, size_t size, off_t offset,
                       fuse_file_info* info) {
  Io io;
  io.req = req;
  io.node = node;
  io.file = &OpenFiles::at(info->fh);
  io.write = true;
  io.written_back = info->writepage != 0;
  io.direct = is_direct(*info);
  io.synced = io.direct && (info->flags & O_DSYNC) != 0;
  io.offset = static_cast<u64>(offset);
  io.size = size;
  (io.direct ? io.file->shared->written_directly : io.file->shared->has_pages) = true;
  io.data = std::as_bytes(std::span(data, size));
  perform(std::move(io));
}

// What a refused write brought stays in the kernel's page, which no read is given, and a removal
// has gone around the pages of both.
void FileSystem::refuse(const Io& io, const Error& error) {
  const bool without_key = error.code == Errc::no_key || error.code == Errc::would_wait;
  if (without_key) pages_.drop_soon(io.node);
  reply_error(io.req, error);
}

namespace {

// All of it, up to the end of the file. The library tells what came before an error; the kernel
// takes a short answer for the file's end, cuts its size there and drops what is stored behind.
Result<u64> read_all(volume::Volume& volume, const Io& io, MutableBytes reply,
                     volume::IoFlags flags) {
  u64 done = 0;
  while (done < reply.size()) {
    LK_TRY(const u64 got,
           volume.read(io.file->handle, io.offset + done, reply.subspan(done), flags));
    if (got == 0) break;
    done += got;
  }
  return done;
}

Result<u64> attempt(volume::Volume& volume, const Io& io, MutableBytes reply, bool serve) {
  const volume::IoFlags flags{.wait = false, .written_back = io.written_back, .serve = serve};
  return io.write ? volume.write(io.file->handle, io.offset, io.data, flags)
                  : read_all(volume, io, reply, flags);
}

}  // namespace

// Behind a direct write that it does not wait for the kernel neither asks for the fsync of O_DSYNC
// nor drops what was read meanwhile. Whether it waits it does not tell. Who read before the write
// has said so before (has_pages), and holds its pages locked until it has its answer.
void FileSystem::finish(const Io& io, MutableBytes read, u64 size) {
  if (!io.write) {
    fuse_reply_buf(io.req, reinterpret_cast<const char*>(read.data()), size);
    return;
  }
  if (io.synced) {
    if (const auto synced = volume_.fsync(io.file->handle); !synced)
      return reply_error(io.req, synced.error());
  }
  if (!io.direct || !io.file->shared->has_pages) {
    fuse_reply_write(io.req, size);
    return;
  }
  pages_.drop_then(io.node, io.touched(), [req = io.req, size] { fuse_reply_write(req, size); });
}

void FileSystem::perform(Io&& io) try {
  const ReplyBuffer buffer(io.write ? 0 : io.size);
  for (bool serve = false;;) {
    const u64 seen = pages_.parked().tries();
    const auto done = attempt(volume_, io, buffer.bytes(), serve);
    if (done) return finish(io, buffer.bytes(), *done);
    if (done.error().code != Errc::would_wait) return refuse(io, done.error());
    switch (pages_.parked().park(io, seen)) {
      case Parked::Place::parked:
        return;
      case Parked::Place::again:
        serve = false;
        break;
      case Parked::Place::serve:
        if (serve) return refuse(io, done.error());
        serve = true;
        break;
      case Parked::Place::full:
        return refuse(io, done.error());
      case Parked::Place::interrupted:
        fuse_reply_err(io.req, EINTR);
        return;
    }
  }
} catch (const std::bad_alloc&) {
  fuse_reply_err(io.req, ENOMEM);
}

}  // namespace latchkey::mount
