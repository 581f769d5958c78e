#pragma once
// Time and chance come in through here; nothing else calls the clock or getrandom.

#include "base/types.h"

namespace latchkey {

class Env {
 public:
  virtual ~Env() = default;
  virtual u64 monotonic_ns() = 0;
  virtual u64 realtime_ns() = 0;                        // since 1970
  virtual u64 boottime_ns() { return monotonic_ns(); }  // as /proc tells when a process began
  virtual void random(MutableBytes bytes) = 0;  // cryptographic; stops the process if it cannot
};

Env& system_env();  // the kernel's clock and getrandom

}  // namespace latchkey
