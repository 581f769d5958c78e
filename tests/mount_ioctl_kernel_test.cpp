// Goal: on a mount, fscrypt's ioctls give the answers of a real kernel's: errno and what is written
// into the caller's memory, also those whose bytes FUSE does not carry. Method: calls by chance
// (fscrypt_calls.h) on an ext4 with encryption and on a volume with compat_fscrypt that a process
// of its own has mounted (who is stopped in a call of his own mount cannot be ended). What differs:
// the kernel has an argument copied whole before the mount is asked (error_of_ours). Needs root,
// /dev/fuse, a loop device, mkfs.ext4 and a kernel with CONFIG_FS_ENCRYPTION.

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "mount/mount.h"
#include "tests/support/fscrypt_alike.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {
namespace {

constexpr const char* kNoMount = "a mount is not to be had here";

// Until the other end of `stop` is closed; not 0: why there is no mount is on standard error.
int serve(const std::string& directory, int ready, int stop) {
  mount::MountOptions options;
  options.session.directory = directory;
  options.session.source = "simulated";
  options.session.kernel = {"allow_other"};
  options.file_system.caller_memory = true;
  mount::Mount mount(std::move(options));
  SimDevice device({.size_bytes = 128 * kMiB});
  LK_CHECK(volume::Volume::mkfs(device, {}, system_env()));
  volume::VolumeOptions volume_options;
  volume_options.compat_fscrypt = true;
  volume_options.front = mount.front();
  auto opened = volume::Volume::open(device, volume_options, system_env());
  LK_CHECK(opened);
  if (const auto started = mount.start(**opened); !started) {
    std::cerr << started.error().what << "\n";
    return 1;
  }
  LK_CHECK(::write(ready, "r", 1) == 1);
  LK_CHECK(mount.wait(stop));
  LK_CHECK((*opened)->close());
  return 0;
}

class MountIoctlKernel : public FscryptAlike {
 protected:
  void start_ours() override {
    ASSERT_EQ(::mkdir(root_.c_str(), 0755), 0);
    std::array<int, 2> ready{}, stop{};
    ASSERT_EQ(::pipe2(ready.data(), O_CLOEXEC) | ::pipe2(stop.data(), O_CLOEXEC), 0);
    server_ = ::fork();
    if (server_ == 0) {
      ::close(stop[1]);
      ::_exit(serve(root_, ready[1], stop[0]));
    }
    ::close(ready[1]);
    ::close(stop[0]);
    stop_ = engine::Fd(stop[1]);
    const engine::Fd told(ready[0]);
    char byte = 0;
    if (::read(told.get(), &byte, 1) != 1) GTEST_SKIP() << kNoMount;
  }
  void TearDown() override {
    stop_ = engine::Fd();
    int status = 0;
    if (server_ > 0) {
      EXPECT_EQ(::waitpid(server_, &status, 0), server_);
    }
    if (!IsSkipped()) {
      EXPECT_EQ(status, 0);
    }
    FscryptAlike::TearDown();
  }

  engine::Fd open(const std::string& name) const {
    return engine::Fd(::open((root_ + "/" + name).c_str(), O_RDONLY | O_CLOEXEC));
  }
  void make_our_directory(const std::string& name, u32 uid) override {
    make_directory_at(root_ + "/" + name, uid);
  }
  void make_our_file(const std::string& name, u32 uid) override {
    make_file_at(root_ + "/" + name, uid);
  }
  void add_our_key(const Heap& raw, const crypto::KeyId& id) override {
    crypto::KeyId added;
    ASSERT_EQ(kernel::add_key(open(".").get(), raw, added), 0);
    ASSERT_EQ(added, id);
  }
  void set_our_policy(const std::string& name, const crypto::KeyId& id) override {
    ASSERT_EQ(kernel::set_policy(open(name).get(), kernel::policy_of(id)), 0);
  }

  Seen by_us(const Call& call) override {
    Seen seen = by_ioctl(open(call.target), call);
    if (seen.error != 0 && seen.error != EFAULT) {
      EXPECT_EQ(to_hex(seen.memory), to_hex(call.memory)) << "in spite of the error";
    }
    return seen;
  }

  // An ext4 directory that is open is busy once its names have been asked for, ours at once.
  Seen by_kernel(const Call& call) override {
    const engine::Fd target = ext4_.open(call.target);
    std::array<std::byte, 4096> names;
    (void)::syscall(SYS_getdents64, target.get(), names.data(), names.size());
    return by_ioctl(target, call);
  }

  int error_of_ours(const Call& call, int theirs) override {
    const bool copied = (_IOC_DIR(call.command) & _IOC_WRITE) != 0;
    return copied && call.memory.size() < _IOC_SIZE(call.command) ? EFAULT : theirs;
  }

  TempFolder folder_{TempFolder::memory_folder()};
  std::string root_ = folder_.file("mnt");
  engine::Fd stop_;
  pid_t server_ = 0;
};

TEST_F(MountIoctlKernel, the_same_bytes_get_the_same_answers) {
  compare(seed_base() + 1, cases(20'000));
}

}  // namespace
}  // namespace latchkey::tests
