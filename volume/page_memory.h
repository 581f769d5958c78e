#pragma once
// Memory of the page cache: at most so many pages, promised to a write before it dirties any, given
// back when they are clean. The bound on dirty memory (D6).
//
// Invariants
//   M1  pages that are out plus pages promised <= pages_max
//   M2  a page is zero when it is handed out: what is given back is wiped there and then
//
// Thread-safe. Lock: mutex_, a leaf. Memory comes from chunks that are kept until the end.

#include <span>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "engine/io_buffer.h"

namespace latchkey::volume {

inline constexpr u64 kPageBytes = 4096;

// Pages on their way back, linked through their own first bytes: who gives back needs no memory.
class PageList {
 public:
  bool empty() const { return first_ == nullptr; }
  void push(std::byte* page);
  std::byte* pop();  // its link is zeros

 private:
  std::byte* first_ = nullptr;
};

class PageMemory {
 public:
  explicit PageMemory(u64 pages_max);

  u64 pages_max() const { return pages_max_; }
  u64 used() const LK_EXCLUDES(mutex_);  // out or promised
  // So much is dirty that writeback begins, beside the writers: who then calls fsync finds little
  // left to be written. Much less, and pages that are soon written again would be sealed twice.
  bool pressing() const { return is_pressing(used()); }

  // False: there is no room now; a flush makes some. `pages` <= pages_max().
  bool promise(u64 pages) LK_EXCLUDES(mutex_);
  void unpromise(u64 pages) LK_EXCLUDES(mutex_);
  // So many of the promised pages. Stops the process when the machine has no memory at all.
  void take(u64 pages, std::vector<std::byte*>& into) LK_EXCLUDES(mutex_);
  // Pages that were written to, which it wipes, and pages that never were. Many in one call: who
  // waits for room is woken once. Not under a lock that a writer needs: wiping takes its time.
  void give_back(PageList pages) LK_EXCLUDES(mutex_);
  void give_back_unused(std::span<std::byte* const> pages) LK_EXCLUDES(mutex_);

  // For waits without a lost wake-up: read the count, look, wait for another count. Room counts
  // what was given back; pressure counts promises beyond what is pressing, refused ones, and kicks.
  u64 room_changes() const LK_EXCLUDES(mutex_);
  u64 pressure_changes() const LK_EXCLUDES(mutex_);
  // Outside of gates and transactions (T3).
  void wait_room(u64 seen, u64 timeout_ns) LK_EXCLUDES(mutex_);
  void wait_pressure(u64 seen, u64 timeout_ns) LK_EXCLUDES(mutex_);
  void kick() LK_EXCLUDES(mutex_);  // wakes both kinds of waiters

 private:
  bool is_pressing(u64 used) const { return used * 8 >= pages_max_; }
  void pressed() LK_REQUIRES(mutex_);
  void grow() LK_REQUIRES(mutex_);

  const u64 pages_max_;
  mutable Mutex mutex_;
  CondVar room_;
  CondVar pressure_;
  u64 used_ LK_GUARDED_BY(mutex_) = 0;
  u64 room_changes_ LK_GUARDED_BY(mutex_) = 0;
  u64 pressure_changes_ LK_GUARDED_BY(mutex_) = 0;
  std::vector<engine::IoBuffer> chunks_ LK_GUARDED_BY(mutex_);
  std::vector<std::byte*> free_ LK_GUARDED_BY(mutex_);
};

// Pages promised to one write; what it did not take goes back. Takes them a handful at a time.
class Room {
 public:
  Room() = default;
  Room(PageMemory& memory, u64 pages) : memory_(&memory), pages_(pages) {}
  Room(Room&& other) noexcept { *this = std::move(other); }
  Room& operator=(Room&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(pages_, other.pages_);
    std::swap(stock_, other.stock_);
    return *this;
  }
  ~Room() {
    if (!stock_.empty()) memory_->give_back_unused(stock_);
    if (pages_ != 0) memory_->unpromise(pages_);
  }
  std::byte* take();

 private:
  PageMemory* memory_ = nullptr;
  u64 pages_ = 0;                  // promised, not in stock
  std::vector<std::byte*> stock_;  // taken, not handed out
};

}  // namespace latchkey::volume
