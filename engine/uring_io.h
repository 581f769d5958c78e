#pragma once
// The Io contract on one io_uring.
//
// An Op waits in backlog_ until tick() finds a free place for it, so submit() makes no system call
// and a full submission queue is an ordinary state. The kernel never holds more than `queue_depth`
// Ops and its completion queue has twice as many places: it cannot overflow.
//
// Invariants
//   U1  pending_ == Ops in backlog_ + Ops in refused_ + in_flight_, while no done() runs
//   U2  in_flight_ <= depth_
//   U3  an Op in flight is named by the user_data of exactly one entry
//
// Rings: with `single_thread` SINGLE_ISSUER | DEFER_TASKRUN (6.1), else COOP_TASKRUN (5.19), else
// plain; without it always plain, because only then may threads take turns. A flush that a tick
// waits for alone goes past the ring, as a system call of that thread.
//
// Sources: io_uring_setup(2), io_uring_enter(2), io_uring_register(2).

#include <liburing.h>

#include <memory>

#include "engine/io.h"
#include "engine/io_buffer.h"

namespace latchkey::engine {

// What the ring works on; the fd is borrowed for the life of the Io.
struct UringTarget {
  int fd = -1;
  u64 size_bytes = 0;
  bool read_only = false;
};

// What the kernel granted; everything works without it, only slower.
struct UringStatus {
  bool buffer_registered = false;
  bool file_registered = false;
  bool deferred_taskrun = false;
  i32 buffer_errno = 0;  // why buffer() is not registered: ENOMEM is the lock limit
};

class UringIo final : public Io {
 public:
  // Errors: unavailable (io_uring_setup is refused, os_errno says why), no_memory.
  static Result<std::unique_ptr<UringIo>> create(const UringTarget& target,
                                                 const IoOptions& options);
  ~UringIo() override;
  UringIo(const UringIo&) = delete;
  UringIo& operator=(const UringIo&) = delete;

  void submit(Op& op) override;
  Result<u32> tick(u32 wait_min) override;
  u32 pending() const override { return pending_; }
  MutableBytes buffer() override { return buffer_.bytes(); }

  const UringStatus& status() const { return status_; }

 private:
  // Ops chained through io_private[0].
  class Queue {
   public:
    bool empty() const { return head_ == nullptr; }
    bool holds_one() const { return head_ != nullptr && head_ == tail_; }
    void push_back(Op& op);
    void push_front(Op& op);
    Op& pop_front();

   private:
    Op* head_ = nullptr;
    Op* tail_ = nullptr;
  };

  explicit UringIo(const UringTarget& target) : target_(target) {}
  Result<void> set_up(const IoOptions& options);
  int set_up_ring(bool single_thread);
  void register_resources(bool buffer);

  i64 refusal_of(const Op& op) const;
  bool run_lone_flush();
  void start_backlog();
  void prepare(io_uring_sqe& sqe, Op& op) const;
  Result<void> enter(u32 wanted);
  Result<void> wait_out_shortage(u32 attempt);
  u32 run_refused();
  u32 reap();
  bool settle(Op& op, i32 result);
  void finish(Op& op);

  UringTarget target_;
  IoBuffer buffer_;
  io_uring ring_{};
  bool ring_open_ = false;
  bool disabled_ =
      false;  // the thread of the first tick() enables the ring and so becomes its issuer
  bool ticking_ = false;
  bool broken_ = false;  // the ring failed; what is in flight stays the kernel's
  u32 depth_ = 0;
  u32 in_flight_ = 0;  // prepared for the kernel, not yet reaped
  u32 pending_ = 0;
  Queue backlog_;
  Queue refused_;  // result is set, the kernel never sees them
  UringStatus status_;
};

}  // namespace latchkey::engine
