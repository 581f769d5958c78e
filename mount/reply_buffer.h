#pragma once
// Where a thread opens what it replies to a read, straight from the ciphertext. Wiped behind each
// reply, so that no plaintext outlives its key here.

#include "base/types.h"

namespace latchkey::mount {

class ReplyBuffer {
 public:
  explicit ReplyBuffer(std::size_t size);
  ~ReplyBuffer();
  ReplyBuffer(const ReplyBuffer&) = delete;
  ReplyBuffer& operator=(const ReplyBuffer&) = delete;
  MutableBytes bytes() const { return bytes_; }

 private:
  MutableBytes bytes_;
};

}  // namespace latchkey::mount
