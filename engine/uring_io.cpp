#include "engine/uring_io.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/wait.h"

namespace latchkey::engine {
namespace {

constexpr u64 kTransferMax = kGiB;  // one system call moves at most 2 GiB - 4 KiB
constexpr u32 kPauses = 20;
constexpr u64 kPauseNs = 25'000'000;
constexpr u32 kDepthMin = 4, kDepthMax = 4096;
constexpr u32 kRetriesMax = 1000;      // of one Op without progress
constexpr u32 kShortagesMax = 10'000;  // of a millisecond each, in one tick()

// A new ring may be mapped where an old one was unmapped by another thread. The kernel orders the
// two; thread sanitizers do not see its mappings, so destruction releases here and creation
// acquires.
std::atomic<u32> g_ring_mappings{0};
void order_ring_mappings() { g_ring_mappings.fetch_add(1, std::memory_order_acq_rel); }

u64& bytes_done(Op& op) { return op.io_private[1]; }
u64& retries(Op& op) { return op.io_private[2]; }

}  // namespace

void UringIo::Queue::push_back(Op& op) {
  op.io_private[0] = 0;
  if (tail_ == nullptr) {
    head_ = &op;
  } else {
    tail_->io_private[0] = reinterpret_cast<std::uintptr_t>(&op);
  }
  tail_ = &op;
}

void UringIo::Queue::push_front(Op& op) {
  op.io_private[0] = reinterpret_cast<std::uintptr_t>(head_);
  head_ = &op;
  if (tail_ == nullptr) tail_ = &op;
}

Op& UringIo::Queue::pop_front() {
  Op& op = *head_;
  head_ = reinterpret_cast<Op*>(op.io_private[0]);
  if (head_ == nullptr) tail_ = nullptr;
  return op;
}

Result<std::unique_ptr<UringIo>> UringIo::create(const UringTarget& target,
                                                 const IoOptions& options) {
  std::unique_ptr<UringIo> io(new UringIo(target));
  LK_TRY(io->buffer_, IoBuffer::create(options.buffer_bytes));
  LK_TRYV(io->set_up(options));
  io->register_resources(options.register_buffer);
  return io;
}

// What the kernel answered to a ring of depth_ in the best of the ways that it knows.
int UringIo::set_up_ring(bool single_thread) {
  constexpr u32 kDeferred =
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_R_DISABLED;
  constexpr std::array<u32, 3> kFlags = {kDeferred, IORING_SETUP_COOP_TASKRUN, 0};
  int refused = EINVAL;
  for (std::size_t i = single_thread ? 0 : 2; i < kFlags.size() && refused == EINVAL; ++i) {
    io_uring_params params{};
    params.flags = kFlags[i];
    refused = -::io_uring_queue_init_params(depth_, &ring_, &params);
    status_.deferred_taskrun = refused == 0 && kFlags[i] == kDeferred;
  }
  return refused;
}

Result<void> UringIo::set_up(const IoOptions& options) {
  depth_ = std::clamp(options.queue_depth, u32{1}, kDepthMax);
  int refused = set_up_ring(options.single_thread);
  // Rings count against the lock limit of the user: a shorter one is better than none.
  for (; refused == ENOMEM && depth_ > kDepthMin; refused = set_up_ring(options.single_thread))
    depth_ = std::max(depth_ / 2, kDepthMin);
  // The kernel takes the rings of processes that ended apart a little later.
  for (u32 i = 0; refused == ENOMEM && i < kPauses; ++i) {
    pause_for(kPauseNs);
    refused = set_up_ring(options.single_thread);
  }
  if (refused == ENOMEM) {
    return fail_os(Errc::no_memory, refused, "no memory that may be locked is left for io_uring");
  }
  if (refused == EMFILE || refused == ENFILE) {
    return fail_os(Errc::no_memory, refused, "no descriptor is left for io_uring");
  }
  if (refused != 0) {
    return fail_os(Errc::unavailable, refused, "the kernel refuses io_uring to this process");
  }
  ring_open_ = true;
  disabled_ = status_.deferred_taskrun;
  order_ring_mappings();
  return {};
}

// Both are accelerations, so a refusal is not an error.
void UringIo::register_resources(bool buffer) {
  status_.file_registered = ::io_uring_register_files(&ring_, &target_.fd, 1) == 0;
  if (!buffer || buffer_.bytes().empty()) return;
  const iovec vec{buffer_.bytes().data(), buffer_.bytes().size()};
  status_.buffer_errno = -::io_uring_register_buffers(&ring_, &vec, 1);
  status_.buffer_registered = status_.buffer_errno == 0;
}

UringIo::~UringIo() {
  LK_CHECK_MSG(pending_ == 0 || broken_, "an Io is destroyed only when no Op is pending");
  if (!ring_open_) return;
  // The kernel takes a closed ring apart later; until then what is registered keeps the device open
  // and counts against the lock limit. A ring of another thread refuses this, and takes its time.
  if (status_.file_registered) (void)::io_uring_unregister_files(&ring_);
  if (status_.buffer_registered) (void)::io_uring_unregister_buffers(&ring_);
  order_ring_mappings();
  ::io_uring_queue_exit(&ring_);
  if (pending_ != 0) buffer_.leak();
}

void UringIo::submit(Op& op) {
  check_op(op);
  op.result = refusal_of(op);
  bytes_done(op) = 0;
  retries(op) = 0;
  ++pending_;
  const bool empty = (op.kind == OpKind::read || op.kind == OpKind::write) && op.data.empty();
  if (op.result != 0 || empty) {
    refused_.push_back(op);
  } else {
    backlog_.push_back(op);
  }
}

// The kernel would make a file longer where a device says no, so the end is checked here.
i64 UringIo::refusal_of(const Op& op) const {
  if (op.kind == OpKind::flush) return 0;
  if (op.kind != OpKind::read && target_.read_only) return -EROFS;
  const u64 size = op.kind == OpKind::discard ? op.discard_size : op.data.size();
  const bool inside = op.offset <= target_.size_bytes && size <= target_.size_bytes - op.offset;
  return inside ? 0 : -EIO;
}

Result<u32> UringIo::tick(u32 wait_min) {
  LK_CHECK_MSG(!ticking_, "tick() is not called from done()");
  if (broken_) return fail(Errc::io, "the ring is broken");
  ticking_ = true;
  u32 ran = 0;
  do {
    ran += run_refused();
    if (wait_min > ran && run_lone_flush()) {
      ++ran;
      continue;
    }
    start_backlog();
    const u32 wanted = ran < wait_min ? std::min(wait_min - ran, in_flight_) : 0;
    if (auto entered = enter(wanted); !entered) {
      ticking_ = false;
      broken_ = true;
      return std::unexpected(entered.error());
    }
    ran += reap();
  } while (ran < wait_min && pending_ != 0);
  ticking_ = false;
  return ran;
}

// A ring hands each flush to a thread of the kernel's (io_uring/sync.c: forced async). Who waits
// for nothing else flushes without one, and saves two switches between threads.
bool UringIo::run_lone_flush() {
  if (in_flight_ != 0 || !backlog_.holds_one()) return false;
  Op& op = backlog_.pop_front();
  if (op.kind != OpKind::flush) {
    backlog_.push_front(op);
    return false;
  }
  if (!settle(op, ::fdatasync(target_.fd) == 0 ? 0 : -errno)) return false;
  finish(op);
  return true;
}

void UringIo::start_backlog() {
  while (!backlog_.empty() && in_flight_ < depth_) {
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return;  // the kernel has not taken the earlier ones
    prepare(*sqe, backlog_.pop_front());
    ++in_flight_;
  }
}

void UringIo::prepare(io_uring_sqe& sqe, Op& op) const {
  const int fd = status_.file_registered ? 0 : target_.fd;
  const MutableBytes rest = op.data.subspan(bytes_done(op));
  const auto size = static_cast<u32>(std::min<u64>(rest.size(), kTransferMax));
  const u64 offset = op.offset + bytes_done(op);
  const bool fixed = status_.buffer_registered && buffer_.contains(rest);
  switch (op.kind) {
    case OpKind::read:
      if (fixed) {
        ::io_uring_prep_read_fixed(&sqe, fd, rest.data(), size, offset, 0);
      } else {
        ::io_uring_prep_read(&sqe, fd, rest.data(), size, offset);
      }
      break;
    case OpKind::write:
      if (fixed) {
        ::io_uring_prep_write_fixed(&sqe, fd, rest.data(), size, offset, 0);
      } else {
        ::io_uring_prep_write(&sqe, fd, rest.data(), size, offset);
      }
      break;
    case OpKind::flush:
      ::io_uring_prep_fsync(&sqe, fd, IORING_FSYNC_DATASYNC);
      break;
    case OpKind::discard:  // a block device turns this into zeroes with unmap, asynchronously
      ::io_uring_prep_fallocate(&sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                static_cast<off_t>(op.offset), static_cast<off_t>(op.discard_size));
      break;
  }
  if (status_.file_registered) sqe.flags |= IOSQE_FIXED_FILE;
  ::io_uring_sqe_set_data(&sqe, &op);
}

// Gives the kernel what is prepared and waits until `wanted` completions can be reaped, or for less
// after a signal or a shortage: tick() goes round again.
Result<void> UringIo::enter(u32 wanted) {
  if (in_flight_ == 0) return {};
  if (disabled_) {
    // liburing 2.3 declares io_uring_enable_rings() and does not export it.
    if (::syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr,
                  0) != 0) {
      return fail_os(Errc::io, errno, "the ring cannot be enabled");
    }
    disabled_ = false;
  }
  for (u32 attempt = 0;; ++attempt) {
    const bool submits = ::io_uring_sq_ready(&ring_) != 0;
    if (!submits && ::io_uring_cq_ready(&ring_) >= std::max(wanted, u32{1})) return {};
    if (!submits && wanted == 0 && !status_.deferred_taskrun) return {};
    const int entered = wanted != 0 ? ::io_uring_submit_and_wait(&ring_, wanted)
                                    : ::io_uring_submit_and_get_events(&ring_);
    if (entered >= 0) return {};
    LK_CHECK_MSG(entered != -EEXIST, "an Io with single_thread is ticked by one thread");
    if (entered == -EINTR) continue;
    if (entered != -EAGAIN && entered != -EBUSY) {
      return fail_os(Errc::io, -entered, "io_uring_enter failed");
    }
    if (::io_uring_cq_ready(&ring_) != 0) return {};
    if (wanted == 0) return {};
    LK_TRYV(wait_out_shortage(attempt));
    if (::io_uring_cq_ready(&ring_) != 0) return {};
  }
}

