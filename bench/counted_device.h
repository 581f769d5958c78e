#pragma once
// A device that counts what is written to it.

#include <atomic>
#include <memory>
#include <utility>

#include "engine/io.h"

namespace latchkey::bench {

class CountedDevice final : public engine::Device {
 public:
  explicit CountedDevice(std::unique_ptr<engine::Device> device) : device_(std::move(device)) {}

  const engine::DeviceInfo& info() const override { return device_->info(); }
  Result<std::unique_ptr<engine::Io>> make_io(const engine::IoOptions& options) override {
    LK_TRY(auto io, device_->make_io(options));
    return std::make_unique<CountedIo>(*this, std::move(io));
  }
  u64 bytes_written() const { return bytes_written_.load(std::memory_order_relaxed); }

 private:
  class CountedIo final : public engine::Io {
   public:
    CountedIo(CountedDevice& device, std::unique_ptr<engine::Io> io)
        : device_(device), io_(std::move(io)) {}
    void submit(engine::Op& op) override {
      if (op.kind == engine::OpKind::write)
        device_.bytes_written_.fetch_add(op.data.size(), std::memory_order_relaxed);
      io_->submit(op);
    }
    Result<u32> tick(u32 wait_min) override { return io_->tick(wait_min); }
    u32 pending() const override { return io_->pending(); }
    MutableBytes buffer() override { return io_->buffer(); }

   private:
    CountedDevice& device_;
    std::unique_ptr<engine::Io> io_;
  };

  std::unique_ptr<engine::Device> device_;
  std::atomic<u64> bytes_written_{0};
};

}  // namespace latchkey::bench
