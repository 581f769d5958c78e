#include "mount/control_receive.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace latchkey::mount {

namespace {

Received receive(int socket, MutableBytes into, int flags, msghdr& header) {
  iovec piece{into.data(), into.size()};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &header, flags | MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  // A message that was looked at can be gone, with its sender (ECONNRESET): then the kernel has not
  // written the control data, and what lies there are descriptors of others.
  if (got < 0) header.msg_controllen = 0;
  Received received;
  received.message = got > 0;
  received.gone = got == 0 || (got < 0 && errno != EAGAIN);
  if (!received.message) return received;
  received.size = static_cast<std::size_t>(got);
  received.brings = (header.msg_flags & MSG_CTRUNC) != 0;
  return received;
}

}  // namespace

Received look_at_message(int socket, MutableBytes into) {
  msghdr header{};
  return receive(socket, into, MSG_PEEK, header);
}

Received take_message(int socket, MutableBytes into) {
  msghdr header{};
  return receive(socket, into, 0, header);
}

Received take_message(int socket, MutableBytes into, FdCloser::Bag& bag) {
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kDescriptorsMax * sizeof(int))> control{};
  msghdr header{};
  header.msg_control = control.data();
  header.msg_controllen = CMSG_LEN(std::min(bag.room(), kDescriptorsMax) * sizeof(int));
  const Received received = receive(socket, into, 0, header);
  const cmsghdr* rights = CMSG_FIRSTHDR(&header);
  if (rights == nullptr || rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS)
    return received;
  for (std::size_t at = CMSG_LEN(0); at + sizeof(int) <= rights->cmsg_len; at += sizeof(int)) {
    int fd = -1;
    std::memcpy(&fd, reinterpret_cast<const std::byte*>(rights) + at, sizeof(int));
    bag.add(UniqueFd(fd));
  }
  return received;
}

}  // namespace latchkey::mount
