#include "engine/file_device.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/wait.h"
#include "engine/device_identity.h"
#include "engine/fd.h"
#include "engine/io_buffer.h"
#include "engine/uring_io.h"

namespace latchkey::engine {
namespace {

constexpr mode_t kFileMode = 0600;

// A killed process's ring holds its files, and so the lock, until the kernel has taken it apart;
// that wait is not the caller's business. Nor is that for a daemon which closes its store:
// umount(8) does not wait for it.
constexpr u32 kLockTries = 25;
constexpr u64 kLockPauseNs = 20'000'000;

class FileDevice final : public Device {
 public:
  FileDevice(Fd fd, Fd claim, Fd backing_lock, DeviceInfo info)
      : fd_(std::move(fd)),
        claim_(std::move(claim)),
        backing_lock_(std::move(backing_lock)),
        info_(std::move(info)) {}
  // A ring that the kernel has not yet taken apart may hold the file open; its lock goes now.
  ~FileDevice() override { (void)::flock(fd_.get(), LOCK_UN); }
  FileDevice(const FileDevice&) = delete;
  FileDevice& operator=(const FileDevice&) = delete;

  const DeviceInfo& info() const override { return info_; }

  Result<std::unique_ptr<Io>> make_io(const IoOptions& options) override {
    LK_TRY(std::unique_ptr<Io> io,
           UringIo::create({fd_.get(), info_.size_bytes, info_.read_only}, options));
    return io;
  }

