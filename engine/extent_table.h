#pragma once
// The extent table: one record for each run of blocks under one context, keyed by its first disk
// block (design S2). Freeing or sharing a part splits the record: both halves keep the context, the
// second's first unit grows by the distance.
//
// Functions over the Forest's kExtentTree; the caller holds the forest lock, exclusively for
// changes.

#include "engine/forest.h"
#include "engine/store.h"

namespace latchkey::engine {

// Decodes totally: malformed for anything that encode would not write.
Result<ExtentRecord> decode_extent(const Key& key, Bytes value);
std::vector<std::byte> encode_extent(const ExtentRecord& record);
// [from, to) of the record, both in blocks from its start.
ExtentRecord part_of(const ExtentRecord& record, u32 from, u32 to);

// The record that contains `block`, clipped to [block, block + blocks_max).
Result<ExtentRecord> find_extent(const Forest& forest, u64 block, u32 blocks_max);

Result<void> insert_extent(Forest& forest, const ExtentRecord& extent);
// Adds `delta` (+1 or -1) to the references of each block; runs whose count falls to nothing are
// erased and appended to `freed`.
Result<void> count_references(Forest& forest, BlockRun run, int delta,
                              std::vector<BlockRun>& freed);

}  // namespace latchkey::engine
