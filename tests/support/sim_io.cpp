#include "tests/support/sim_io.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace latchkey::tests {

SimIo::SimIo(SimDevice& device, engine::IoBuffer buffer, u64 seed)
    : device_(device), buffer_(std::move(buffer)), random_(seed) {}

SimIo::~SimIo() { LK_CHECK_MSG(queue_.empty(), "an Io is destroyed only when no Op is pending"); }

void SimIo::submit(engine::Op& op) {
  engine::check_op(op);
  queue_.push_back({&op, device_.stamp()});
}

// Some of what is pending: a device answers when it likes.
u64 SimIo::choose_count(u32 wait_min) {
  const u64 pending = queue_.size();
  const u64 least = std::min<u64>(wait_min, pending);
  if (!device_.config_.shuffle) return pending;
  return least + random_() % (pending - least + 1);
}

SimIo::Queued SimIo::take_one() {
  const u64 index = device_.config_.shuffle ? random_() % queue_.size() : 0;
  const Queued taken = queue_[index];
  queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(index));
  return taken;
}

Result<u32> SimIo::tick(u32 wait_min) {
  LK_CHECK_MSG(!ticking_, "tick() is not called from done()");
  ticking_ = true;
  u32 ran = 0;
  // done() may submit more, which count towards wait_min.
  for (u64 left = choose_count(wait_min); !queue_.empty() && (left > 0 || ran < wait_min); ++ran) {
    if (left > 0) --left;
    const Queued taken = take_one();
    taken.op->result = device_.execute(*taken.op, taken.stamp, random_);
    taken.op->done(*taken.op);
  }
  ticking_ = false;
  return ran;
}

}  // namespace latchkey::tests
