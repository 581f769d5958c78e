#pragma once
// Loop devices for benchmarks, and how many bytes were written to them.
//
// They lie on files in the folder of disk.h, with 4 KiB sectors and direct I/O where that folder's
// file system has it. Nothing outlives the process: a device detaches itself with its last user,
// and mounts are in a namespace of the process's own. Needs root.

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <cerrno>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/disk.h"
#include "engine/fd.h"

namespace latchkey::bench {

class LoopDevice {
 public:
  // A device of `size` bytes on a file that is written once from front to back, so that nobody
  // pays for the first write of a block.
  static Result<std::unique_ptr<LoopDevice>> create(u64 size) {
    std::unique_ptr<LoopDevice> loop(new LoopDevice);
    const std::string image = loop->folder_.file("image");
    Disk::fill(image, size);
    const engine::Fd file(::open(image.c_str(), O_RDWR | O_CLOEXEC));
    const engine::Fd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!file.valid() || !control.valid())
      return fail_os(Errc::unavailable, errno, "no loop device can be had");
    for (const u32 flags : {u32{LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO}, u32{LO_FLAGS_AUTOCLEAR}})
      if (loop->attach(control, file, flags)) return loop;
    return fail_os(Errc::unavailable, errno, "no loop device can be had");
  }

  const std::string& path() const { return path_; }
  // The kernel's count for the device.
  u64 bytes_written() const {
    std::ifstream in("/sys/block/" + path_.substr(path_.rfind('/') + 1) + "/stat");
    u64 value = 0;
    for (int field = 0; field < 7; ++field) in >> value;
    return value * 512;
  }

 private:
  LoopDevice() : folder_(folder()) {}

  bool attach(const engine::Fd& control, const engine::Fd& file, u32 flags) {
    loop_config config{};
    config.fd = static_cast<u32>(file.get());
    config.block_size = 4096;
    config.info.lo_flags = flags;
    for (int attempt = 0; attempt < 100; ++attempt) {
      const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) return false;
      path_ = fmt::format("/dev/loop{}", number);
      engine::Fd device(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
      if (!device.valid()) return false;
      if (::ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) {
        open_ = std::move(device);
        return true;
      }
      if (errno != EBUSY) return false;  // else another process was faster
    }
    return false;
  }

  tests::TempFolder folder_;
  std::string path_;
  engine::Fd open_;
};

// mkfs.ext4's defaults on a loop device, mounted where only this process sees it.
class Ext4 {
 public:
  static Result<std::unique_ptr<Ext4>> create(u64 size) {
    std::unique_ptr<Ext4> ext4(new Ext4);
    LK_TRY(ext4->device_, LoopDevice::create(size));
    const std::string command =
        "PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 " +
        ext4->device_->path();
    if (std::system(command.c_str()) != 0) return fail(Errc::unavailable, "mkfs.ext4 failed");
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
      return fail_os(Errc::unavailable, errno, "no mount namespace of its own");
    if (::mkdir(ext4->point_.c_str(), 0700) != 0 ||
        ::mount(ext4->device_->path().c_str(), ext4->point_.c_str(), "ext4", 0, nullptr) != 0)
      return fail_os(Errc::unavailable, errno, "ext4 cannot be mounted");
    ext4->mounted_ = true;
    return ext4;
  }
  Ext4(const Ext4&) = delete;
  Ext4& operator=(const Ext4&) = delete;
  ~Ext4() {
    if (mounted_) ::umount2(point_.c_str(), MNT_DETACH);
  }

  std::string path(const std::string& name) const { return point_ + "/" + name; }
  const LoopDevice& device() const { return *device_; }

 private:
  Ext4() : folder_(folder()) {}

  tests::TempFolder folder_;
  const std::string point_ = folder_.file("mnt");
  std::unique_ptr<LoopDevice> device_;
  bool mounted_ = false;
};

}  // namespace latchkey::bench
