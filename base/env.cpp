#include "base/env.h"

#include <sys/random.h>
#include <time.h>

#include <cerrno>

#include "base/check.h"

namespace latchkey {
namespace {

u64 clock_ns(clockid_t clock) {
  timespec now{};
  LK_CHECK(clock_gettime(clock, &now) == 0);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

class SystemEnv final : public Env {
 public:
  u64 monotonic_ns() override { return clock_ns(CLOCK_MONOTONIC); }
  u64 realtime_ns() override { return clock_ns(CLOCK_REALTIME); }
  u64 boottime_ns() override { return clock_ns(CLOCK_BOOTTIME); }
  void random(MutableBytes bytes) override {
    while (!bytes.empty()) {
      const ssize_t count = getrandom(bytes.data(), bytes.size(), 0);
      if (count < 0 && errno == EINTR) continue;
      LK_CHECK_MSG(count > 0, "the kernel gives no random bytes");
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
  }
};

}  // namespace

Env& system_env() {
  static SystemEnv env;
  return env;
}

}  // namespace latchkey
