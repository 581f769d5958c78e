#pragma once
// Exit codes: stable, what scripts rely on (README, "Exit codes"). 1 to 5 as cryptsetup's.

#include "base/result.h"

namespace latchkey::cli {

enum class Exit : int {
  ok = 0,
  usage = 1,
  denied = 2,  // no permission, a key that does not fit the policy
  no_memory = 3,
  wrong_device = 4,  // wrong or absent device, not a latchkey store
  busy = 5,          // busy or exists
  no_key = 6,
  files_busy = 7,   // incompletely removed: files are open
  other_users = 8,  // still present: other users' claims
  integrity = 9,
  unavailable = 10,  // io_uring forbidden, a kernel feature missing, a removal mode not there yet
  io = 11,
  timed_out = 12,
  format = 13,  // too new or too old
  no_space = 14,
  nothing_exercised = 15,
};

// check answers with fsck's bits, whatever the error.
inline constexpr int kCheckCorrected = 1, kCheckErrorsLeft = 4;
inline constexpr int kCheckCouldNotLook = 8, kCheckUsage = 16;

Exit exit_for(const Error& error);

}  // namespace latchkey::cli
