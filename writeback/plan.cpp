#include "writeback/plan.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::writeback {

namespace {

// All of a plan's with one call to the kernel.
void draw_nonces(std::span<PlannedExtent> extents, Env& env) {
  std::vector<crypto::Nonce> nonces(extents.size());
  env.random(std::as_writable_bytes(std::span(nonces)));
  for (std::size_t i = 0; i < extents.size(); ++i) extents[i].nonce = nonces[i];
}

}  // namespace

std::vector<PlannedExtent> plan_extents(std::span<const PageRange> parts,
                                        std::span<const engine::BlockRun> runs,
                                        u32 extent_blocks_max, Env& env) {
  LK_CHECK(extent_blocks_max != 0);
  std::vector<PlannedExtent> extents;
  std::size_t run = 0;
  u32 used = 0;  // of that run
  std::size_t page = 0;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    LK_CHECK(parts[part].first == page && parts[part].count != 0);
    while (page < parts[part].end()) {
      LK_CHECK_MSG(run < runs.size(), "a plan has a block for each page");
      const u64 left = std::min<u64>(parts[part].end() - page, runs[run].count - used);
      PlannedExtent extent;
      extent.run = {runs[run].block + used,
                    static_cast<u32>(std::min<u64>(extent_blocks_max, left))};
      extent.first_page = page;
      extent.part = part;
      used += extent.run.count;
      page += extent.run.count;
      if (used == runs[run].count) {
        ++run;
        used = 0;
      }
      extents.push_back(extent);
    }
  }
  LK_CHECK_MSG(run == runs.size(), "a plan has a page for each block");
  draw_nonces(extents, env);
  return extents;
}

void plan_under(keymgr::OwnKeys& keys, std::span<PlannedExtent> extents) {
  for (PlannedExtent& extent : extents) {
    extent.nonce = keys.write_nonce();
    extent.first_unit = keys.take_units(extent.run.count);
  }
}

std::vector<extent::MapEntry> map_entries(std::span<const DirtyPage> batch,
                                          std::span<const PlannedExtent> extents) {
  std::vector<extent::MapEntry> entries;
  for (const PlannedExtent& extent : extents) {
    for (u32 i = 0; i < extent.run.count; ++i) {
      const u64 index = batch[extent.first_page + i].index;
      if (i != 0 && entries.back().file_end() == index)
        ++entries.back().blocks;
      else
        entries.push_back({index, extent.run.block + i, 1});
    }
  }
  return entries;
}

std::vector<PlannedWrite> plan_writes(std::span<const PlannedExtent> extents, u32 write_blocks_max,
                                      const std::vector<bool>& skip) {
  std::vector<PlannedWrite> writes;
  for (const PlannedExtent& extent : extents) {
    if (skip[extent.part]) continue;
    for (u32 done = 0; done < extent.run.count;) {
      const u64 block = extent.run.block + done;
      const std::size_t page = extent.first_page + done;
      const bool joins = !writes.empty() && writes.back().pages.count < write_blocks_max &&
                         writes.back().block + writes.back().pages.count == block &&
                         writes.back().pages.end() == page;
      if (!joins) writes.push_back({block, {page, 0}});
      PlannedWrite& write = writes.back();
      const u64 room = write_blocks_max - write.pages.count;
      const u32 count = static_cast<u32>(std::min<u64>(room, extent.run.count - done));
      write.pages.count += count;
      done += count;
    }
  }
  return writes;
}

engine::Reservation take_share(engine::Reservation& reservation, u64 pages) {
  const u64 all = reservation.data_blocks();
  if (all == 0) return {};
  pages = std::min(pages, all);
  return reservation.take(pages, (reservation.tree_blocks() * pages + all - 1) / all);
}

}  // namespace latchkey::writeback
