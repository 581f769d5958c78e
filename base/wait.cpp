#include "base/wait.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "base/check.h"

namespace latchkey {
namespace {

static_assert(sizeof(std::atomic<u32>) == sizeof(u32) && std::atomic<u32>::is_always_lock_free,
              "a futex word is 32 bits without company");

// Acquire pairs with the release in install_scheduler: who sees the scheduler sees it whole.
std::atomic<Scheduler*> g_scheduler{nullptr};

long futex(std::atomic<u32>& word, int operation, u32 value, const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<u32*>(&word), operation | FUTEX_PRIVATE_FLAG, value,
                 timeout, nullptr, 0);
}

// The word may lie in memory that its owner has freed since: a Mutex may be destroyed by whoever
// takes it next. The kernel then finds nobody or wakes somebody for no reason; both are allowed.
void wake(std::atomic<u32>& word, u32 count_max) {
  if (Scheduler* scheduler = installed_scheduler()) {
    scheduler->wake(word, count_max);
    return;
  }
  futex(word, FUTEX_WAKE, count_max, nullptr);
}

}  // namespace

void install_scheduler(Scheduler* scheduler) {
  g_scheduler.store(scheduler, std::memory_order_release);
}

Scheduler* installed_scheduler() { return g_scheduler.load(std::memory_order_acquire); }

bool wait_on(std::atomic<u32>& word, u32 expected, u64 timeout_ns) {
  if (Scheduler* scheduler = installed_scheduler())
    return scheduler->wait_on(word, expected, timeout_ns);
  timespec timeout{};
  timeout.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000);
  timeout.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000);
  if (futex(word, FUTEX_WAIT, expected, timeout_ns == kForever ? nullptr : &timeout) == 0)
    return true;
  const int error = errno;
  LK_CHECK_MSG(error == EAGAIN || error == EINTR || error == ETIMEDOUT, "futex refused to wait");
  return error != ETIMEDOUT;
}

void pause_for(u64 duration_ns) {
  std::atomic<u32> nobody{0};
  while (wait_on(nobody, 0, duration_ns)) {
  }
}

void wake_one(std::atomic<u32>& word) { wake(word, 1); }

void wake_all(std::atomic<u32>& word) { wake(word, INT_MAX); }

}  // namespace latchkey
