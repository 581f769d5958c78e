#pragma once
// Where the control socket of a mounted store is, and the two ends of it.
//
// The daemon of a mount whose st_dev is MAJOR:MINOR listens at MAJOR-MINOR.sock in the run
// directory (mount/run_directory.h). So a client finds it by stat() of anything in the mount.
// Nobody but the directory's owner can put a name there; the socket itself anybody may connect to,
// and what he may do is decided by the uid that the kernel gives for the peer. LATCHKEY_SOCKET
// names another path, for both ends (tests).

#include <sys/types.h>

#include <optional>
#include <string>

#include "base/result.h"
#include "base/types.h"
#include "mount/unique_fd.h"

namespace latchkey::mount {

struct Peer {
  u32 uid = 0;
  u32 gid = 0;
  u32 pid = 0;
};
// As the kernel knew the other end when it connected.
Result<Peer> peer_of(int socket);

// "8-1.sock".
std::string socket_name(dev_t device);

// Listens; the name goes with the object, if it is still its own.
class ListeningSocket {
 public:
  // In the daemon's run directory, as the daemon of the mount that has this number just now. Who
  // listens there still is the daemon of an earlier one, on its way out: the kernel gives a number
  // again as soon as a mount has ended. permission: the directory is not only ours.
  static Result<ListeningSocket> open(dev_t device);
  // At this path, whose directory the caller answers for. A socket that nobody listens on any more
  // is replaced. busy: somebody does.
  static Result<ListeningSocket> open_at(const std::string& path);
  ListeningSocket(ListeningSocket&&) noexcept = default;
  ListeningSocket& operator=(ListeningSocket&&) = delete;
  ~ListeningSocket();

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }

 private:
  ListeningSocket() = default;
  UniqueFd fd_;
  std::string path_;
  ino_t inode_ = 0;
};

// To the daemon of the mount that `device` is: in root's run directory, then in the user's own
// ones. not_found: there is none. permission: what listens there runs neither as root nor as the
// caller, and would get his keys.
Result<UniqueFd> connect_to_daemon(dev_t device);
Result<UniqueFd> connect_at(const std::string& path);

// One message, with a descriptor if fd >= 0. would block: false, unless `wait`. io: the other end
// is gone.
Result<bool> send_message(int socket, Bytes message, int fd, bool wait);

}  // namespace latchkey::mount
