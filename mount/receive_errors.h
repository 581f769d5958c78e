#pragma once
// What becomes of a thread that could not take a request from the kernel: what passes must not end
// a mount, and what does not pass must not spin.

#include <cerrno>

#include "base/types.h"

namespace latchkey::mount {

class ReceiveErrors {
 public:
  enum class Then : u8 {
    go_on,
    pause,  // for kPauseNs, then go on
    end,    // unmounted, or it does not pass
  };
  static constexpr u64 kPauseNs = 50'000'000;
  static constexpr u32 kInARowMax = 600;  // half a minute

  // `got`: as fuse_session_receive_buf() answers, nothing or minus an errno.
  Then after(int got) {
    if (got == 0 || got == -ENODEV) return Then::end;
    // A signal; the request was taken back by who had made it.
    if (got == -EINTR || got == -EAGAIN || got == -ENOENT) return Then::go_on;
    return ++in_a_row_ < kInARowMax ? Then::pause : Then::end;
  }
  void received() { in_a_row_ = 0; }

 private:
  u32 in_a_row_ = 0;
};

}  // namespace latchkey::mount
