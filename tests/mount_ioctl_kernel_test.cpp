// Goal: on a mount, fscrypt's ioctls give the answers of a real kernel's: errno and what is written
// into the caller's memory, also those whose bytes FUSE does not carry. Method: calls by chance
// (fscrypt_calls.h) on an ext4 with encryption and on a mounted volume with compat_fscrypt.
// What differs: the kernel has an argument copied whole before the mount is asked (error_of_ours).
// Needs root, /dev/fuse, a loop device, mkfs.ext4 and a kernel with CONFIG_FS_ENCRYPTION.

#include <sys/syscall.h>

#include <array>

#include "mount/mount.h"
#include "tests/support/fscrypt_alike.h"

namespace latchkey::tests {
namespace {

class MountIoctlKernel : public FscryptAlike {
 protected:
  void SetUp() override {
    if (::access("/dev/fuse", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/fuse";
    mount::MountOptions options;
    options.session.directory = folder_.file("mnt");
    options.session.source = "simulated";
    options.session.kernel = {"allow_other"};
    options.file_system.caller_memory = true;
    ASSERT_EQ(::mkdir(options.session.directory.c_str(), 0755), 0);
    mount_ = std::make_unique<mount::Mount>(std::move(options));
    options_.front = mount_->front();
    FscryptAlike::SetUp();
    if (!volume_) return;  // skipped
    const auto started = mount_->start(*volume_);
    ASSERT_TRUE(started) << started.error().what;
  }
  void TearDown() override {
    if (mount_) mount_->stop();
    FscryptAlike::TearDown();
  }

  Seen by_us(const Call& call) override {
    const std::string path = mount_->directory() + "/" + call.target;
    Seen seen = by_ioctl(engine::Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)), call);
    if (seen.error != 0 && seen.error != EFAULT) {
      EXPECT_EQ(to_hex(seen.memory), to_hex(call.memory)) << "in spite of the error";
    }
    return seen;
  }

  // An ext4 directory that is open is busy once its names have been asked for, ours at once.
  Seen by_kernel(const Call& call) override {
    engine::Fd target = ext4_.open(call.target);
    std::array<std::byte, 4096> names;
    (void)::syscall(SYS_getdents64, target.get(), names.data(), names.size());
    return by_ioctl(target, call);
  }

  int error_of_ours(const Call& call, int theirs) override {
    const bool copied = (_IOC_DIR(call.command) & _IOC_WRITE) != 0;
    return copied && call.memory.size() < _IOC_SIZE(call.command) ? EFAULT : theirs;
  }

  TempFolder folder_{TempFolder::memory_folder()};
  std::unique_ptr<mount::Mount> mount_;
};

TEST_F(MountIoctlKernel, the_same_bytes_get_the_same_answers) {
  compare(seed_base() + 1, cases(20'000));
}

}  // namespace
}  // namespace latchkey::tests
