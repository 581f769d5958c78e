// The table that libfuse calls through.

#include <new>

#include "mount/device_io.h"
#include "mount/file_system.h"
#include "mount/replies.h"

namespace latchkey::mount {
namespace {

// A member of FileSystem as the plain function that libfuse wants. Memory can run out before the
// reply only.
template <auto Method, class... Args>
void call(fuse_req_t req, Args... args) {
  auto* const file_system = static_cast<FileSystem*>(fuse_req_userdata(req));
  try {
    (file_system->*Method)(req, args...);
  } catch (const std::bad_alloc&) {
    fuse_reply_err(req, ENOMEM);
  }
}

fuse_lowlevel_ops make_operations() {
  fuse_lowlevel_ops ops{};
  ops.init = [](void* file_system, fuse_conn_info* connection) {
    static_cast<const FileSystem*>(file_system)->init(connection);
  };
  ops.lookup = call<&FileSystem::lookup>;
  ops.forget = call<&FileSystem::forget>;
  ops.forget_multi = call<&FileSystem::forget_multi>;
  ops.getattr = call<&FileSystem::getattr>;
  ops.setattr = call<&FileSystem::setattr>;
  ops.readlink = call<&FileSystem::readlink>;
  ops.mknod = call<&FileSystem::mknod>;
  ops.mkdir = call<&FileSystem::mkdir>;
  ops.unlink = call<&FileSystem::unlink>;
  ops.rmdir = call<&FileSystem::rmdir>;
  ops.symlink = call<&FileSystem::symlink>;
  ops.rename = call<&FileSystem::rename>;
  ops.link = call<&FileSystem::link>;
  ops.open = call<&FileSystem::open>;
  ops.create = call<&FileSystem::create>;
  ops.read = call<&FileSystem::read>;
  ops.write = call<&FileSystem::write>;
  ops.flush = call<&FileSystem::flush>;
  ops.release = call<&FileSystem::release>;
  ops.fsync = call<&FileSystem::fsync>;
  ops.opendir = call<&FileSystem::opendir>;
  ops.readdir = call<&FileSystem::readdir>;
  ops.releasedir = call<&FileSystem::releasedir>;
  ops.fsyncdir = call<&FileSystem::fsyncdir>;
  ops.statfs = call<&FileSystem::statfs>;
  ops.setxattr = call<&FileSystem::setxattr>;
  ops.getxattr = call<&FileSystem::getxattr>;
  ops.listxattr = call<&FileSystem::listxattr>;
  ops.removexattr = call<&FileSystem::removexattr>;
  ops.fallocate = call<&FileSystem::fallocate>;
  ops.ioctl = call<&FileSystem::ioctl>;
  ops.lseek = call<&FileSystem::lseek>;
  ops.copy_file_range = call<&FileSystem::copy_file_range>;
  return ops;
}

}  // namespace

const fuse_lowlevel_ops& FileSystem::operations() {
  static const fuse_lowlevel_ops ops = make_operations();
  return ops;
}

// The writeback cache would acknowledge writes that the volume never saw. The library takes
// set-user-id bits away, the kernel capabilities: that is what version 2 of HANDLE_KILLPRIV says,
// not the first (device_io.h). Nobody changes a file behind the kernel, so a new mtime or size is
// no reason to drop its pages. What the kernel leaves undone behind direct I/O that it does not
// wait for (ASYNC_DIO) is done here: io.cpp, parked.h.
void FileSystem::init(fuse_conn_info* connection) const {
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_CACHE_SYMLINKS |
                                             FUSE_CAP_READDIRPLUS | FUSE_CAP_AUTO_INVAL_DATA |
                                             FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_SPLICE_READ);
  if ((connection->capable & FUSE_CAP_EXPLICIT_INVAL_DATA) != 0)
    connection->want |= FUSE_CAP_EXPLICIT_INVAL_DATA;
  expect_init_answer();
  connection->max_background = options_.background_max;
  connection->congestion_threshold = options_.background_max * 3 / 4;
}

}  // namespace latchkey::mount
