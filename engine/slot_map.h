#pragma once
// The slot map: for each region, which of its slots a generation means, what lies there, and how
// full it is. A commit writes the whole map, twice, to the place of its generation; so the two
// generations before it keep theirs, and a commit that was torn leaves no trace that a later one
// could take for its own.

#include <vector>

#include "base/result.h"
#include "engine/free_space_format.h"
#include "engine/space_layout.h"

namespace latchkey::engine {

struct SlotMap {
  struct Entry {
    u8 slot = kSlotNone;
    FreeClass free = FreeClass::half;
    u32 check = 0;  // slot_check() of the slot
  };
  explicit SlotMap(u32 regions = 0) : entries(regions) {}

  u64 generation = 0;
  u64 used_blocks = 0;
  u32 freed_blocks = 0;
  std::vector<Entry> entries;

  // Writes block `index` of the map as it lies on disk into `block`, of kBlockBytes; its checksum.
  Checksum encode(u32 index, MutableBytes block) const;
  // Takes over block `index`; the figures of the header must be the same in all blocks (the first
  // sets them). Errors: damaged, malformed, not_found (a sound block of another generation). `at`
  // goes into them.
  Result<void> decode(u32 index, u64 expected_generation, Bytes block, u64 at);
};

FreeClass free_class(u32 free_blocks, u32 region_blocks);
// The most blocks a region of that class has free.
u32 free_blocks_max(FreeClass free, u32 region_blocks);

// Of a whole map, by those of its blocks, in order.
Checksum map_checksum_of(std::span<const Checksum> blocks);

// Checksum of a block whose checksum field, of 32 bytes at `field_offset`, counts as zero.
Checksum block_checksum(Bytes block, std::size_t field_offset);

}  // namespace latchkey::engine
