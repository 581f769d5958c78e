#pragma once
// Memory for I/O: page-aligned, zero, from 2 MiB on aligned to huge pages; not inherited by a fork,
// because a child's copy of pages that the kernel is writing to is worth nothing.

#include "base/result.h"
#include "base/types.h"

namespace latchkey::engine {

// Moves, is never copied.
class IoBuffer {
 public:
  // `size_bytes` is a multiple of kIoAlign; 0 makes an empty one. Errc::no_memory.
  static Result<IoBuffer> create(u64 size_bytes);

  IoBuffer() = default;
  IoBuffer(IoBuffer&& other) noexcept;
  IoBuffer& operator=(IoBuffer&& other) noexcept;
  IoBuffer(const IoBuffer&) = delete;
  IoBuffer& operator=(const IoBuffer&) = delete;
  ~IoBuffer();

  MutableBytes bytes() const { return bytes_; }
  bool contains(Bytes part) const;
  // Gives the memory up for good: the kernel may still be using it.
  void leak() { bytes_ = {}; }

 private:
  MutableBytes bytes_;
};

}  // namespace latchkey::engine