// The kernel has no memory for another request: one that it holds will free some; if it holds none,
// time will.
Result<void> UringIo::wait_out_shortage(u32 attempt) {
  if (attempt >= kShortagesMax) return fail_os(Errc::io, EAGAIN, "the kernel takes no requests");
  if (in_flight_ > ::io_uring_sq_ready(&ring_)) {
    io_uring_cqe* cqe = nullptr;
    const int waited = ::io_uring_wait_cqe(&ring_, &cqe);
    if (waited != 0 && waited != -EINTR && waited != -EAGAIN) {
      return fail_os(Errc::io, -waited, "io_uring_enter failed");
    }
    return {};
  }
  pause_for(1'000'000);
  return {};
}

u32 UringIo::run_refused() {
  Queue batch = std::exchange(refused_, Queue{});  // done() may queue more
  u32 ran = 0;
  for (; !batch.empty(); ++ran) finish(batch.pop_front());
  return ran;
}

u32 UringIo::reap() {
  struct Completion {
    Op* op;
    i32 result;
  };
  std::array<io_uring_cqe*, 64> entries;
  std::array<Completion, 64> batch;
  u32 ran = 0;
  while (in_flight_ != 0) {
    const u32 count = ::io_uring_peek_batch_cqe(&ring_, entries.data(), entries.size());
    if (count == 0) break;
    for (u32 i = 0; i < count; ++i) {
      batch[i] = {static_cast<Op*>(::io_uring_cqe_get_data(entries[i])), entries[i]->res};
    }
    ::io_uring_cq_advance(&ring_, count);
    LK_CHECK(count <= in_flight_);
    in_flight_ -= count;
    for (u32 i = 0; i < count; ++i) {
      if (!settle(*batch[i].op, batch[i].result)) continue;
      finish(*batch[i].op);
      ++ran;
    }
  }
  return ran;
}

