#pragma once
// What the engine writes: superblock, node, pointer, records of its own trees. docs/disk_format.md
// has the byte tables and worked examples. Bitmap slots are in free_space.

#include "base/checksum.h"
#include "base/disk.h"
#include "engine/store.h"
#include "engine/types.h"

namespace latchkey::engine {

inline constexpr u32 kFormatVersion = 2;
inline constexpr u64 kFeaturesCompat = 0;    // known to this build: unknown ones are ignored
inline constexpr u64 kFeaturesRoCompat = 0;  // an unknown one: read-only
// Attributes of encrypted inodes may be in the clear: volume/xattrs.cpp sets and asks for it.
inline constexpr u64 kFeatureClearAttributes = 1;
// The fsync log may have records of objects that were made: each commit that leaves a log sets it.
inline constexpr u64 kFeatureLoggedCreates = 2;
inline constexpr u64 kFeaturesIncompat =
    kFeatureClearAttributes | kFeatureLoggedCreates;  // an unknown one: refused

inline constexpr u64 kDeviceBytesMin = 16 * kMiB;
inline constexpr u32 kNodeBytesMin = 4096;
inline constexpr u32 kNodeBytesMax = 65536;
inline constexpr u32 kExtentBlocksMax = 256;
inline constexpr u8 kLevelMax = 8;  // more levels than any device needs: bounds recursion

struct KeyDisk {
  Le64 object;
  u8 type;
  Le64 offset;
};
LK_DISK_STRUCT(KeyDisk, 17);

// How a node is named by what is above it. Both places hold the same bytes, so either one mends the
// other. The generation catches a write that never arrived, the checksum anything else.
struct PointerDisk {
  Le64 place[2];  // first block of each copy
  Le64 generation;
  u8 level;  // 0: leaf
  std::array<u8, 7> reserved;
  Checksum checksum;  // of the whole node; 16 bytes of room for a MAC
};
LK_DISK_STRUCT(PointerDisk, 64);
LK_DISK_FIELD(PointerDisk, checksum, 32);

// A node: this header, then slots or entries in key order from the front; values of a leaf from the
// back. What it says of itself catches misdirected reads and writes and nodes of another store.
struct NodeHeader {
  Le32 magic;
  u8 level;
  u8 reserved0;
  Le16 count;
  Le64 generation;  // of the commit that wrote it
  Le64 tree;        // that wrote it; of subvolumes, others may share it since
  Le64 place;       // first of its two places, in both copies
  VolumeId volume_id;
  std::array<u8, 16> reserved;
};
LK_DISK_STRUCT(NodeHeader, 64);
LK_DISK_FIELD(NodeHeader, volume_id, 32);
inline constexpr u32 kNodeMagic = 0x444e4b4c;  // "LKND"

struct LeafSlot {
  KeyDisk key;
  Le16 data_offset;  // from the start of the node; 0 if the value is empty
  Le16 size;
};
LK_DISK_STRUCT(LeafSlot, 21);

struct InteriorEntry {
  KeyDisk key;  // lower bound of what lies below
  PointerDisk child;
};
LK_DISK_STRUCT(InteriorEntry, 81);

// In the root tree, keyed (tree, kTreeRecordType, 0).
inline constexpr u8 kTreeRecordType = 1;
inline constexpr u64 kTreeShares = 1;  // it was cloned or is a clone: its nodes may be shared
struct TreeRecordDisk {
  PointerDisk root;
  Le64 flags;
  Le64 promised_blocks;  // of this tree's promises
  std::array<u8, 16> reserved;
};
LK_DISK_STRUCT(TreeRecordDisk, 96);

// In the extent tree, keyed (first block, kExtentRecordType, 0); the context, then a Le32 crc32c
// for each block follow; with kExtentHasTags 16 bytes for each block after those.
inline constexpr u8 kExtentRecordType = 1;
inline constexpr u8 kExtentHasTags = 1;
inline constexpr u32 kTagBytes = 16;
inline constexpr u32 kRecordBlocksMax = 128;
struct ExtentHeadDisk {
  Le32 blocks;
  Le32 references;
  Le64 first_unit;
  u8 context_size;
  u8 flags;
  Le16 reserved;
};
LK_DISK_STRUCT(ExtentHeadDisk, 20);

// In the extent tree too, keyed (first place of a node, kNodeRecordType, 0), for each node of
// subvolume trees that is referred to more than once; of the others it is known that it is once.
inline constexpr u8 kNodeRecordType = 2;
struct NodeRecordDisk {
  Le64 references;  // from nodes and tree records; at least 2
};
LK_DISK_STRUCT(NodeRecordDisk, 8);

// Where the first two blocks of the generation's fsync log will lie (engine/fsync_log.h).
struct LogHeadDisk {
  Le64 place[2];  // 0: there is no log
  std::array<u8, 48> reserved;
};
LK_DISK_STRUCT(LogHeadDisk, 64);

// Written whole to each of its places, one 4096-byte block each.
struct SuperblockDisk {
  std::array<char, 8> magic;
  Le32 format_version;
  u8 place_number;  // 0 to 3: a copy that was written to the wrong place is not believed
  std::array<u8, 3> reserved0;
  Le64 generation;
  VolumeId volume_id;
  Le64 size_bytes;
  Le32 block_bytes;
  Le32 node_bytes;
  Le32 extent_blocks_max;
  Le32 tree_count;
  Le64 features_compat;
  Le64 features_ro_compat;
  Le64 features_incompat;
  PointerDisk root;  // of the root tree
  Le64 used_blocks;
  Le64 node_count;
  std::array<char, 64> label;
  LogHeadDisk log_head;
  std::array<std::byte, 256> volume_key;  // reserved, zero
  Le64 extent_node_count;                 // of the nodes, those of the extent table
  Le64 promised_blocks;                   // of all trees, so that opening walks none
  Checksum map_checksum;                  // of the slot map (engine/slot_map.h)
  Checksum map_checksum_before;           // of that of the generation before
  std::array<std::byte, 3432> reserved;
  Checksum checksum;  // of the block with this field zero
};
LK_DISK_STRUCT(SuperblockDisk, 4096);
LK_DISK_FIELD(SuperblockDisk, generation, 16);
LK_DISK_FIELD(SuperblockDisk, root, 88);
LK_DISK_FIELD(SuperblockDisk, label, 168);
LK_DISK_FIELD(SuperblockDisk, map_checksum, 568);
LK_DISK_FIELD(SuperblockDisk, map_checksum_before, 600);
LK_DISK_FIELD(SuperblockDisk, checksum, 4064);
inline constexpr std::array<char, 8> kSuperblockMagic = {'l', 'a', 't', 'c', 'h', 'k', 'e', 'y'};

inline KeyDisk to_disk(const Key& key) { return {key.object, key.type, key.offset}; }
inline Key from_disk(const KeyDisk& key) { return {key.object, key.type, key.offset}; }

// The pointer as code uses it.
struct Pointer {
  std::array<u64, 2> place{};
  u64 generation = 0;
  u8 level = 0;
  Checksum checksum{};
};
inline PointerDisk to_disk(const Pointer& pointer) {
  return {{pointer.place[0], pointer.place[1]},
          pointer.generation,
          pointer.level,
          {},
          pointer.checksum};
}
inline Pointer from_disk(const PointerDisk& pointer) {
  return {
      {pointer.place[0], pointer.place[1]}, pointer.generation, pointer.level, pointer.checksum};
}

}  // namespace latchkey::engine
