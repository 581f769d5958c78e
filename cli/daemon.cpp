#include "cli/daemon.h"

#include <fcntl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>

namespace latchkey::cli {
namespace {

sigset_t stop_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&set, signal);
  return set;
}

}  // namespace

Exit wait_for_exit(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return Exit::io;
  if (WIFEXITED(status)) return static_cast<Exit>(WEXITSTATUS(status));
  (void)std::fprintf(stderr, "latchkey: the process was killed by signal %d\n", WTERMSIG(status));
  return Exit::io;
}

StopSignals::StopSignals() {
  const sigset_t set = stop_signals();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  fd_ = ::signalfd(-1, &set, SFD_CLOEXEC);
}

StopSignals::~StopSignals() {
  if (fd_ >= 0) ::close(fd_);
  const sigset_t set = stop_signals();
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

std::optional<Exit> Background::begin() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return Exit::io;
  const pid_t child = ::fork();
  if (child < 0) {
    std::perror("latchkey: no process can be started");
    ::close(ends[0]);
    ::close(ends[1]);
    return Exit::no_memory;
  }
  if (child == 0) {
    ::close(ends[0]);
    ready_fd_ = ends[1];
    ::setsid();
    return std::nullopt;
  }
  ::close(ends[1]);
  char word = 0;
  ssize_t got = 0;
  do {
    got = ::read(ends[0], &word, 1);
  } while (got < 0 && errno == EINTR);
  ::close(ends[0]);
  return got == 1 ? Exit::ok : wait_for_exit(child);
}

void Background::ready() {
  (void)std::fflush(stdout);
  if (ready_fd_ < 0) return;
  const char word = 1;
  (void)!::write(ready_fd_, &word, 1);
  ::close(std::exchange(ready_fd_, -1));
  detached_ = true;
  if (::chdir("/") != 0) return;
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return;
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, fd);
  ::close(null);
}

}  // namespace latchkey::cli
