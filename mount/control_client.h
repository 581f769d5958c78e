#pragma once
// A client's end of the control socket: one request at a time, answered in full before the next.

#include <sys/types.h>

#include <string>

#include "base/result.h"
#include "base/secret.h"
#include "mount/control_socket.h"
#include "mount/wire.h"

namespace latchkey::mount {

class ControlClient {
 public:
  // See connect_to_daemon() and connect_at().
  static Result<ControlClient> connect(dev_t device);
  static Result<ControlClient> connect_to(const std::string& path);

  // The answer, which may be an error of the daemon's (Done::error). Errors of its own: io (the
  // daemon is gone or turned us away), malformed. `fd` goes with the message.
  Result<Answer> ask(Request request, int fd = -1);
  // key_add. `secret` is wiped, and so is what carried it, before this returns.
  Result<Answer> add_key(SecretBytes&& secret);

  int socket() const { return socket_.get(); }

 private:
  explicit ControlClient(UniqueFd socket) : socket_(std::move(socket)) {}
  Result<std::size_t> receive(MutableBytes into);

  UniqueFd socket_;
  u32 sequence_ = 0;
};

}  // namespace latchkey::mount
