#pragma once
// How the daemon takes a message from a client.

#include "base/types.h"
#include "mount/fd_closer.h"

namespace latchkey::mount {

inline constexpr u32 kDescriptorsMax = 253;  // of one message: the kernel's SCM_MAX_FD

struct Received {
  bool message = false;
  bool gone = false;  // the other end; neither: there is nothing yet
  std::size_t size = 0;
  bool brings = false;  // descriptors that did not become ours
};

// The message at the front of the queue, which stays there. Its descriptors are not touched.
Received look_at_message(int socket, MutableBytes into);
// Takes that one, which brings no descriptors.
Received take_message(int socket, MutableBytes into);
// Takes it with all of its descriptors, for which `bag` has room. Those that find no room are
// closed by the kernel, in this thread.
Received take_message(int socket, MutableBytes into, FdCloser::Bag& bag);

}  // namespace latchkey::mount
