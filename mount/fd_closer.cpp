#include "mount/fd_closer.h"

#include <map>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/mutex.h"

namespace latchkey::mount {

struct FdCloser::Shared {
  struct User {
    u32 bags = 0;  // that are still out
    bool at_work = false;
    u64 pending = 0;
    std::list<std::vector<int>> queue;
  };
  using Users = std::map<u32, User>;

  void forget_if_done(Users::iterator user) LK_REQUIRES(mutex_) {
    const User& state = user->second;
    if (state.bags != 0 || state.at_work || !state.queue.empty()) return;
    users_.erase(user);
  }
  void work(u32 uid) LK_EXCLUDES(mutex_);
  static void start_threads(const std::shared_ptr<Shared>& shared) LK_EXCLUDES(mutex_);

  mutable Mutex mutex_;
  Users users_ LK_GUARDED_BY(mutex_);
  u64 pending_ LK_GUARDED_BY(mutex_) = 0;
};

void FdCloser::Shared::work(u32 uid) {
  for (;;) {
    std::list<std::vector<int>> batch;
    {
      Lock lock(mutex_);
      const auto user = users_.find(uid);
      std::list<std::vector<int>>& queue = user->second.queue;
      if (queue.empty()) {
        user->second.at_work = false;
        return forget_if_done(user);
      }
      batch.splice(batch.begin(), queue, queue.begin());
    }
    for (const int fd : batch.front()) {
      ::close(fd);
      Lock lock(mutex_);
      --users_.find(uid)->second.pending;
      --pending_;
    }
  }
}

// A thread that may never end cannot be joined, so it is none of base/thread.h's. Where there is
// none to be had, the descriptors stay in the queue until the next ones come.
void FdCloser::Shared::start_threads(const std::shared_ptr<Shared>& shared) {
  Lock lock(shared->mutex_);
  for (auto& [uid, user] : shared->users_) {
    if (user.at_work || user.queue.empty()) continue;
    try {
      std::thread([shared, whose = uid] { shared->work(whose); }).detach();
      user.at_work = true;
    } catch (const std::system_error&) {
      return;
    } catch (const std::bad_alloc&) {
      return;
    }
  }
}

FdCloser::FdCloser() : shared_(std::make_shared<Shared>()) {}
FdCloser::~FdCloser() = default;

FdCloser::Bag FdCloser::bag(u32 uid, u32 count_max) {
  Bag bag;
  bag.list_.emplace_back().reserve(count_max);
  bag.uid_ = uid;
  Lock lock(shared_->mutex_);
  ++shared_->users_[uid].bags;
  bag.shared_ = shared_;
  return bag;
}

u64 FdCloser::pending(u32 uid) const {
  Lock lock(shared_->mutex_);
  const auto user = shared_->users_.find(uid);
  return user == shared_->users_.end() ? 0 : user->second.pending;
}

u64 FdCloser::pending() const {
  Lock lock(shared_->mutex_);
  return shared_->pending_;
}

FdCloser::Bag::Bag(Bag&& other) noexcept
    : shared_(std::move(other.shared_)), uid_(other.uid_), list_(std::move(other.list_)) {}

FdCloser::Bag& FdCloser::Bag::operator=(Bag&& other) noexcept {
  if (this == &other) return *this;
  hand_over();
  shared_ = std::move(other.shared_);
  uid_ = other.uid_;
  list_ = std::move(other.list_);
  return *this;
}

void FdCloser::Bag::belongs_to(u32 uid) {
  Lock lock(shared_->mutex_);
  ++shared_->users_[uid].bags;
  const auto before = shared_->users_.find(std::exchange(uid_, uid));
  --before->second.bags;
  shared_->forget_if_done(before);
}

void FdCloser::Bag::add(UniqueFd fd) noexcept {
  LK_CHECK(room() != 0);
  list_.front().push_back(fd.release());
}

u32 FdCloser::Bag::room() const {
  if (list_.empty()) return 0;
  return static_cast<u32>(list_.front().capacity() - list_.front().size());
}

std::span<const int> FdCloser::Bag::fds() const {
  if (list_.empty()) return {};
  return list_.front();
}

void FdCloser::Bag::close_here() {
  for (const int fd : fds()) ::close(fd);
  if (!list_.empty()) list_.front().clear();
  hand_over();
}

void FdCloser::Bag::hand_over() noexcept {
  const auto shared = std::exchange(shared_, nullptr);
  if (shared == nullptr) return;
  const u64 count = fds().size();
  {
    Lock lock(shared->mutex_);
    const auto user = shared->users_.find(uid_);
    --user->second.bags;
    if (count == 0) return shared->forget_if_done(user);
    user->second.pending += count;
    shared->pending_ += count;
    user->second.queue.splice(user->second.queue.end(), list_);
  }
  Shared::start_threads(shared);
}

}  // namespace latchkey::mount
