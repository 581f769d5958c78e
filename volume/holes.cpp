// Holes and promises of space: punch, allocate, and where data is.

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "volume/page_buffer.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr std::size_t kEntriesAtOnce = 64;    // changed in one transaction
constexpr std::size_t kEntriesLooked = 4096;  // under one view
constexpr u64 kPromiseMax = u64{1} << 31;     // blocks of one piece of the map

// What an edit of so many entries may need: each may be cut in three, and so may its extent record.
// They are neighbours, so few leaves have them.
constexpr engine::SpaceNeed kEditNeed{0, 8 * kEntriesAtOnce, 300 * kEntriesAtOnce,
                                      leaves_of_neighbours(kEntriesAtOnce)};

u64 blocks_up(u64 bytes) { return (bytes + kPageBytes - 1) / kPageBytes; }

// Runs of the range where nothing is: no data, and no promise that counts.
template <class Fn>
void each_gap(const std::vector<extent::MapEntry>& entries, engine::TreeId subvolume,
              extent::FileRange range, const Fn& fn) {
  u64 at = range.first_block;
  for (const extent::MapEntry& entry : entries) {
    if (blocks_held(entry, subvolume) == 0) continue;
    if (entry.file_block > at) fn(extent::FileRange{at, entry.file_block - at});
    at = std::max(at, entry.file_end());
  }
  if (at < range.end()) fn(extent::FileRange{at, range.end() - at});
}

// The part of `range` that those entries speak for, of which there may be more behind.
extent::FileRange seen_of(extent::FileRange range, const std::vector<extent::MapEntry>& entries,
                          std::size_t count_max) {
  if (entries.size() < count_max) return range;
  return {range.first_block, std::min(range.end(), entries.back().file_end()) - range.first_block};
}

extent::FileRange behind(extent::FileRange range, extent::FileRange seen) {
  return {seen.end(), range.end() - seen.end()};
}

Result<void> check_range(u64 offset, u64 length) {
  if (length == 0) return fail(Errc::invalid, "a range of no bytes");
  if (offset > kFileBytesMax || length > kFileBytesMax - offset)
    return fail(Errc::too_big, "a file is too big");
  return {};
}

}  // namespace

Result<Volume::State::HandleUse> Volume::State::find_for_change(HandleId id) {
  LK_TRY(HandleUse handle, find(id));
  if (handle->directory) return fail(Errc::is_dir, "is a directory");
  if (!handle->flags.write) return fail(Errc::bad_handle, "the handle is not open for writing");
  LK_TRYV(must_be_writable(handle->inode->id()));
  LK_TRYV(ready(*handle));
  return handle;
}

// Everything is in the tree, and no page is left in memory that a change of the map would have to
// take along. Who holds the write lock then has the map for himself.
Result<void> Volume::State::settle(const InodePtr& inode) {
  LK_TRYV(flush(inode));
  LK_CHECK_MSG(inode->clean(), "a flush has left pages of a file that nobody writes");
  return {};
}

// --- where data is -----------------------------------------------------------------------------

Result<std::optional<u64>> Volume::seek(HandleId id, u64 offset, Seek what) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  if (handle->directory) return fail(Errc::is_dir, "is a directory");
  const Inode& inode = *handle->inode;
  const u64 size = inode.size();
  if (offset >= size) return std::optional<u64>{};
  LK_TRY(const auto block,
         state.seek_block(inode, {offset / kPageBytes, blocks_up(size)}, what == Seek::data));
  if (!block) return what == Seek::data ? std::optional<u64>{} : std::optional<u64>{size};
  return std::optional<u64>{std::clamp(*block * kPageBytes, offset, size)};
}

// The pages first, then the map: what lands in between is seen twice, not never.
Result<std::optional<u64>> Volume::State::seek_block(const Inode& inode, extent::FileRange file,
                                                     bool data) {
  const std::vector<u64> pages = inode.pages_from(file.first_block);
  auto page = pages.begin();
  for (extent::FileRange left{file.first_block, file.blocks - file.first_block};
       left.blocks != 0;) {
    LK_TRY(const auto entries, map_entries(store->view(), inode.id(), left, kEntriesLooked));
    const extent::FileRange seen = seen_of(left, entries, kEntriesLooked);
    auto entry = entries.begin();
    for (u64 at = seen.first_block; at < seen.end();) {
      while (entry != entries.end() && (entry->promised || entry->file_end() <= at)) ++entry;
      while (page != pages.end() && *page < at) ++page;
      const bool in_map = entry != entries.end() && entry->file_block <= at;
      const bool in_memory = page != pages.end() && *page == at;
      if ((in_map || in_memory) == data) return std::optional<u64>{at};
      if (in_map) {
        at = entry->file_end();
      } else if (in_memory) {
        ++at;
      } else {
        at = seen.end();
        if (entry != entries.end()) at = std::min(at, entry->file_block);
        if (page != pages.end()) at = std::min(at, *page);
      }
    }
    left = behind(left, seen);
  }
  return std::optional<u64>{};
}

// --- punch -------------------------------------------------------------------------------------

Result<void> Volume::punch(HandleId id, u64 offset, u64 length, IoFlags flags) {
  LK_TRY(const auto handle, state_->find_for_change(id));
  LK_TRYV(check_range(offset, length));
  return state_->punch(handle->inode, offset, offset + length, flags);
}

