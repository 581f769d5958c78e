#pragma once
// A page of a file on the stack, whose plaintext does not outlive its scope however that is left.

#include <array>

#include "base/secret.h"
#include "volume/page_memory.h"

namespace latchkey::volume {

struct PageBuffer {
  alignas(64) std::array<std::byte, kPageBytes> bytes{};
  PageBuffer() = default;
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;
  ~PageBuffer() { wipe(bytes); }
};

}  // namespace latchkey::volume
