#pragma once
// Ctrl-C during a verb that writes: the verb stops between two writes, closes the store and then
// dies of the signal, as a shell expects. A second Ctrl-C kills at once, which the store survives
// like any crash.

namespace latchkey::cli {

// While one is alive SIGINT, SIGTERM and SIGHUP set a flag. Its destructor, if one of them came,
// lets it kill the process: the innermost object of a verb outlives what has to be closed.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
};

bool interrupted();

}  // namespace latchkey::cli
