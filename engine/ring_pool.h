#pragma once
// Rings that threads take turns with. What take_or_make() has made stays.
//
// Lock order: a leaf. take() waits for a ring, so whoever holds one must not take another of the
// same pool.

#include <memory>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "engine/io.h"

namespace latchkey::engine {

class RingPool {
 public:
  void add(std::unique_ptr<Io> io) LK_EXCLUDES(mutex_) {
    Lock lock(mutex_);
    idle_.push_back(io.get());
    rings_.push_back(std::move(io));
  }
  Io* take() LK_EXCLUDES(mutex_) {
    Lock lock(mutex_);
    return take_idle();
  }
  // Up to `most` are made, as `make` says, before anybody waits. There is one from the start.
  template <class Make>
  Io* take_or_make(u32 most, const Make& make) LK_EXCLUDES(mutex_) {
    {
      Lock lock(mutex_);
      if (!idle_.empty() || rings_.size() >= most) return take_idle();
    }
    auto made = make();
    Lock lock(mutex_);
    if (!made || rings_.size() >= most) return take_idle();
    rings_.push_back(std::move(*made));
    return rings_.back().get();
  }
  void give_back(Io* io) LK_EXCLUDES(mutex_) {
    Lock lock(mutex_);
    idle_.push_back(io);
    free_.notify_one();
  }

 private:
  Io* take_idle() LK_REQUIRES(mutex_) {
    while (idle_.empty()) free_.wait(mutex_);
    Io* io = idle_.back();
    idle_.pop_back();
    return io;
  }

  Mutex mutex_;
  CondVar free_;
  std::vector<std::unique_ptr<Io>> rings_ LK_GUARDED_BY(mutex_);
  std::vector<Io*> idle_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::engine
