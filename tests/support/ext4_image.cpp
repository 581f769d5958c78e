#include "tests/support/ext4_image.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/check.h"
#include "tests/support/loop_device.h"

namespace latchkey::tests {
namespace {

using engine::Fd;

std::string reason(const std::string& what, int error) {
  return what + ": " + std::strerror(error);
}

}  // namespace

Ext4Image::~Ext4Image() {
  if (mounted_) LK_CHECK(::umount2(point_.c_str(), MNT_DETACH) == 0);
}

std::string Ext4Image::make(u64 size, u32 block_bytes) {
  if (::geteuid() != 0) return "loop devices and mounts need root";
  const Fd file(::open(image_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file.valid() || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0) {
    return reason("an image cannot be made", errno);
  }
  // Without an index of hashes no-key names have none either; without a journal what is synced is
  // in its place.
  const std::string command = fmt::format(
      "PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -b {} -O encrypt,^dir_index,^has_journal {} 2>&1",
      block_bytes, image_);
  const int made = std::system(command.c_str());
  if (WEXITSTATUS(made) == 127) return "there is no mkfs.ext4";
  if (made != 0) return "mkfs.ext4 makes no file system with encryption";
  if (!own_mounts()) return "no right to a mount namespace of its own";
  LK_CHECK(::mkdir(point_.c_str(), 0700) == 0);
  const int refused = mount();
  if (refused == 0) return {};
  return reason(device_.empty() ? "no loop device" : "ext4 cannot be mounted", refused);
}

int Ext4Image::mount() {
  LK_CHECK(!mounted_);
  const Fd image(::open(image_.c_str(), O_RDWR | O_CLOEXEC));
  const auto loop = attach_loop(image);
  if (!loop) return loop.error().os_errno;
  device_ = loop->path;
  if (::mount(device_.c_str(), point_.c_str(), "ext4", MS_NOATIME, nullptr) != 0) return errno;
  mounted_ = true;
  return 0;
}

int Ext4Image::unmount() {
  LK_CHECK(mounted_);
  if (::umount2(point_.c_str(), 0) != 0) return errno;
  mounted_ = false;
  return 0;
}

Fd Ext4Image::open(const std::string& name) const {
  return Fd(::open(path(name).c_str(), O_RDONLY | O_CLOEXEC));
}

void Ext4Image::sync() const { LK_CHECK(::syncfs(open().get()) == 0); }

std::vector<std::byte> Ext4Image::read(u64 offset, std::size_t size) const {
  std::vector<std::byte> data(size);
  const Fd file(::open(image_.c_str(), O_RDONLY | O_CLOEXEC));
  LK_CHECK(::pread(file.get(), data.data(), size, static_cast<off_t>(offset)) ==
           static_cast<ssize_t>(size));
  return data;
}

void Ext4Image::write(u64 offset, Bytes data) const {
  LK_CHECK(!mounted_);
  const Fd file(::open(image_.c_str(), O_WRONLY | O_CLOEXEC));
  LK_CHECK(::pwrite(file.get(), data.data(), data.size(), static_cast<off_t>(offset)) ==
           static_cast<ssize_t>(data.size()));
}

bool Ext4Image::attached() const {
  const std::string number = device_.substr(std::strlen("/dev/"));
  std::ifstream in("/sys/block/" + number + "/loop/backing_file");
  std::string file;
  return std::getline(in, file) && file.starts_with(image_);
}

}  // namespace latchkey::tests
