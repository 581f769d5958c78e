#pragma once
// What a scrub reads next: bounded batches of a tree's nodes and of extent records, from a key on,
// so that the forest may change between two batches. The caller holds the forest lock.

#include <optional>
#include <vector>

#include "engine/extent_table.h"
#include "engine/forest.h"

namespace latchkey::engine {

struct NodeBatch {
  std::vector<Pointer> nodes;
  std::optional<Key> next;  // where the next batch begins; nothing: that was the last
};

// Nodes whose keys begin at or after `from` (nothing: all), about 64 of them. not_found: there is
// no such tree.
Result<void> collect_nodes(const Forest& forest, NodeCache& cache, TreeId tree,
                           const std::optional<Key>& from, NodeBatch& batch);

// Records and parts of records from `block` on, at most `blocks_max` blocks in all. Malformed ones
// are left out: reading the tree is check's affair.
Result<void> collect_extents(const Forest& forest, u64 block, u64 blocks_max,
                             std::vector<ExtentRecord>& batch);

}  // namespace latchkey::engine
