#pragma once
// A verb that goes on in the background: its parent answers for it until it is ready.

#include <sys/types.h>

#include <optional>

#include "cli/exit_codes.h"

namespace latchkey::cli {

// SIGINT, SIGTERM and SIGHUP as a descriptor that becomes readable, for this thread and those that
// it starts. Made before any of them.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
};

// The child's own exit code; io where a signal killed it.
Exit wait_for_exit(pid_t child);

class Background {
 public:
  // Forks, so before any thread and any secret. In the parent: the exit code that the child ended
  // with, or ok once it is ready. In the child: nothing.
  std::optional<Exit> begin();
  // The child lets its parent go; its standard descriptors lead nowhere from here on.
  void ready();
  bool active() const { return ready_fd_ >= 0 || detached_; }

 private:
  int ready_fd_ = -1;
  bool detached_ = false;
};

}  // namespace latchkey::cli
