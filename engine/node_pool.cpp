#include "engine/node_pool.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::engine {

Result<void> NodePool::add(Side side) {
  std::vector<u64>& runs = sides_[side];
  u64 hint = kNowhere;  // from the end of the device down
  if (runs.size() == runs.capacity()) runs.reserve(std::max<std::size_t>(64, 2 * runs.size()));
  if (side == middle) hint = runs.empty() ? space_.blocks_total() * 2 / 3 : runs.back();
  LK_TRY(const BlockRun run, space_.allocate({node_blocks_, node_blocks_, hint}));
  runs.push_back(run.block);
  return {};
}

Result<BlockRun> NodePool::take_from(Side side) {
  std::vector<u64>& other = sides_[side == end ? middle : end];
  std::vector<u64>& runs = sides_[side].empty() && !other.empty() ? other : sides_[side];
  if (runs.empty()) LK_TRYV(add(side));
  const BlockRun run{runs.back(), node_blocks_};
  runs.pop_back();
  return run;
}

Result<std::array<BlockRun, 2>> NodePool::take() {
  LK_TRY(const BlockRun first, take_from(end));
  const auto second = take_from(middle);
  if (!second) {
    sides_[end].push_back(first.block);
    return std::unexpected(second.error());
  }
  return std::array{first, *second};
}

void NodePool::give_back(const std::array<u64, 2>& places) {
  for (const u64 place : places) {
    space_.release_unwritten({place, node_blocks_});
    // It is found first where it just became free.
    const auto run = space_.allocate({node_blocks_, node_blocks_, place});
    LK_CHECK(run);
    sides_[place == places[0] ? end : middle].push_back(run->block);
  }
}

Result<void> NodePool::fill(u64 blocks, u64 promised) {
  while (this->blocks() < blocks) {
    if (space_.blocks_free() < promised + node_blocks_)
      return fail(Errc::no_space, "what is free is promised to data");
    LK_TRYV(add(sides_[end].size() <= sides_[middle].size() ? end : middle));
  }
  return {};
}

void NodePool::trim(u64 blocks) {
  while (this->blocks() >= blocks + node_blocks_) {
    std::vector<u64>& runs = sides_[sides_[end].size() > sides_[middle].size() ? end : middle];
    space_.cancel({runs.back(), node_blocks_});
    runs.pop_back();
  }
}

void NodePool::note_freed(u64 transaction, u64 blocks) {
  freed_[transaction] += blocks;
  coming_ += blocks;
}

void NodePool::note_unpinned(u64 running) {
  while (!freed_.empty() && freed_.begin()->first + 2 <= running) {
    coming_ -= freed_.begin()->second;
    freed_.erase(freed_.begin());
  }
}

}  // namespace latchkey::engine
