#pragma once
// The threads that the project starts for itself: the kernel's, or fibers where a Scheduler is
// installed (base/wait.h).

#include <functional>
#include <thread>

#include "base/types.h"

namespace latchkey {

class Scheduler;

// Joined before it is destroyed. `body` throws nothing. Movable; not thread-safe.
class Thread {
 public:
  explicit Thread(std::function<void()> body);
  Thread(Thread&& other) noexcept;
  Thread& operator=(Thread&&) = delete;
  ~Thread();

  void join();

 private:
  Scheduler* scheduler_ = nullptr;  // whose fiber it is; null: the kernel's thread
  u64 fiber_ = 0;
  bool joined_ = false;
  std::thread thread_;
};

}  // namespace latchkey
