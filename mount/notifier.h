#pragma once
// The one thread that takes pages back from the kernel. Taking them back waits for requests that
// hold them, and writes dirty ones down: so no thread that answers the kernel may do it, and no
// lock is held meanwhile.

#include <deque>
#include <functional>
#include <optional>
#include <set>
#include <span>

#include "base/mutex.h"
#include "base/thread.h"
#include "mount/fuse.h"
#include "mount/parked.h"

namespace latchkey::mount {

class Notifier {
 public:
  explicit Notifier(Parked& parked) : parked_(parked) {}
  ~Notifier() { stop(); }
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  void start(fuse_session* session);
  void stop();  // after all that was asked for

  // Returns when the kernel has written down and given back what it had of these nodes, but for
  // pages under parked requests. At once where nothing is mounted. Of how many nodes it was given
  // up, because pages came back as fast as they went: those are tried once more before long.
  u64 drop(std::span<const u64> nodes);
  // Before long; then `then` is called, by this thread.
  void drop_then(u64 node, PageRange range, std::function<void()> then);
  void drop_soon(u64 node);

 private:
  struct Batch {
    std::size_t left = 0;
    u64 given_up = 0;
  };
  struct Job {
    u64 node = 0;
    PageRange range = {};
    std::function<void()> then = {};
    Batch* batch = nullptr;
  };
  void run();
  std::optional<Job> next();
  void finish(const Job& job, bool gone);
  bool take_back(u64 node, PageRange whole);  // false: given up

  Parked& parked_;
  fuse_session* session_ = nullptr;
  std::optional<Thread> thread_;
  Mutex mutex_;
  CondVar changed_;  // with mutex_: a job came or is done
  bool running_ LK_GUARDED_BY(mutex_) = false;
  std::deque<Job> jobs_ LK_GUARDED_BY(mutex_);
  std::set<u64> soon_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::mount