Result<void> Volume::State::punch(const InodePtr& inode, u64 offset, u64 end, IoFlags flags) {
  Lock writer(inode->write_mutex);
  LK_TRYV(unlock_inode(*inode));
  const u64 size = inode->size();
  const u64 first = blocks_up(offset);
  // What lies behind the end of the file goes with its last block.
  const u64 last = end >= size ? blocks_up(end) : end / kPageBytes;
  LK_TRYV(zero_in_page(*inode, offset, std::min({end, size, first * kPageBytes}), flags));
  if (first <= last)
    LK_TRYV(zero_in_page(*inode, std::max(offset, last * kPageBytes), std::min(end, size), flags));
  if (first >= last) return {};
  LK_TRYV(settle(inode));
  Lock flush_lock(inode->flush_mutex);
  for (extent::FileRange left{first, last - first}; left.blocks != 0;) {
    LK_TRY(auto space, store->reserve(kEditNeed, true));
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRY(const auto entries, map_entries(transaction, inode->id(), left, kEntriesAtOnce));
    const extent::FileRange seen = seen_of(left, entries, kEntriesAtOnce);
    LK_TRYV(apply(transaction, inode->id(), extent::punch(entries, seen)));
    LK_TRYV(put_changed(transaction, *inode, inode->size()));
    left = behind(left, seen);
  }
  return {};
}

// A part of one page, if anything but zeros is there.
Result<void> Volume::State::zero_in_page(Inode& inode, u64 offset, u64 end, IoFlags flags) {
  if (offset >= end) return {};
  static constexpr std::array<std::byte, kPageBytes> kZeros{};
  bool zero = false;
  {
    PageBuffer page;
    LK_TRYV(read_blocks(inode, offset / kPageBytes, page.bytes));
    zero = std::memcmp(&page.bytes[offset % kPageBytes], kZeros.data(), end - offset) == 0;
  }
  if (zero) return {};
  return write_piece(inode, {offset, Bytes(kZeros).first(end - offset), inode.losses, true, flags});
}

// Size and times after a change of the map, in its transaction.
Result<void> Volume::State::put_changed(engine::Transaction& transaction, Inode& inode, u64 size) {
  block_counts.changed(inode.id());
  inode.set_size(size);
  const i64 now = static_cast<i64>(env.realtime_ns());
  return put_changed(transaction, inode,
                     [now](Attributes& item) { item.mtime_ns = item.ctime_ns = now; });
}

// --- allocate ----------------------------------------------------------------------------------

Result<void> Volume::allocate(HandleId id, u64 offset, u64 length, bool keep_size) {
  LK_TRY(const auto handle, state_->find_for_change(id));
  LK_TRYV(check_range(offset, length));
  return state_->allocate(handle->inode, offset, offset + length, keep_size);
}

Result<void> Volume::State::allocate(const InodePtr& inode, u64 offset, u64 end, bool keep_size) {
  Lock writer(inode->write_mutex);
  LK_TRYV(unlock_inode(*inode));
  LK_TRYV(settle(inode));
  const auto promised = promise_range(*inode, offset, end, keep_size);
  if (promised || !made_room(promised.error())) return promised;
  return promise_range(*inode, offset, end, keep_size);
}

// The space of all of it is there before the first promise is made.
Result<void> Volume::State::promise_range(Inode& inode, u64 offset, u64 end, bool keep_size) {
  Lock flush_lock(inode.flush_mutex);
  const u64 first = offset / kPageBytes;
  const extent::FileRange range{first, blocks_up(end) - first};
  u64 missing = 0;
  for (extent::FileRange left = range; left.blocks != 0;) {
    LK_TRY(const auto entries, map_entries(store->view(), inode.id(), left, kEntriesLooked));
    const extent::FileRange seen = seen_of(left, entries, kEntriesLooked);
    each_gap(entries, inode.id().subvolume, seen,
             [&](extent::FileRange gap) { missing += gap.blocks; });
    left = behind(left, seen);
  }
  const engine::SpaceFacts facts = store->space();
  if (missing > facts.blocks_total) return fail(Errc::no_space, "the store is smaller than that");
  LK_TRY(auto promised, store->reserve({store->promise_cost(missing), 0, 0}));
  for (extent::FileRange left = range; left.blocks != 0;) {
    LK_TRY(auto space, store->reserve(kEditNeed));
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRY(const extent::FileRange seen, promise_gaps(transaction, inode, left, promised));
    left = behind(left, seen);
    const u64 size = inode.size();
    const u64 there = std::min(end, seen.end() * kPageBytes);
    LK_TRYV(put_changed(transaction, inode, keep_size ? size : std::max(size, there)));
  }
  return {};
}

// Answers for which part of the range.
Result<extent::FileRange> Volume::State::promise_gaps(engine::Transaction& transaction,
                                                      const Inode& inode, extent::FileRange range,
                                                      engine::Reservation& space) {
  range.blocks = std::min(range.blocks, kPromiseMax);
  LK_TRY(const auto entries, map_entries(transaction, inode.id(), range, kEntriesAtOnce));
  const extent::FileRange seen = seen_of(range, entries, kEntriesAtOnce);
  std::vector<extent::FileRange> gaps;
  each_gap(entries, inode.id().subvolume, seen,
           [&](extent::FileRange gap) { gaps.push_back(gap); });
  for (const extent::FileRange& gap : gaps) {
    // Promises of another tree go: here they are none.
    std::vector<extent::MapEntry> inside;
    for (const extent::MapEntry& entry : entries)
      if (entry.file_block < gap.end() && entry.file_end() > gap.first_block)
        inside.push_back(entry);
    const extent::MapEntry fresh{gap.first_block, inode.id().subvolume,
                                 static_cast<u32>(gap.blocks), true};
    LK_TRYV(apply(transaction, inode.id(), extent::replace(inside, gap, {fresh})));
    LK_TRYV(transaction.promise(inode.id().subvolume, gap.blocks, space));
  }
  return seen;
}

}  // namespace latchkey::volume
