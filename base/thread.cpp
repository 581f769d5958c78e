#include "base/thread.h"

#include <utility>

#include "base/check.h"
#include "base/wait.h"

namespace latchkey {

Thread::Thread(std::function<void()> body) : scheduler_(installed_scheduler()) {
  if (scheduler_ != nullptr)
    fiber_ = scheduler_->start_thread(std::move(body));
  else
    thread_ = std::thread(std::move(body));
}

Thread::Thread(Thread&& other) noexcept
    : scheduler_(other.scheduler_),
      fiber_(other.fiber_),
      joined_(std::exchange(other.joined_, true)),
      thread_(std::move(other.thread_)) {}

Thread::~Thread() { LK_CHECK_MSG(joined_, "a thread is joined before its object goes"); }

void Thread::join() {
  LK_CHECK_MSG(!joined_, "a thread is joined once");
  joined_ = true;
  if (scheduler_ != nullptr)
    scheduler_->join_thread(fiber_);
  else
    thread_.join();
}

}  // namespace latchkey
