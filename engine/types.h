#pragma once
// Words of the store: blocks, runs, keys of records, trees.

#include <array>
#include <compare>

#include "base/types.h"

namespace latchkey::engine {

inline constexpr u64 kBlockBytes = 4096;  // the unit of allocation, of checksums and of references

// A run of device blocks; device offset = block * kBlockBytes.
struct BlockRun {
  u64 block = 0;
  u32 count = 0;
  u64 end() const { return block + count; }
  bool operator==(const BlockRun&) const = default;
};

// How what is free hangs together. A run ends with its region, at 126 MiB.
struct FreeRuns {
  u64 runs = 0;
  u64 blocks = 0;
  u64 longest = 0;                  // blocks
  std::array<u64, 16> by_length{};  // runs of 2^i to 2^(i + 1) - 1 blocks
};

// Records are ordered by (object, type, offset). What they mean is the upper layers' affair.
struct Key {
  u64 object = 0;
  u8 type = 0;
  u64 offset = 0;
  auto operator<=>(const Key&) const = default;
};

// A quarter of a node, less what lets every split leave room for one more.
inline constexpr u32 record_bytes_max(u32 node_bytes) { return node_bytes / 4 - 64; }

using TreeId = u64;
inline constexpr TreeId kRootTree = 1;    // names the others; the superblock names it
inline constexpr TreeId kExtentTree = 2;  // the extent table, keyed by disk block
inline constexpr TreeId kKeyTree = 3;     // keys and protectors
inline constexpr TreeId kFirstSubvolume = 256;

// Subvolume trees may share nodes; the others never do.
inline constexpr bool is_subvolume(TreeId tree) { return tree >= kFirstSubvolume; }

}  // namespace latchkey::engine
