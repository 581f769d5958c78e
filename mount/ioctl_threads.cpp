#include "mount/ioctl_threads.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "mount/companion.h"

namespace latchkey::mount {

struct IoctlThreads::Shared {
  struct Waiting {
    u32 uid = 0;
    Job job;
  };
  explicit Shared(const Limits& bounds) : limits(bounds) { running.reserve(bounds.of_all); }

  bool has_room(u32 uid) LK_REQUIRES(mutex_) {
    return running.size() < limits.of_all && std::ranges::count(running, uid) < limits.of_a_user;
  }
  void leave(u32 uid) LK_REQUIRES(mutex_) { running.erase(std::ranges::find(running, uid)); }
  // The thread of a job that has ended goes on with the first that may.
  std::optional<Waiting> next(u32 uid) {
    Lock lock(mutex_);
    leave(uid);
    auto at = waiting.begin();
    while (at != waiting.end() && !has_room(at->uid)) ++at;
    if (at == waiting.end()) return std::nullopt;
    Waiting taken = std::move(*at);
    waiting.erase(at);
    running.push_back(taken.uid);
    return taken;
  }

  const Limits limits;
  Mutex mutex_;
  CondVar idle;  // with mutex_: nobody acts
  bool stopped LK_GUARDED_BY(mutex_) = false;
  u32 acting LK_GUARDED_BY(mutex_) = 0;
  std::vector<u32> running LK_GUARDED_BY(mutex_);  // whose; there is memory for all
  std::deque<Waiting> waiting LK_GUARDED_BY(mutex_);
};

bool IoctlThreads::Turn::act() {
  Lock lock(shared_.mutex_);
  if (shared_.stopped || acts_) return acts_;
  ++shared_.acting;
  return acts_ = true;
}

IoctlThreads::Turn::~Turn() {
  if (!acts_) return;
  Lock lock(shared_.mutex_);
  if (--shared_.acting == 0) shared_.idle.notify_all();
}

IoctlThreads::IoctlThreads(const Limits& limits) : shared_(std::make_shared<Shared>(limits)) {}

IoctlThreads::~IoctlThreads() { stop(); }

void IoctlThreads::stop() {
  std::deque<Shared::Waiting> dropped;
  Lock lock(shared_->mutex_);
  shared_->stopped = true;
  dropped.swap(shared_->waiting);
  while (shared_->acting != 0) shared_->idle.wait(shared_->mutex_);
}

bool IoctlThreads::start(u32 uid, Job job) {
  {
    Lock lock(shared_->mutex_);
    if (shared_->stopped) return false;
    if (!shared_->has_room(uid)) {
      shared_->waiting.push_back({uid, std::move(job)});
      return true;
    }
    shared_->running.push_back(uid);
  }
  try {
    // A thread that may never end cannot be joined, so it is none of base/thread.h's.
    std::thread([shared = shared_, first = Shared::Waiting{uid, std::move(job)}]() mutable {
      be_ordinary();
      for (std::optional<Shared::Waiting> one(std::move(first)); one;) {
        {
          Turn turn(*shared);
          one->job(turn);
        }
        const u32 ended = one->uid;
        one.reset();
        one = shared->next(ended);
      }
    }).detach();
  } catch (const std::exception&) {
    Lock lock(shared_->mutex_);
    shared_->leave(uid);
    return false;
  }
  return true;
}

}  // namespace latchkey::mount
