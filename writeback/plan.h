#pragma once
// From dirty pages to extents: pure but for the nonces, which are drawn here (K1). A batch holds
// pages of several files, a part for each. Pages of one file that are not neighbours are packed
// into one extent under one key, and the map then gets several entries; extents of different files
// get neighbouring blocks and leave in one write, each under a nonce of its own.

#include <span>
#include <vector>

#include "base/env.h"
#include "crypto/ids.h"
#include "engine/store.h"
#include "extent/map.h"
#include "writeback/dirty_file.h"

namespace latchkey::writeback {

// Pages of a batch that belong to one file: neighbours in the batch, ascending in the file.
struct PageRange {
  std::size_t first = 0;  // index into the batch
  std::size_t count = 0;
  std::size_t end() const { return first + count; }
};

// A run of pages of the batch that becomes one extent.
struct PlannedExtent {
  engine::BlockRun run;
  std::size_t first_page = 0;  // index into the batch; run.count pages
  std::size_t part = 0;        // index into the parts
  crypto::Nonce nonce;
  u64 first_unit = 0;  // 0, but for extents under a write key of their file's own
};

// `parts` follow each other without a gap; `runs` hold exactly as many blocks as they have pages,
// in order. An extent ends at extent_blocks_max, at the end of a run or of a part, and nowhere
// else.
std::vector<PlannedExtent> plan_extents(std::span<const PageRange> parts,
                                        std::span<const engine::BlockRun> runs,
                                        u32 extent_blocks_max, Env& env);

// Those extents of one file are written under a key of the file's own instead: under its nonce,
// with units that nothing else gets (K1).
void plan_under(keymgr::OwnKeys& keys, std::span<PlannedExtent> extents);

// Where each page of one file's extents went, joined where file and device both go on and the
// extent does.
std::vector<extent::MapEntry> map_entries(std::span<const DirtyPage> batch,
                                          std::span<const PlannedExtent> extents);

// One write to the device: neighbours there and in the batch.
struct PlannedWrite {
  u64 block = 0;
  PageRange pages;
};
// At most write_blocks_max blocks each; parts for which skip[part] is set are left out.
std::vector<PlannedWrite> plan_writes(std::span<const PlannedExtent> extents, u32 write_blocks_max,
                                      const std::vector<bool>& skip);

// What `pages` of a reservation's data blocks bring along: themselves and their share of tree
// space, rounded up.
engine::Reservation take_share(engine::Reservation& reservation, u64 pages);

}  // namespace latchkey::writeback
