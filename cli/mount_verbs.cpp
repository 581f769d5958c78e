// mount and umount.

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <syslog.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/daemon.h"
#include "cli/mount_options.h"
#include "cli/verbs.h"
#include "mount/mount.h"

namespace latchkey::cli {
namespace {

struct Free {
  void operator()(char* text) const { std::free(text); }
};

std::string absolute(const std::string& path) {
  const std::unique_ptr<char, Free> resolved(::realpath(path.c_str(), nullptr));
  return resolved ? std::string(resolved.get()) : path;
}

void print_mounted(const Common& common, const MountArgs& args, const mount::Mount& mount) {
  if (common.json)
    print_json(
        common,
        {{"image", absolute(args.image)}, {"directory", mount.directory()}, {"pid", ::getpid()}});
}

constexpr u32 kBackground = 64;  // beside what can be parked (mount::FileSystemOptions)

// From the store's opening to its closing, in the process that serves it.
class Server {
 public:
  Server(const Common& common, const MountArgs& args, Background& background)
      : common_(common), args_(args), background_(background) {}

  Exit run(volume::VolumeOptions volume_options, mount::MountOptions mount_options) {
    const StopSignals stop;
    std::optional<SecretBytes> secret;
    if (args_.key.given()) {
      auto read = read_key(args_.key);
      if (!read) return report_error(common_, args_.key.name(), read.error());
      secret.emplace(std::move(*read));
    }
    mount_options.parked.count = volume_options.parked_max;
    mount_options.file_system.background_max = volume_options.parked_max + kBackground;
    mount::Mount mount(std::move(mount_options));
    volume_options.front = mount.front();
    auto opened = open_volume(args_.image, volume_options);
    if (!opened) return report_image(common_, args_.image, opened.error());
    if (secret) {
      const auto added = opened->volume->add_key(caller(), std::move(*secret));
      if (!added) return report_error(common_, args_.key.name(), added.error());
    }
    const Exit served = serve(mount, *opened->volume, stop);
    mount.stop();
    const auto closed = opened->volume->close();
    if (closed || served != Exit::ok) return served;
    log(closed.error());
    return report_image(common_, args_.image, closed.error());
  }

 private:
  Exit serve(mount::Mount& mount, volume::Volume& volume, const StopSignals& stop) {
    if (const auto started = mount.start(volume); !started)
      return report_error(common_, args_.directory, started.error());
    print_mounted(common_, args_, mount);
    if (const auto& error = mount.control_error())
      fmt::print(stderr, "latchkey: {}: warning: no control socket: {}\n",
                 printable(args_.directory), describe(*error));
    background_.ready();
    if (const auto waited = mount.wait(stop.fd()); !waited) {
      log(waited.error());
      return report_error(common_, args_.directory, waited.error());
    }
    return Exit::ok;
  }

  // In the background nobody reads standard error.
  void log(const Error& error) const {
    if (background_.active())
      ::syslog(LOG_ERR, "%s: %s (%s)", args_.image.c_str(), error.what, name_of(error.code));
  }

  const Common& common_;
  const MountArgs& args_;
  Background& background_;
};

}  // namespace

Exit run_mount(const Common& common, const MountArgs& args) {
  volume::VolumeOptions volume_options;
  mount::MountOptions mount_options;
  volume_options.discard = common.discard;
  for (const std::string& words : args.options) {
    std::string unknown;
    if (const auto parsed = parse_mount_options(words, volume_options, mount_options, unknown);
        !parsed)
      return report_usage(common, "-o " + unknown, parsed.error().what);
  }
  mount_options.session.directory = absolute(args.directory);
  mount_options.session.source = absolute(args.image);
  Background background;
  if (!args.foreground)
    if (const auto exit = background.begin()) return *exit;
  return Server(common, args, background).run(volume_options, std::move(mount_options));
}

// --- umount -------------------------------------------------------------------------------------

namespace {

// The process that serves the mount, as a descriptor that becomes readable when it ends; -1: there
// is none any more.
Result<int> server_of(const std::string& directory) {
  std::array<char, 32> text{};
  const ssize_t size = ::getxattr(directory.c_str(), std::string(mount::kDaemonAttribute).c_str(),
                                  text.data(), text.size() - 1);
  if (size < 0) {
    const int error = errno;
    if (error == ENOTCONN) return -1;
    if (error == ENOENT) return fail_os(Errc::not_found, error, "there is no such directory");
    if (error == EACCES) return fail_os(Errc::permission, error, "the mount is somebody else's");
    return fail_os(Errc::invalid, error, "no store is mounted there");
  }
  const long pid = std::strtol(text.data(), nullptr, 10);
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0 && errno != ESRCH) return fail_os(Errc::unavailable, errno, "cannot wait for it");
  return fd;
}

Result<void> take_away(const std::string& directory, bool lazy) {
  if (::umount2(directory.c_str(), lazy ? MNT_DETACH : 0) == 0) return {};
  const int error = errno;
  if (error == EBUSY) return fail_os(Errc::busy, error, "programs are inside");
  if (error == EINVAL) return fail_os(Errc::invalid, error, "no store is mounted there");
  if (error != EPERM) return fail_os(Errc::io, error, "cannot be unmounted");
  // Who is not root has mounted through fusermount3.
  const pid_t child = ::fork();
  if (child == 0) {
    ::execlp("fusermount3", "fusermount3", "-u", lazy ? "-z" : "-q", "--", directory.c_str(),
             nullptr);
    std::_Exit(127);
  }
  if (child > 0 && wait_for_exit(child) == Exit::ok) return {};
  return fail_os(Errc::busy, EBUSY, "fusermount3 does not unmount it");
}

}  // namespace

Exit run_umount(const Common& common, const UmountArgs& args) {
  const auto server = server_of(args.directory);
  if (!server) return report_error(common, args.directory, server.error());
  const auto taken = take_away(args.directory, args.lazy);
  // The store is closed when its server has ended, which a lazy one does when the last program
  // leaves.
  if (taken && *server >= 0 && !args.lazy) {
    pollfd ended{.fd = *server, .events = POLLIN, .revents = 0};
    while (::poll(&ended, 1, -1) < 0 && errno == EINTR) {
    }
  }
  if (*server >= 0) ::close(*server);
  if (!taken) return report_error(common, args.directory, taken.error());
  if (common.json) print_json(common, {{"directory", args.directory}});
  return Exit::ok;
}

}  // namespace latchkey::cli
