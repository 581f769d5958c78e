#include "mount/mount.h"

#include <poll.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <string>
#include <utility>

namespace latchkey::mount {
namespace {

// The kernel would read 128 KiB ahead, a request of FUSE's each, and grants more only here and to
// root: from front to back a file is read 1.5 times as fast (docs/performance.md).
constexpr u32 kReadaheadKib = 1024;

void read_further_ahead(u64 device) {
  const std::string name = std::to_string(major(device)) + ":" + std::to_string(minor(device));
  std::ofstream("/sys/class/bdi/" + name + "/read_ahead_kb") << kReadaheadKib;
}

}  // namespace

Mount::Mount(MountOptions options) : options_(std::move(options)), pages_(options_.parked) {}

Mount::~Mount() { stop(); }

// Removals under way end while there is still a mount to take pages from.
void Mount::stop() {
  control_.reset();
  if (file_system_ != nullptr) file_system_->stop_ioctls();
  if (session_ == nullptr) return;
  if (!session_->unmount()) {
    pages_.stop();  // while what it asks the kernel for is still answered
    session_->cut();
  }
  session_->join();
  pages_.stop();
  session_.reset();
}

Result<void> Mount::start_control() {
  keys_ = volume_key_service(
      *volume_, device_number_,
      {.inode_of = inode_of,
       .number_of = [](volume::InodeId inode) { return number_of(inode).value_or(0); }},
      options_.session.read_only);
  LK_TRY(ListeningSocket socket, ListeningSocket::open(device_number_));
  LK_TRY(control_, ControlServer::start(std::move(socket), device_number_, *keys_, system_env(),
                                        options_.control));
  return {};
}

Result<void> Mount::start(volume::Volume& volume) {
  volume_ = &volume;
  // The second is asked of whoever serves a mount there, while attributes are kept.
  struct stat directory{};
  struct statvfs space{};
  if (::stat(options_.session.directory.c_str(), &directory) != 0 ||
      ::statvfs(options_.session.directory.c_str(), &space) != 0) {
    const int error = errno;
    if (error == ENOENT) return fail_os(Errc::not_found, error, "there is no such directory");
    if (error == ENOTCONN || error == ECONNABORTED)
      return fail_os(Errc::busy, error, "a mount whose server has died is there; umount it");
    return fail_os(Errc::permission, error, "the directory cannot be looked at");
  }
  if (!S_ISDIR(directory.st_mode)) return fail(Errc::not_dir, "is not a directory");
  file_system_ = std::make_unique<FileSystem>(volume, pages_, options_.file_system);
  session_ = std::make_unique<Session>(*file_system_);
  LK_TRYV(session_->mount(options_.session));
  pages_.start(session_->handle(), [this](Io&& io) { file_system_->perform(std::move(io)); });
  LK_TRYV(session_->serve());
  // The first request, which other threads of this process answer.
  struct stat root{};
  if (::statvfs(options_.session.directory.c_str(), &space) != 0 ||
      ::stat(options_.session.directory.c_str(), &root) != 0)
    return fail_os(Errc::io, errno, "the mount does not answer");
  device_number_ = root.st_dev;
  read_further_ahead(device_number_);
  if (const auto control = start_control(); !control) control_error_ = control.error();
  return {};
}

Result<void> Mount::wait(int stop_fd) {
  std::array<pollfd, 2> both{pollfd{.fd = session_->ended_fd(), .events = POLLIN, .revents = 0},
                             pollfd{.fd = stop_fd, .events = POLLIN, .revents = 0}};
  while (::poll(both.data(), both.size(), -1) < 0)
    if (errno != EINTR) return fail_os(Errc::io, errno, "cannot wait");
  if (both[0].revents == 0) {
    // What programs stored into mappings comes down while requests are still answered; programs
    // that are inside keep their files, cut off.
    pages_.drop_everything();
  }
  const auto failure = session_->failure();
  stop();
  if (failure) return std::unexpected(*failure);
  return {};
}

}  // namespace latchkey::mount
