#pragma once
// A device in memory that keeps metadata and drops file data, for stores that are larger than the
// machine: a 4 KiB block that equals `dropped` takes one bit, and reads back as it was written.
//
// File data is such a block only where the cipher is replaced by a copy (clear_cipher). Address
// space is reserved for the whole device, memory is used for what is kept. Thread-safe as far as
// the contract goes (engine/io.h): each Io has one thread, and no two write one block at a time.

#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/io.h"
#include "engine/io_buffer.h"

namespace latchkey::bench {

class MemoryDevice final : public engine::Device {
 public:
  static Result<std::unique_ptr<MemoryDevice>> create(u64 size, Bytes dropped) {
    void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return fail_os(Errc::no_memory, errno, "no address space");
    return std::unique_ptr<MemoryDevice>(
        new MemoryDevice(static_cast<std::byte*>(memory), size, dropped));
  }
  MemoryDevice(const MemoryDevice&) = delete;
  MemoryDevice& operator=(const MemoryDevice&) = delete;
  ~MemoryDevice() override { ::munmap(memory_, info_.size_bytes); }

  const engine::DeviceInfo& info() const override { return info_; }
  Result<std::unique_ptr<engine::Io>> make_io(const engine::IoOptions& options) override {
    LK_TRY(auto buffer, engine::IoBuffer::create(options.buffer_bytes));
    return std::make_unique<MemoryIo>(*this, std::move(buffer));
  }
  u64 bytes_written() const { return written_; }

 private:
  static constexpr u64 kBlock = engine::kIoAlign;
  enum class Kept : u8 { nothing, bytes, dropped };

  class MemoryIo final : public engine::Io {
   public:
    MemoryIo(MemoryDevice& device, engine::IoBuffer buffer)
        : device_(device), buffer_(std::move(buffer)) {}
    void submit(engine::Op& op) override {
      engine::check_op(op);
      queue_.push_back(&op);
    }
    Result<u32> tick(u32) override {
      std::vector<engine::Op*> now;
      now.swap(queue_);
      for (engine::Op* op : now) {
        op->result = device_.perform(*op);
        op->done(*op);
      }
      return static_cast<u32>(now.size());
    }
    u32 pending() const override { return static_cast<u32>(queue_.size()); }
    MutableBytes buffer() override { return buffer_.bytes(); }

   private:
    MemoryDevice& device_;
    engine::IoBuffer buffer_;
    std::vector<engine::Op*> queue_;
  };

  MemoryDevice(std::byte* memory, u64 size, Bytes dropped)
      : memory_(memory),
        dropped_(dropped.begin(), dropped.end()),
        blocks_(size / kBlock, Kept::nothing) {
    info_.size_bytes = size / kBlock * kBlock;
    info_.kind = "memory";
    info_.path = "memory";
  }

  i64 perform(engine::Op& op) {
    if (op.kind == engine::OpKind::flush || op.kind == engine::OpKind::discard) return 0;
    if (op.offset + op.data.size() > info_.size_bytes) return -EIO;
    for (u64 at = 0; at < op.data.size(); at += kBlock) {
      const MutableBytes data = op.data.subspan(at, kBlock);
      if (op.kind == engine::OpKind::read)
        read(op.offset + at, data);
      else
        write(op.offset + at, data);
    }
    if (op.kind == engine::OpKind::write) written_ += op.data.size();
    return static_cast<i64>(op.data.size());
  }
  void read(u64 offset, MutableBytes into) const {
    const bool dropped = blocks_[offset / kBlock] == Kept::dropped;
    std::memcpy(into.data(), dropped ? dropped_.data() : memory_ + offset, kBlock);
  }
  void write(u64 offset, Bytes from) {
    Kept& kept = blocks_[offset / kBlock];
    if (std::memcmp(from.data(), dropped_.data(), kBlock) != 0) {
      std::memcpy(memory_ + offset, from.data(), kBlock);
      kept = Kept::bytes;
      return;
    }
    if (kept == Kept::bytes) ::madvise(memory_ + offset, kBlock, MADV_DONTNEED);
    kept = Kept::dropped;
  }

  std::byte* const memory_;
  const std::vector<std::byte> dropped_;
  std::vector<Kept> blocks_;
  engine::DeviceInfo info_;
  std::atomic<u64> written_{0};
};

}  // namespace latchkey::bench
