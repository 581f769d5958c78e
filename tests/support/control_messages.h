#pragma once
// What tests send to a control server that no client of ours would: any bytes, with any
// descriptors.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <span>

#include "base/check.h"
#include "base/types.h"
#include "mount/unique_fd.h"

namespace latchkey::tests {

inline constexpr std::size_t kDescriptorsMax = 253;  // of one message, as the kernel has it

// One message. False: it did not go (with MSG_DONTWAIT: the queue is full).
inline bool send_with(int socket, Bytes message, std::span<const int> fds, int flags = 0) {
  iovec piece{const_cast<std::byte*>(message.data()), message.size()};
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kDescriptorsMax * sizeof(int))> control{};
  LK_CHECK(fds.size() <= kDescriptorsMax);
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  return ::sendmsg(socket, &header, MSG_NOSIGNAL | flags) == static_cast<ssize_t>(message.size());
}

// Memory of this size, zeros, with these seals.
inline mount::UniqueFd memory_file(std::size_t size, int seals) {
  mount::UniqueFd fd(::memfd_create("key", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  LK_CHECK(::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  LK_CHECK(seals == 0 || ::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

// As a key may be brought.
inline mount::UniqueFd sealed_memory(std::size_t size) {
  return memory_file(size, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
}

}  // namespace latchkey::tests