 private:
  const Fd fd_;            // of a file: holds the lock
  const Fd claim_;         // of a block device: O_EXCL, apart from fd_ because no ring holds it
  const Fd backing_lock_;  // the file behind a loop device
  const DeviceInfo info_;
};

struct Opened {
  Fd fd;
  Fd claim;
  struct stat status{};
  bool direct = false;
  bool created = false;
};

std::unexpected<Error> open_failure(int os_errno) {
  switch (os_errno) {
    case ENOENT:
    case ENOTDIR:
      return fail_os(Errc::not_found, os_errno, "the device does not exist");
    case EACCES:
    case EPERM:
      return fail_os(Errc::permission, os_errno, "the device may not be opened");
    case EROFS:
      return fail_os(Errc::read_only, os_errno, "the device is read-only");
    case EBUSY:
    case ETXTBSY:
      return fail_os(Errc::busy, os_errno, "the device is mounted or in use");
    case EISDIR:
    case ENXIO:
    case ENODEV:
      return fail_os(Errc::wrong_device, os_errno, "neither a file nor a block device");
    case ENOSPC:
      return fail_os(Errc::no_space, os_errno, "no space to make the file");
    default:
      return fail_os(Errc::io, os_errno, "the device cannot be opened");
  }
}

Result<void> check_kind(const struct stat& status) {
  if (S_ISREG(status.st_mode) || S_ISBLK(status.st_mode)) return {};
  return fail(Errc::wrong_device, "neither a file nor a block device");
}

Result<Fd> claim_block_device(const std::string& path, const struct stat& expected) {
  Fd claim;
  for (u32 tries = 1;; ++tries) {
    claim = Fd(::open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
    if (claim.valid()) break;
    const int error = errno;
    if (error != EBUSY || tries == kLockTries || is_mounted(expected)) return open_failure(error);
    pause_for(kLockPauseNs);
  }
  struct stat status{};
  if (::fstat(claim.get(), &status) != 0) return open_failure(errno);
  if (!S_ISBLK(status.st_mode) || status.st_rdev != expected.st_rdev) {
    return fail(Errc::busy, "the device was exchanged while it was opened");
  }
  return claim;
}

// Opens what exists, or makes the file. Special files are refused before they are opened: opening a
// fifo waits, opening a tape winds it.
Result<Opened> open_path(const std::string& path, const OpenDeviceOptions& options) {
  Opened opened;
  int flags = O_CLOEXEC | (options.read_only ? O_RDONLY : O_RDWR);
  if (::stat(path.c_str(), &opened.status) == 0) {
    LK_TRYV(check_kind(opened.status));
    if (S_ISBLK(opened.status.st_mode)) {
      auto claim = claim_block_device(path, opened.status);
      const bool over_a_mount =
          options.force && !claim && claim.error().os_errno == EBUSY && is_mounted(opened.status);
      if (!claim && !over_a_mount) return std::unexpected(claim.error());
      if (claim) opened.claim = std::move(*claim);
    }
  } else if (errno == ENOENT && options.create_size != 0) {
    flags |= O_CREAT | O_EXCL;
    opened.created = true;
  } else {
    return open_failure(errno);
  }
  opened.direct = !options.buffered;
  opened.fd = Fd(::open(path.c_str(), flags | (opened.direct ? O_DIRECT : 0), kFileMode));
  if (!opened.fd.valid() && errno == EINVAL && opened.direct) {
    opened.direct = false;
    if (opened.created) flags &= ~O_EXCL;  // some file systems make the file before they refuse
    opened.fd = Fd(::open(path.c_str(), flags, kFileMode));
  }
  if (!opened.fd.valid()) return open_failure(errno);
  const struct stat expected = opened.status;
  if (::fstat(opened.fd.get(), &opened.status) != 0) return open_failure(errno);
  LK_TRYV(check_kind(opened.status));
  if (opened.claim.valid() && opened.status.st_rdev != expected.st_rdev) {
    return fail(Errc::busy, "the device was exchanged while it was opened");
  }
  return opened;
}

Result<void> take_lock(int fd) {
  for (u32 tries = 1; ::flock(fd, LOCK_EX | LOCK_NB) != 0; ++tries) {
    if (errno != EWOULDBLOCK) return fail_os(Errc::io, errno, "the device cannot be locked");
    if (tries == kLockTries)
      return fail_os(Errc::busy, EBUSY, "the device is in use by another process");
    pause_for(kLockPauseNs);
  }
  return {};
}

// Locks the file behind a loop device; without the right to open it, or with its name gone, there
// is nothing to lock.
Result<Fd> lock_backing_file(const struct stat& status) {
  if (!is_loop_device(status)) return Fd();
  const auto path = backing_file_of(status);
  if (!path) return Fd();
  Fd fd(::open(path->c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return Fd();
  LK_TRYV(take_lock(fd.get()));
  return fd;
}

Result<void> refuse_loop_backing(const struct stat& status) {
  if (!S_ISREG(status.st_mode) || !loop_device_of(status)) return {};
  return fail_os(Errc::busy, EBUSY, "the file backs an attached loop device");
}

Result<u64> size_of(const Opened& opened) {
  if (S_ISREG(opened.status.st_mode)) {
    struct stat status{};
    if (::fstat(opened.fd.get(), &status) != 0) return open_failure(errno);
    return static_cast<u64>(status.st_size);
  }
  u64 size_bytes = 0;
  if (::ioctl(opened.fd.get(), BLKGETSIZE64, &size_bytes) != 0) {
    return fail_os(Errc::io, errno, "the size of the device cannot be read");
  }
  return size_bytes;
}

Result<void> grow(const Opened& opened, u64 create_size) {
  LK_TRY(const u64 size_bytes, size_of(opened));
  if (size_bytes >= create_size) return {};
  if (!S_ISREG(opened.status.st_mode)) {
    return fail(Errc::invalid, "a block device cannot be made larger");
  }
  if (create_size > static_cast<u64>(INT64_MAX)) return fail(Errc::too_big, "no file is so large");
  if (::ftruncate(opened.fd.get(), static_cast<off_t>(create_size)) == 0) return {};
  if (errno == EFBIG) return fail_os(Errc::too_big, errno, "the file system limits a file's size");
  return fail_os(errno == ENOSPC ? Errc::no_space : Errc::io, errno, "the file cannot be grown");
}

Result<void> check_block_device(int fd, bool read_only) {
  int read_only_device = 0;
  if (::ioctl(fd, BLKROGET, &read_only_device) == 0 && read_only_device != 0 && !read_only) {
    return fail_os(Errc::read_only, EROFS, "the device is read-only");
  }
  int sector_bytes = 0;
  if (::ioctl(fd, BLKSSZGET, &sector_bytes) == 0 && static_cast<u64>(sector_bytes) > kIoAlign) {
    return fail(Errc::wrong_device, "the device has sectors above 4 KiB");
  }
  return {};
}

// Some file systems take O_DIRECT at open and refuse it, or 4 KiB of it, at the first read.
Result<bool> direct_works(const Opened& opened, u64 size_bytes) {
  if (!opened.direct || size_bytes < kIoAlign) return opened.direct;
  LK_TRY(const IoBuffer block, IoBuffer::create(kIoAlign));
  if (::pread(opened.fd.get(), block.bytes().data(), kIoAlign, 0) >= 0 || errno != EINVAL) {
    return true;  // an EIO here is the reader's to meet
  }
  const int flags = ::fcntl(opened.fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(opened.fd.get(), F_SETFL, flags & ~O_DIRECT) != 0) {
    return fail_os(Errc::io, errno, "the device takes neither direct nor buffered reads");
  }
  return false;
}

bool can_discard(const Opened& opened) {
  if (S_ISBLK(opened.status.st_mode)) {
    // A hole in a block device is zeroes with unmap; without discard it would only be slow writing.
    return queue_limit(opened.status, "discard_max_bytes") != 0 &&
           queue_limit(opened.status, "write_zeroes_max_bytes") != 0;
  }
  // A hole beyond the end changes nothing and tells whether holes are known here.
  struct stat status{};
  if (::fstat(opened.fd.get(), &status) != 0) return false;
  const off_t end = status.st_size / static_cast<off_t>(kIoAlign) * static_cast<off_t>(kIoAlign) +
                    static_cast<off_t>(kIoAlign);
  return ::fallocate(opened.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end,
                     static_cast<off_t>(kIoAlign)) == 0;
}

const char* kind_of(const struct stat& status) {
  if (is_loop_device(status)) return "loop device";
  return S_ISBLK(status.st_mode) ? "block device" : "file";
}

Result<std::unique_ptr<Device>> take(const std::string& path, const OpenDeviceOptions& options,
                                     Opened& opened) {
  const bool block_device = S_ISBLK(opened.status.st_mode);
  // A block device was claimed by O_EXCL, unless it is taken from a mount. flock may have to wait
  // for udev, which holds one now and then.
  if (!opened.claim.valid()) LK_TRYV(take_lock(opened.fd.get()));
  LK_TRYV(refuse_loop_backing(opened.status));
  LK_TRY(Fd backing_lock, lock_backing_file(opened.status));
  if (block_device) LK_TRYV(check_block_device(opened.fd.get(), options.read_only));
  if (options.create_size != 0) LK_TRYV(grow(opened, options.create_size));

  DeviceInfo info;
  LK_TRY(const u64 size_bytes, size_of(opened));
  info.size_bytes = size_bytes / kIoAlign * kIoAlign;
  info.read_only = options.read_only;
  LK_TRY(info.direct, direct_works(opened, info.size_bytes));
  info.discard = !options.read_only && can_discard(opened);
  info.kind = kind_of(opened.status);
  info.path = path;
  return std::make_unique<FileDevice>(std::move(opened.fd), std::move(opened.claim),
                                      std::move(backing_lock), std::move(info));
}

}  // namespace

Result<std::unique_ptr<Device>> open_device(const std::string& path,
                                            const OpenDeviceOptions& options) {
  if (options.read_only && options.create_size != 0) {
    return fail(Errc::invalid, "a file is not made or grown read-only");
  }
  LK_TRY(Opened opened, open_path(path, options));
  auto device = take(path, options, opened);
  // A busy file was taken by somebody between its making and its locking: it is theirs.
  const bool ours = opened.created && !device && device.error().code != Errc::busy;
  if (ours) ::unlink(path.c_str());
  return device;
}

}  // namespace latchkey::engine
