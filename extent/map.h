#pragma once
// A file's map: which disk blocks hold which blocks of the file. Entries name disk block and
// length, nothing else (S2): key, tweak and checksums are the extent table's. Holes have no entry.
// A promise is an entry without blocks: it reads as zeros, and the store keeps space for it.
//
// Pure functions over a few entries; the caller reads and writes the tree.

#include <vector>

#include "base/disk.h"
#include "base/result.h"
#include "base/types.h"

namespace latchkey::extent {

// Value of a map record; its key's offset is the file offset in bytes, a multiple of the block.
struct MapDisk {
  Le64 disk_block;
  Le32 blocks;
  Le32 flags;
};
LK_DISK_STRUCT(MapDisk, 16);
// disk_block is the tree in which the promise was made. In any other tree, a snapshot's, the entry
// is a hole.
inline constexpr u32 kMapPromised = 1;

// Blocks of 4096 everywhere below. Both indexes count blocks.
struct MapEntry {
  u64 file_block = 0;
  u64 disk_block = 0;  // of a promise: the tree that has it
  u32 blocks = 0;
  bool promised = false;
  u64 file_end() const { return file_block + blocks; }
  bool operator==(const MapEntry&) const = default;
};

struct FileRange {
  u64 first_block = 0;
  u64 blocks = 0;
  u64 end() const { return first_block + blocks; }
};

struct DiskRun {
  u64 block = 0;
  u32 blocks = 0;
  bool operator==(const DiskRun&) const = default;
};

struct EndedPromise {
  u64 tree = 0;
  u64 blocks = 0;
  bool operator==(const EndedPromise&) const = default;
};

// What must happen so that `range` of the file no longer refers to anything it referred to.
struct MapEdit {
  std::vector<u64> erase;        // file_block of records to erase; none of them is put
  std::vector<MapEntry> put;     // records to put; one may replace a record under its key
  std::vector<DiskRun> release;  // references that are gone
  std::vector<EndedPromise> ended;
};

// `overlapping`: every entry that touches the range, in order. Entries that reach over an end of
// the range are trimmed or cut in two; what is cut off stays.
MapEdit punch(const std::vector<MapEntry>& overlapping, FileRange range);
// punch, then `fresh` entries (in order, inside the range) are put.
MapEdit replace(const std::vector<MapEntry>& overlapping, FileRange range,
                const std::vector<MapEntry>& fresh);

MapDisk encode(const MapEntry& entry);
// Errc::malformed: wrong size, no blocks, an offset that is not a multiple, unknown flags,
// overflow.
Result<MapEntry> decode_map(u64 key_offset, Bytes value);

}  // namespace latchkey::extent
