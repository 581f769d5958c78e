#pragma once
// One Io of a SimDevice. Ops take effect and complete in tick(), one after the other; with a clock
// in the order of their moments.

#include <vector>

#include "engine/io_buffer.h"
#include "tests/support/random.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {

// Memory for buffer(): kept when an Io goes, since a simulation opens a store thousands of times.
// Holds whatever it held.
Result<engine::IoBuffer> take_sim_buffer(u64 size_bytes);

class SimIo final : public engine::Io {
 public:
  SimIo(SimDevice& device, engine::IoBuffer buffer, u64 seed);
  ~SimIo() override;
  SimIo(const SimIo&) = delete;
  SimIo& operator=(const SimIo&) = delete;

  void submit(engine::Op& op) override;
  Result<u32> tick(u32 wait_min) override;
  u32 pending() const override { return static_cast<u32>(queue_.size()); }
  MutableBytes buffer() override { return buffer_.bytes(); }

 private:
  struct Queued {
    engine::Op* op;
    SimDevice::Stamp stamp;
    u64 moment_ns = 0;  // with a clock: when it takes effect
  };
  u64 choose_count(u32 wait_min);
  Queued take_one();
  void complete(const Queued& taken);
  u32 tick_without_clock(u32 wait_min);
  u32 tick_by_clock(u32 wait_min);

  SimDevice& device_;
  engine::IoBuffer buffer_;
  SplitMix64 random_;
  std::vector<Queued> queue_;
  bool ticking_ = false;
};

}  // namespace latchkey::tests
