#pragma once
// Threads for ioctls in which no thread that answers the kernel may wait: a removal, which takes
// pages back from the kernel, and a look into a caller's memory, which may never end (a page of it
// may be of a file whose file system does not answer).
//
// Each has a thread of its own, as many at a time as the limits say; the others wait their turn.

#include <functional>
#include <memory>

#include "base/types.h"

namespace latchkey::mount {

class IoctlThreads {
  struct Shared;

 public:
  struct Limits {
    u32 of_a_user = 4;
    u32 of_all = 64;
  };
  // What a job is given. Until act() has said true it touches nothing of the mount's, as it may be
  // all that is left.
  class Turn {
   public:
    explicit Turn(Shared& shared) : shared_(shared) {}
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn();
    // From here on stop() waits for the end of the job. False: it was called before.
    bool act();

   private:
    Shared& shared_;
    bool acts_ = false;
  };
  using Job = std::function<void(Turn&)>;  // throws nothing

  explicit IoctlThreads(const Limits& limits);
  ~IoctlThreads();  // stop()
  IoctlThreads(const IoctlThreads&) = delete;
  IoctlThreads& operator=(const IoctlThreads&) = delete;

  // False: stopped, or no thread can be started. May throw std::bad_alloc.
  bool start(u32 uid, Job job);
  // Who has not begun never does; who cannot end stays, and his thread with him.
  void stop();

 private:
  std::shared_ptr<Shared> shared_;
};

}  // namespace latchkey::mount
