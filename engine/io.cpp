#include "engine/io.h"

#include <cerrno>

#include "base/check.h"

namespace latchkey::engine {
namespace {

bool aligned(u64 value) { return value % kIoAlign == 0; }

// Runs `op` alone. The caller's Op lives on its stack, so a broken ring stops the process: the
// kernel may still write to that memory.
Result<void> run_alone(Io& io, Op& op) {
  LK_CHECK_MSG(io.pending() == 0, "a synchronous op needs an Io with nothing pending");
  bool finished = false;
  op.owner = &finished;
  op.done = [](Op& done_op) { *static_cast<bool*>(done_op.owner) = true; };
  io.submit(op);
  while (!finished) LK_CHECK_MSG(io.tick(1).has_value(), "the ring is broken");
  return result_of(op);
}

const char* failure_of(OpKind kind) {
  switch (kind) {
    case OpKind::read:
      return "reading the device failed";
    case OpKind::write:
      return "writing the device failed";
    case OpKind::flush:
      return "flushing the device failed";
    case OpKind::discard:
      return "discarding on the device failed";
  }
  return "";
}

}  // namespace

void check_op(const Op& op) {
  LK_CHECK_MSG(op.done != nullptr, "an Op needs done");
  if (op.kind == OpKind::flush) return;
  LK_CHECK_MSG(aligned(op.offset), "the offset of an Op is aligned");
  if (op.kind == OpKind::discard) {
    LK_CHECK_MSG(aligned(op.discard_size), "the size of an Op is aligned");
    return;
  }
  LK_CHECK_MSG(aligned(op.data.size()), "the size of an Op is aligned");
  LK_CHECK_MSG(aligned(reinterpret_cast<std::uintptr_t>(op.data.data())),
               "the memory of an Op is aligned");
}

Result<void> result_of(const Op& op) {
  if (op.result >= 0) return {};
  const auto os_errno = static_cast<i32>(-op.result);
  const char* what = failure_of(op.kind);
  const u64 at = op.kind == OpKind::flush ? kNowhere : op.offset;
  switch (os_errno) {
    case ENOSPC:
      return fail_os(Errc::no_space, os_errno, what, at);
    case EROFS:
      return fail_os(Errc::read_only, os_errno, what, at);
    case EOPNOTSUPP:
      return fail_os(Errc::unsupported, os_errno, what, at);
    case ENOMEM:
      return fail_os(Errc::no_memory, os_errno, what, at);
    default:
      return fail_os(Errc::io, os_errno, what, at);
  }
}

Result<void> read_sync(Io& io, u64 offset, MutableBytes into) {
  Op op;
  op.kind = OpKind::read;
  op.offset = offset;
  op.data = into;
  return run_alone(io, op);
}

Result<void> write_sync(Io& io, u64 offset, Bytes from) {
  Op op;
  op.kind = OpKind::write;
  op.offset = offset;
  op.data = {const_cast<std::byte*>(from.data()), from.size()};  // a write does not change it
  return run_alone(io, op);
}

Result<void> flush_sync(Io& io) {
  Op op;
  op.kind = OpKind::flush;
  return run_alone(io, op);
}

}  // namespace latchkey::engine
