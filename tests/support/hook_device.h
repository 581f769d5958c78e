#pragma once
// A device that calls a test's hook for each op before the op is queued, in the thread that submits
// it: the moment is exact, and what the hook does comes before the op. A hook that uses the volume
// must not need a lock of the operation that it interrupts; while it runs no other op calls it. It
// stands for another thread, so the sections that this one is inside of do not bind it (T3).

#include <atomic>
#include <functional>
#include <utility>

#include "base/no_wait.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {

class HookDevice final : public engine::Device {
 public:
  explicit HookDevice(engine::Device& device) : device_(device) {}

  // Before each op from now on. Set while no op is under way.
  std::function<void(const engine::Op& op)> hook;

  // Once, before the next op of this kind.
  void at_next(engine::OpKind kind, std::function<void()> call) {
    hook = [kind, call = std::move(call), done = false](const engine::Op& op) mutable {
      if (op.kind == kind && !std::exchange(done, true)) call();
    };
  }

  const engine::DeviceInfo& info() const override { return device_.info(); }
  Result<std::unique_ptr<engine::Io>> make_io(const engine::IoOptions& options) override {
    LK_TRY(auto io, device_.make_io(options));
    return std::make_unique<HookIo>(*this, std::move(io));
  }

 private:
  class HookIo final : public engine::Io {
   public:
    HookIo(HookDevice& device, std::unique_ptr<engine::Io> io)
        : device_(device), io_(std::move(io)) {}
    void submit(engine::Op& op) override {
      device_.call(op);
      io_->submit(op);
    }
    Result<u32> tick(u32 wait_min) override { return io_->tick(wait_min); }
    u32 pending() const override { return io_->pending(); }
    MutableBytes buffer() override { return io_->buffer(); }

   private:
    HookDevice& device_;
    std::unique_ptr<engine::Io> io_;
  };

  void call(const engine::Op& op) {
    if (!hook || busy_.exchange(true)) return;
    const u32 depth = std::exchange(no_wait_depth, 0);
    hook(op);
    LK_CHECK(std::exchange(no_wait_depth, depth) == 0);
    busy_ = false;
  }

  engine::Device& device_;
  std::atomic<bool> busy_{false};
};

}  // namespace latchkey::tests
