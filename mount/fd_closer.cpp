#include "mount/fd_closer.h"

#include <system_error>
#include <thread>

namespace latchkey::mount {

struct FdCloser::Shared {
  mutable Mutex mutex_;
  std::map<u32, u32> pending LK_GUARDED_BY(mutex_);
};

FdCloser::FdCloser() : shared_(std::make_shared<Shared>()) {}
FdCloser::~FdCloser() = default;

// A thread that may never end cannot be joined, so it is none of base/thread.h's.
void FdCloser::close(u32 uid, UniqueFd fd) {
  {
    Lock lock(shared_->mutex_);
    ++shared_->pending[uid];
  }
  const int number = fd.release();
  try {
    std::thread([shared = shared_, uid, number] {
      ::close(number);
      Lock lock(shared->mutex_);
      if (--shared->pending[uid] == 0) shared->pending.erase(uid);
    }).detach();
  } catch (const std::system_error&) {
    return;  // it stays open and pending: the user gets no further one in before long
  }
}

u32 FdCloser::pending(u32 uid) const {
  Lock lock(shared_->mutex_);
  const auto at = shared_->pending.find(uid);
  return at == shared_->pending.end() ? 0 : at->second;
}

}  // namespace latchkey::mount
