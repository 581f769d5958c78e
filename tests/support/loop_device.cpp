#include "tests/support/loop_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

#include <cerrno>

namespace latchkey::tests {

Result<LoopDevice> attach_loop(const engine::Fd& image, u32 flags, u32 sector_bytes) {
  const engine::Fd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  if (!control.valid()) return fail_os(Errc::unavailable, errno, "no loop device can be had");
  loop_config config{};
  config.fd = static_cast<u32>(image.get());
  config.block_size = sector_bytes;
  config.info.lo_flags = flags | LO_FLAGS_AUTOCLEAR;
  for (int attempt = 0; attempt < 100; ++attempt) {
    const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) break;
    LoopDevice loop;
    loop.path = fmt::format("/dev/loop{}", number);
    loop.device = engine::Fd(::open(loop.path.c_str(), O_RDWR | O_CLOEXEC));
    if (!loop.device.valid()) break;
    if (::ioctl(loop.device.get(), LOOP_CONFIGURE, &config) == 0) return loop;
    if (errno != EBUSY) break;  // else another process was faster
  }
  return fail_os(Errc::unavailable, errno, "no loop device can be had");
}

bool own_mounts() {
  static const bool ours = ::unshare(CLONE_NEWNS) == 0 &&
                           ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  return ours;
}

}  // namespace latchkey::tests
