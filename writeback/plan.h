#pragma once
// From dirty pages to extents: pure but for the nonces, which are drawn here (K1). Pages of one
// file that are not neighbours are packed into one extent under one key; the map then gets several
// entries.

#include <span>
#include <vector>

#include "base/env.h"
#include "crypto/ids.h"
#include "engine/types.h"
#include "extent/map.h"
#include "writeback/dirty_file.h"

namespace latchkey::writeback {

// A run of pages of the batch that becomes one extent.
struct PlannedExtent {
  engine::BlockRun run;
  std::size_t first_page = 0;  // index into the batch; run.count pages
  crypto::Nonce nonce;
};

// `pages` of one file, ascending, on `runs` that hold exactly as many blocks, in order. An extent
// ends at extent_blocks_max, at the end of a run, and nowhere else.
std::vector<PlannedExtent> plan_extents(std::size_t pages, std::span<const engine::BlockRun> runs,
                                        u32 extent_blocks_max, Env& env);

// Where each page went, joined where file and device both go on and the extent does.
std::vector<extent::MapEntry> map_entries(std::span<const DirtyPage> pages,
                                          std::span<const PlannedExtent> extents);

}  // namespace latchkey::writeback
