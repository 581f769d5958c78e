#pragma once
// Scrub: reads everything that the store refers to while it is in use, and verifies it: tree nodes
// in both places, bitmaps, superblocks, data blocks. Checksums are over ciphertext: no key is
// needed.
//
// What was durable when the scrub began and is still in use at its end has been read. What commits
// write meanwhile may be, or not.
//
// It mends what has a good twin: a place of a node is written again with the bytes of the other, a
// superblock copy by two commits. This is the one write to a place that a committed tree refers to
// (E1): the bytes are those that the pointer's checksum asks for, the other place stays as it is
// until the next, and a ReadPin keeps the place from being anybody else's.

#include <functional>
#include <vector>

#include "engine/store.h"

namespace latchkey::engine {

inline constexpr u64 kBadBlocksMax = u64{1} << 16;  // listed; further ones are only counted

struct ScrubOptions {
  bool data = true;          // false: only what describes it
  u64 bytes_per_second = 0;  // read, on average; 0: as fast as it goes
  bool commits = true;       // false: superblock copies, which only a commit mends, stay
  // Bytes read so far, and about how many there are; false stops the scrub. Called without locks.
  std::function<bool(u64 done, u64 total)> progress;
};

struct BadBlock {
  u64 block = 0;
  u32 checksum = 0;         // what it should be: crc32c
  bool unreadable = false;  // else its bytes do not match their checksum
};

struct ScrubResult {
  u64 nodes = 0;        // tree nodes, each read from both places
  u64 data_blocks = 0;  // read
  u64 bytes_read = 0;
  u64 mended = 0;                    // places that were written again and verify now
  std::vector<Finding> findings;     // damage outside of data; repairable: it was mended
  std::vector<BadBlock> bad_blocks;  // data, ascending
  u64 bad_blocks_count = 0;
  bool stopped = false;
};

// On a store that is open read-only nothing is mended. Errors: no_memory; io where the ring breaks.
// What the device answers for a block is a finding, not an error. Holds no lock while it reads;
// waits between reads where there is a rate.
Result<ScrubResult> scrub_store(Store& store, const ScrubOptions& options);

}  // namespace latchkey::engine
