#include "mount/control_socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "mount/run_directory.h"

namespace latchkey::mount {

namespace {

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path))
    return fail(Errc::name_too_long, "the control socket's path is too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> new_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) return fail_os(Errc::unavailable, errno, "no control socket");
  return fd;
}

// errno, or 0.
int connect_errno(int fd, const sockaddr_un& address) {
  while (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    if (errno != EINTR) return errno;
  return 0;
}

Result<void> must_be_stale(const sockaddr_un& address) {
  LK_TRY(const UniqueFd probe, new_socket());
  const int error = connect_errno(probe.get(), address);
  if (error == ECONNREFUSED) return {};
  return fail_os(Errc::busy, error, "a daemon listens there already");
}

Result<void> take_away(const std::string& path) {
  struct stat facts{};
  if (::lstat(path.c_str(), &facts) != 0) return {};
  if (!S_ISSOCK(facts.st_mode)) return fail(Errc::exists, "what is there is no socket");
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return fail_os(Errc::permission, errno, "another daemon's socket cannot be removed");
  return {};
}

}  // namespace

Result<Peer> peer_of(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0)
    return fail_os(Errc::io, errno, "the peer is not known");
  return Peer{static_cast<u32>(credentials.uid), static_cast<u32>(credentials.gid),
              static_cast<u32>(credentials.pid)};
}

std::string socket_name(dev_t device) {
  return std::to_string(major(device)) + "-" + std::to_string(minor(device)) + ".sock";
}

Result<ListeningSocket> ListeningSocket::open(dev_t device) {
  if (const char* path = ::secure_getenv("LATCHKEY_SOCKET"); path != nullptr) return open_at(path);
  LK_TRY(const RunDirectory directory, RunDirectory::open(static_cast<u32>(::geteuid())));
  const std::string path = directory.path() + "/" + socket_name(device);
  LK_TRYV(take_away(path));
  return open_at(path);
}

Result<ListeningSocket> ListeningSocket::open_at(const std::string& path) {
  LK_TRY(const sockaddr_un address, address_of(path));
  struct stat there{};
  if (::lstat(path.c_str(), &there) == 0) {
    if (S_ISSOCK(there.st_mode)) LK_TRYV(must_be_stale(address));
    LK_TRYV(take_away(path));
  }
  ListeningSocket socket;
  LK_TRY(socket.fd_, new_socket());
  if (::fcntl(socket.fd_.get(), F_SETFL, O_NONBLOCK) != 0 ||
      ::bind(socket.fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return fail_os(Errc::permission, errno, "the control socket cannot be made");
  socket.path_ = path;
  struct stat facts{};
  if (::lstat(path.c_str(), &facts) == 0) socket.inode_ = facts.st_ino;
  if (::chmod(path.c_str(), 0666) != 0 || ::listen(socket.fd_.get(), 128) != 0)
    return fail_os(Errc::permission, errno, "the control socket cannot be opened to clients");
  return socket;
}

ListeningSocket::~ListeningSocket() {
  struct stat facts{};
  if (path_.empty() || ::lstat(path_.c_str(), &facts) != 0) return;
  if (facts.st_ino == inode_) ::unlink(path_.c_str());
}

Result<UniqueFd> connect_at(const std::string& path) {
  LK_TRY(const sockaddr_un address, address_of(path));
  LK_TRY(UniqueFd fd, new_socket());
  if (const int error = connect_errno(fd.get(), address); error != 0)
    return fail_os(error == EACCES ? Errc::permission : Errc::not_found, error,
                   "no daemon of a mounted store answers for it");
  LK_TRY(const Peer peer, peer_of(fd.get()));
  if (peer.uid != 0 && peer.uid != static_cast<u32>(::geteuid()))
    return fail(Errc::permission, "what listens there is another user's, who would get the key");
  return fd;
}

Result<UniqueFd> connect_to_daemon(dev_t device) {
  if (const char* path = ::secure_getenv("LATCHKEY_SOCKET"); path != nullptr)
    return connect_at(path);
  auto found = connect_at(std::string(kRootRunDirectory) + "/" + socket_name(device));
  const auto uid = static_cast<u32>(::geteuid());
  if (found || uid == 0) return found;
  for (const std::string& directory : run_directories(uid)) {
    auto own = connect_at(directory + "/" + socket_name(device));
    if (own || own.error().code != Errc::not_found) return own;
  }
  return found;
}

Result<bool> send_message(int socket, Bytes message, int fd, bool wait) {
  iovec piece{const_cast<std::byte*>(message.data()), message.size()};
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &fd, sizeof(int));
  }
  for (;;) {
    const ssize_t sent = ::sendmsg(socket, &header, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT));
    if (sent >= 0) return true;
    if (errno == EINTR) continue;
    if (errno == EAGAIN) return false;
    return fail_os(Errc::io, errno, "the other end of the control socket is gone");
  }
}

}  // namespace latchkey::mount
