#pragma once
// The Io contract. UringIo in production, SimIo in tests: the engine cannot tell which one it has.
//
//   - submit() queues. It does not block, does not fail and never calls done(); done() runs from
//     tick() only, so completions cannot recurse. submit() may be called from done().
//   - Ops complete in any order. Order comes from waiting for done(), durability from a flush whose
//     done() saw result 0: it covers every write whose done() ran before that flush was submitted.
//   - One thread at a time owns an Io. From submit() to done() the Op and its data belong to the
//   Io.
//   - result is the whole size or -errno: short transfers, interrupted calls and full queues are
//     handled inside. Past the end of the device read, write and discard are -EIO; a write to a
//     read-only device is -EROFS. After a failed write its range holds anything.
//   - tick() is not called from done(). A thread that has ticked stays alive while Ops are pending.
//   - An Io is destroyed before its Device and only when no Op is pending.

#include <memory>
#include <string>

#include "base/result.h"
#include "base/types.h"

namespace latchkey::engine {

inline constexpr u64 kIoAlign = 4096;  // offset, size and address of data are multiples

enum class OpKind : u8 { read, write, flush, discard };

struct Op {
  OpKind kind = OpKind::read;
  u64 offset = 0;          // bytes from the start of the device
  MutableBytes data = {};  // read and write; a write does not change it
  u64 discard_size = 0;    // discard: bytes, which nobody may read until they are written again
  i64 result = 0;          // set before done(): data.size() (flush, discard: 0) or -errno
  void (*done)(Op& op) = nullptr;
  void* owner = nullptr;   // the submitter's own
  u64 io_private[3] = {};  // the Io's own, from submit() to done()
};

class Io {
 public:
  virtual ~Io() = default;
  virtual void submit(Op& op) = 0;
  // Starts what is queued, waits until at least `wait_min` ops have completed (or nothing is
  // pending), runs their done() and returns how many ran. An error means that the ring itself is
  // broken, not that an op failed.
  virtual Result<u32> tick(u32 wait_min) = 0;
  // Ops submitted whose done() has not run.
  virtual u32 pending() const = 0;
  // Aligned memory that lives as long as the Io, registered with the kernel where the lock limit
  // allows it; ops whose data lies inside are the fast ones. Its use is the owner's affair.
  virtual MutableBytes buffer() = 0;
};

struct IoOptions {
  u32 queue_depth = 32;
  u64 buffer_bytes = 0;         // size of buffer(), a multiple of kIoAlign
  bool register_buffer = true;  // where the kernel lets us; it counts against the lock limit
  bool single_thread = false;   // only the thread of the first tick() ticks: SINGLE_ISSUER
};

struct DeviceInfo {
  u64 size_bytes = 0;  // rounded down to kIoAlign
  bool read_only = false;
  bool direct = false;  // O_DIRECT is in force; else buffered, and flush is fdatasync
  bool discard = false;
  std::string kind;  // "loop device", "block device", "file", "simulated"
  std::string path;
};

// A device that is open and exclusively ours. make_io() is thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  // Errc::unavailable when io_uring_setup is refused.
  virtual Result<std::unique_ptr<Io>> make_io(const IoOptions& options) = 0;
};

// What `op.result` means to a caller, after done(): io, no_space, read_only, unsupported,
// no_memory.
Result<void> result_of(const Op& op);

// For implementations, at submit(): stops the process unless offset, size and address are aligned
// and done is set.
void check_op(const Op& op);

// One op and wait for it; the Io must have nothing else pending.
Result<void> read_sync(Io& io, u64 offset, MutableBytes into);
Result<void> write_sync(Io& io, u64 offset, Bytes from);
Result<void> flush_sync(Io& io);

}  // namespace latchkey::engine
