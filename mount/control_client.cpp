#include "mount/control_client.h"

#include <sys/socket.h>

#include <cerrno>

#include "mount/control_key.h"

namespace latchkey::mount {

Result<ControlClient> ControlClient::connect(dev_t device) {
  LK_TRY(UniqueFd socket, connect_to_daemon(device));
  return ControlClient(std::move(socket));
}

Result<ControlClient> ControlClient::connect_to(const std::string& path) {
  LK_TRY(UniqueFd socket, connect_at(path));
  return ControlClient(std::move(socket));
}

Result<std::size_t> ControlClient::receive(MutableBytes into) {
  for (;;) {
    const ssize_t got = ::recv(socket_.get(), into.data(), into.size(), MSG_TRUNC);
    if (got > 0) return static_cast<std::size_t>(got);
    if (got < 0 && errno == EINTR) continue;
    return fail_os(Errc::io, got == 0 ? ECONNRESET : errno,
                   "the daemon closed the connection; it may have too many of yours");
  }
}

Result<Answer> ControlClient::ask(Request request, int fd) {
  request.sequence = ++sequence_;
  LK_TRYV(send_message(socket_.get(), encode_request(request), fd, true));
  Answer answer;
  std::vector<std::byte> buffer(kPartBytesMax);
  for (bool last = false; !last;) {
    LK_TRY(const std::size_t size, receive(buffer));
    if (size > buffer.size()) return fail(Errc::malformed, "the daemon's answer is too long");
    const Bytes message = Bytes(buffer).first(size);
    if (sequence_of(message) != request.sequence)
      return fail(Errc::malformed, "the daemon answers something else");
    LK_TRY(last, decode_part(message, answer));
  }
  if (request.verb == Verb::key_remove)
    answer.removal.holders = std::move(answer.holders);
  else if (answer.keys.size() == 1)
    answer.keys[0].holders = std::move(answer.holders);
  return answer;
}

Result<Answer> ControlClient::add_key(SecretBytes&& secret) {
  SecretBytes ours = std::move(secret);
  LK_TRY(const KeyDescriptor key, KeyDescriptor::create(ours));
  ours.reset();
  Request request;
  request.verb = Verb::key_add;
  request.key_bytes = key.size();
  return ask(request, key.fd());
}

}  // namespace latchkey::mount