// True when `op` is over; else it is back in the queue, for the rest of a short transfer or again.
bool UringIo::settle(Op& op, i32 result) {
  const bool transfer = op.kind == OpKind::read || op.kind == OpKind::write;
  // Nobody here cancels: signals kept the kernel from making a worker for it (io_uring/io-wq.c).
  const bool again = result == -EINTR || result == -EAGAIN || result == -ECANCELED;
  if (!again && (!transfer || result < 0)) {
    op.result = result;
    return true;
  }
  // After a short transfer O_DIRECT wants an aligned rest, so a part of a block is moved again.
  const u64 before = bytes_done(op);
  if (!again) {
    if (result == 0) {  // the device ends here, whatever it said when it was opened
      op.result = -EIO;
      return true;
    }
    bytes_done(op) += static_cast<u32>(result);
    LK_CHECK(bytes_done(op) <= op.data.size());
    if (bytes_done(op) == op.data.size()) {
      op.result = static_cast<i64>(op.data.size());
      return true;
    }
    bytes_done(op) -= bytes_done(op) % kIoAlign;
  }
  if (bytes_done(op) == before && ++retries(op) > kRetriesMax) {
    op.result = again ? result : -EIO;
    return true;
  }
  backlog_.push_front(op);
  return false;
}

void UringIo::finish(Op& op) {
  --pending_;
  op.done(op);  // the Op is the submitter's again: not to be touched after this
}

}  // namespace latchkey::engine
