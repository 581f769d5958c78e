#pragma once
// Sections inside which a thread does not wait for others' progress (design T3): a pass of a key's
// gate, a use of a key, a View or Transaction of the store. Who waits inside for the dirty limit,
// for space, for a commit or for another key may wait for one who waits for that section's end.
//
// A depth for each thread; a section ends in the thread that began it.

#include "base/check.h"
#include "base/types.h"

namespace latchkey {

inline constinit thread_local u32 no_wait_depth = 0;

inline void begin_no_wait() { ++no_wait_depth; }

inline void end_no_wait() {
  LK_CHECK_MSG(no_wait_depth != 0, "a section without waits ends in another thread");
  --no_wait_depth;
}

// In every call that may wait in that way, also when this time it need not.
inline void check_may_wait() {
  LK_CHECK_MSG(no_wait_depth == 0, "a wait inside of a key's gate or a transaction");
}

}  // namespace latchkey
