#pragma once
// A forked child of a session that does nothing: what lies in its memory can be looked at. One at a
// time; it ends with the next one, with this, and with the session.

#include <sys/types.h>

#include "base/result.h"

namespace latchkey::cli {

class SessionChild {
 public:
  SessionChild() = default;
  ~SessionChild() { end(); }
  SessionChild(const SessionChild&) = delete;
  SessionChild& operator=(const SessionChild&) = delete;

  Result<pid_t> start();

 private:
  void end();
  pid_t pid_ = -1;
};

}  // namespace latchkey::cli
