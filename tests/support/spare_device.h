#pragma once
// A device whose own memory never fails: while a test counts and fails allocations, those below
// this are not among them. For one thread, whose flag says whether it counts.

#include <memory>

#include "engine/io.h"

namespace latchkey::tests {

class SpareDevice final : public engine::Device {
 public:
  SpareDevice(engine::Device& device, bool& counting) : device_(device), counting_(counting) {}
  const engine::DeviceInfo& info() const override { return device_.info(); }
  Result<std::unique_ptr<engine::Io>> make_io(const engine::IoOptions& options) override {
    const Pause pause(counting_);
    LK_TRY(auto io, device_.make_io(options));
    return std::make_unique<SpareIo>(std::move(io), counting_);
  }

 private:
  class Pause {
   public:
    explicit Pause(bool& counting) : counting_(counting), before_(counting) { counting = false; }
    ~Pause() { counting_ = before_; }
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    bool& counting_;
    const bool before_;
  };
  class SpareIo final : public engine::Io {
   public:
    SpareIo(std::unique_ptr<engine::Io> io, bool& counting)
        : io_(std::move(io)), counting_(counting) {}
    void submit(engine::Op& op) override {
      const Pause pause(counting_);
      io_->submit(op);
    }
    Result<u32> tick(u32 wait_min) override {
      const Pause pause(counting_);
      return io_->tick(wait_min);
    }
    u32 pending() const override { return io_->pending(); }
    MutableBytes buffer() override { return io_->buffer(); }

   private:
    std::unique_ptr<engine::Io> io_;
    bool& counting_;
  };
  engine::Device& device_;
  bool& counting_;
};

}  // namespace latchkey::tests
