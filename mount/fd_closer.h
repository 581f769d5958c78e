#pragma once
// Closes descriptors that came from somebody else, by threads that nobody waits for: the last word
// of a close is the file's (a FUSE one is asked to flush, a socket may linger), and may never come.
// So is the closing of a socket in whose queue there are such descriptors, unread.
//
// Each user's are closed one behind the other by a thread of his own, which ends with the last of
// them: who brings one that is stuck has the others wait for it, and nobody else's.

#include <list>
#include <memory>
#include <span>
#include <vector>

#include "base/types.h"
#include "mount/unique_fd.h"

namespace latchkey::mount {

class FdCloser {
  struct Shared;

 public:
  // Descriptors on their way to be closed. It is made before they are taken, so that memory cannot
  // end with them in hand; what it still has when it goes is the closer's. Not thread-safe.
  class Bag {
   public:
    Bag() = default;
    Bag(Bag&& other) noexcept;
    Bag& operator=(Bag&& other) noexcept;
    ~Bag() { hand_over(); }

    void belongs_to(u32 uid);        // another user than was said first
    void add(UniqueFd fd) noexcept;  // there is room for it
    u32 room() const;
    std::span<const int> fds() const;
    void close_here();          // who knows that none of them can hang
    void hand_over() noexcept;  // to the closer; the bag is of no use any more

   private:
    friend class FdCloser;
    std::shared_ptr<Shared> shared_;
    u32 uid_ = 0;
    std::list<std::vector<int>> list_;  // one, or none: its node becomes the queue's
  };

  FdCloser();
  // What is stuck stays so, and its thread with it; the process's end sees to both.
  ~FdCloser();
  FdCloser(const FdCloser&) = delete;
  FdCloser& operator=(const FdCloser&) = delete;

  Bag bag(u32 uid, u32 count_max);
  u64 pending(u32 uid) const;  // of that user's, that are not closed yet
  u64 pending() const;         // of everybody's

 private:
  std::shared_ptr<Shared> shared_;
};

}  // namespace latchkey::mount
