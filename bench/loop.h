#pragma once
// Loop devices for benchmarks, and how many bytes were written to them.
//
// They lie on files in the folder of disk.h, with 4 KiB sectors and direct I/O where that folder's
// file system has it. Nothing outlives the process: a device detaches itself with its last user.
// Needs root.

#include <fcntl.h>
#include <linux/loop.h>

#include <cerrno>
#include <fstream>
#include <memory>
#include <string>

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

}  // namespace latchkey::bench
