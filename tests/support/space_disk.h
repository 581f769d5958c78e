#pragma once
// A disk in memory for tests of free space alone: what its reader sees, and what a torn commit
// leaves.

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "engine/free_space.h"

namespace latchkey::tests {

// Holds the blocks that were written; others read as zeros.
class SpaceDisk {
 public:
  engine::FreeSpace::ReadBlock reader() {
    return [this](u64 block, MutableBytes into) -> Result<void> {
      ++reads;
      if (unreadable.contains(block)) return fail_os(Errc::io, 5, "the device refused a read");
      std::ranges::fill(into, std::byte{0});
      if (const auto it = blocks.find(block); it != blocks.end())
        std::ranges::copy(it->second, into.begin());
      return {};
    };
  }
  void write(const engine::FreeSpace::SlotWrite& write) { blocks[write.block] = write.image; }
  // In sectors of 512 bytes: some new, some as they were.
  void tear(const engine::FreeSpace::SlotWrite& write, std::mt19937_64& random) {
    auto& old = blocks[write.block];
    old.resize(engine::kBlockBytes);
    for (u64 at = 0; at < engine::kBlockBytes; at += 512)
      if (random() % 2 == 0) std::memcpy(old.data() + at, write.image.data() + at, 512);
  }
  void flip(u64 block) { blocks[block].at(100) ^= std::byte{4}; }

  std::map<u64, std::vector<std::byte>> blocks;
  std::set<u64> unreadable;
  u64 reads = 0;
};

// Places that others take on a device of that size, one of them across two regions.
inline std::vector<engine::BlockRun> space_places(u64 device_blocks) {
  std::vector<engine::BlockRun> runs = {{0, 1}, {device_blocks - 3, 1}};
  if (device_blocks > 2 * engine::kRegionBlocks) runs.push_back({engine::kRegionBlocks - 1, 2});
  return runs;
}

}  // namespace latchkey::tests
