#pragma once
// Loop devices for benchmarks, and how many bytes were written to them.
//
// They lie on files in the folder of disk.h, with 4 KiB sectors and direct I/O where that folder's
// file system has it. Nothing outlives the process: a device detaches itself with its last user,
// and mounts are in a namespace of the process's own. Needs root.

#include <fcntl.h>
#include <linux/loop.h>
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
#include "tests/support/loop_device.h"

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
    if (!file.valid()) return fail_os(Errc::unavailable, errno, "an image cannot be opened");
    auto attached = tests::attach_loop(file, LO_FLAGS_DIRECT_IO, 4096);
    if (!attached) attached = tests::attach_loop(file, 0, 4096);
    LK_TRY(loop->loop_, std::move(attached));
    return loop;
  }

  const std::string& path() const { return loop_.path; }
  // The kernel's count for the device.
  u64 bytes_written() const {
    std::ifstream in("/sys/block/" + path().substr(path().rfind('/') + 1) + "/stat");
    u64 value = 0;
    for (int field = 0; field < 7; ++field) in >> value;
    return value * 512;
  }

 private:
  LoopDevice() : folder_(folder()) {}

  tests::TempFolder folder_;
  tests::LoopDevice loop_;
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
    if (!tests::own_mounts())
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
