#pragma once
// The bytes of a simulated device: 4 KiB pages that never change once made, shared between images.
// A copy costs eight bytes for each 256 KiB up to the last page, so each state of a crash test can
// keep an image. Pages never written read as zeros. Not thread-safe; copies are independent of each
// other.

#include <array>
#include <memory>
#include <vector>

#include "base/types.h"

namespace latchkey::tests {

inline constexpr u64 kSimPage = 4096;
using SimPage = std::array<std::byte, kSimPage>;
using SimPagePtr = std::shared_ptr<const SimPage>;  // null: zeros

class SimImage {
 public:
  SimPagePtr page(u64 index) const;
  void set_page(u64 index, SimPagePtr page);
  void clear_pages(u64 first, u64 count);

  // Any offset and size.
  void read(u64 offset, MutableBytes into) const;
  void write(u64 offset, Bytes from);

  u64 pages_in_use() const { return pages_in_use_; }
  bool operator==(const SimImage& other) const;  // by content

 private:
  static constexpr u64 kChunkPages = 64;
  using Chunk = std::array<SimPagePtr, kChunkPages>;

  std::vector<std::shared_ptr<const Chunk>> chunks_;
  u64 pages_in_use_ = 0;
};

// A page with these bytes; null when all are zero, so equal images have equal pages in use.
SimPagePtr make_sim_page(Bytes bytes);

}  // namespace latchkey::tests
