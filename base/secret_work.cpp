#include "base/secret_work.h"

#include <sys/syscall.h>
#include <unistd.h>
#include <csignal>

#include "base/check.h"

namespace latchkey {
namespace {

constinit thread_local u64 signals_before = 0;

// The system call itself: pthread_sigmask() lets the C library's own signals through, whose
// handlers have frames, too (setuid() in a program with threads sends one to each).
void set_mask(const u64& mask, u64* before) {
  LK_CHECK(::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, before, sizeof mask) == 0);
}

}  // namespace

void block_signals() noexcept { set_mask(~u64{0}, &signals_before); }

void restore_signals() noexcept { set_mask(signals_before, nullptr); }

}  // namespace latchkey
