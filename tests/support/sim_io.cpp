#include "tests/support/sim_io.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/mutex.h"

namespace latchkey::tests {

namespace {

class IdleBuffers {
 public:
  Result<engine::IoBuffer> take(u64 size_bytes) LK_EXCLUDES(mutex_) {
    {
      Lock lock(mutex_);
      const auto found = std::ranges::find_if(
          idle_, [&](const engine::IoBuffer& b) { return b.bytes().size() == size_bytes; });
      if (size_bytes != 0 && found != idle_.end()) {
        engine::IoBuffer buffer = std::move(*found);
        idle_.erase(found);
        return buffer;
      }
    }
    return engine::IoBuffer::create(size_bytes);
  }
  void give_back(engine::IoBuffer buffer) LK_EXCLUDES(mutex_) {
    Lock lock(mutex_);
    if (!buffer.bytes().empty() && idle_.size() < kIdleMax) idle_.push_back(std::move(buffer));
  }

 private:
  static constexpr std::size_t kIdleMax = 16;
  Mutex mutex_;
  std::vector<engine::IoBuffer> idle_ LK_GUARDED_BY(mutex_);
};

IdleBuffers& idle_buffers() {
  static IdleBuffers buffers;
  return buffers;
}

}  // namespace

Result<engine::IoBuffer> take_sim_buffer(u64 size_bytes) { return idle_buffers().take(size_bytes); }

SimIo::SimIo(SimDevice& device, engine::IoBuffer buffer, u64 seed)
    : device_(device), buffer_(std::move(buffer)), random_(seed) {}

SimIo::~SimIo() {
  LK_CHECK_MSG(queue_.empty(), "an Io is destroyed only when no Op is pending");
  idle_buffers().give_back(std::move(buffer_));
}

void SimIo::submit(engine::Op& op) {
  engine::check_op(op);
  Queued queued{&op, device_.stamp()};
  if (device_.config_.clock != nullptr) queued.moment_ns = device_.moment_of(op, random_);
  queue_.push_back(queued);
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

void SimIo::complete(const Queued& taken) {
  taken.op->result = device_.execute(*taken.op, taken.stamp, random_);
  taken.op->done(*taken.op);
}

Result<u32> SimIo::tick(u32 wait_min) {
  LK_CHECK_MSG(!ticking_, "tick() is not called from done()");
  ticking_ = true;
  const u32 ran =
      device_.config_.clock == nullptr ? tick_without_clock(wait_min) : tick_by_clock(wait_min);
  ticking_ = false;
  return ran;
}

u32 SimIo::tick_without_clock(u32 wait_min) {
  u32 ran = 0;
  // done() may submit more, which count towards wait_min.
  for (u64 left = choose_count(wait_min); !queue_.empty() && (left > 0 || ran < wait_min); ++ran) {
    if (left > 0) --left;
    complete(take_one());
  }
  return ran;
}

// What hangs when the power goes answers at once.
u32 SimIo::tick_by_clock(u32 wait_min) {
  SimClock& clock = *device_.config_.clock;
  u32 ran = 0;
  while (!queue_.empty()) {
    const u32 power = device_.power_changes_.load();
    const auto first = std::ranges::min_element(queue_, {}, &Queued::moment_ns);
    const u64 moment = first->moment_ns;
    if (moment <= clock.now_ns() || device_.power_off()) {
      const Queued taken = *first;
      queue_.erase(first);
      complete(taken);
      ++ran;
    } else if (ran < wait_min) {
      clock.sleep(device_.power_changes_, power, moment);
    } else {
      break;
    }
  }
  return ran;
}

}  // namespace latchkey::tests
