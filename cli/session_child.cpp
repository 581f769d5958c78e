#include "cli/session_child.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace latchkey::cli {

// Between fork and its end the child calls what a signal handler may call, for others' locks may be
// held in it.
Result<pid_t> SessionChild::start() {
  end();
  const pid_t child = ::fork();
  if (child < 0) return fail_os(Errc::no_memory, errno, "no child can be made");
  if (child == 0) {
    (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)::close(STDIN_FILENO);
    (void)::close(STDOUT_FILENO);
    for (;;) (void)::pause();
  }
  pid_ = child;
  return child;
}

void SessionChild::end() {
  if (pid_ < 0) return;
  (void)::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

}  // namespace latchkey::cli
