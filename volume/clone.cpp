// Clones: another file's map gets the same extents. They bring their keys along, so no data is read
// and no key is derived; what is written to either file afterwards is sealed anew.

#include <algorithm>

#include "base/check.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr std::size_t kEntriesAtOnce = 32;  // of either file, in one transaction

// Each entry may be cut in three, and so may its extent record, which is shared or released. Of the
// two files only the target's leaves are changed.
constexpr engine::SpaceNeed kStepNeed{0, 8 * 2 * kEntriesAtOnce, 300 * 2 * kEntriesAtOnce,
                                      leaves_of_neighbours(2 * kEntriesAtOnce)};

constexpr u32 kReferencesMax = u32{1} << 31;

// The write locks of two files in the order of their numbers, or of one.
class Writers {
 public:
  Writers(Inode& a, Inode& b) LK_NO_ANALYSIS : first_(a), second_(b) {
    if (b.id() < a.id()) std::swap(first_, second_);
    first_.get().write_mutex.lock();
    if (&a != &b) second_.get().write_mutex.lock();
  }
  ~Writers() LK_NO_ANALYSIS {
    if (&first_.get() != &second_.get()) second_.get().write_mutex.unlock();
    first_.get().write_mutex.unlock();
  }
  Writers(const Writers&) = delete;
  Writers& operator=(const Writers&) = delete;

 private:
  std::reference_wrapper<Inode> first_, second_;
};

// A change that meets a block without a record stops the store (E5); a look does not.
Result<void> look_at(const engine::View& view, u64 block, u32 blocks) {
  while (blocks != 0) {
    LK_TRY(const engine::ExtentRecord record, view.extent_at(block, blocks));
    if (record.references >= kReferencesMax)
      return fail(Errc::too_big, "a block has too many references", block * engine::kBlockBytes);
    block += record.run.count;
    blocks -= record.run.count;
  }
  return {};
}

}  // namespace

// As Linux has it for FICLONERANGE. Answers with the length in bytes.
Result<u64> Volume::State::check_clone(const Clone& clone) {
  const u64 from_size = clone.from->size(), to_size = clone.to->size();
  if (clone.from_offset % kPageBytes != 0 || clone.to_offset % kPageBytes != 0)
    return fail(Errc::invalid, "an offset is not a multiple of 4096");
  if (clone.from_offset > from_size || clone.length > from_size - clone.from_offset)
    return fail(Errc::invalid, "the source ends before the range does");
  const u64 length = clone.length != 0 ? clone.length : from_size - clone.from_offset;
  if (clone.to_offset > kFileBytesMax || length > kFileBytesMax - clone.to_offset)
    return fail(Errc::too_big, "a file is too big");
  const u64 from_end = clone.from_offset + length, to_end = clone.to_offset + length;
  if (length % kPageBytes != 0 && (from_end != from_size || to_end < to_size))
    return fail(Errc::invalid, "a part of a block can only be the end of both files");
  if (clone.from == clone.to && clone.from_offset < to_end && clone.to_offset < from_end)
    return fail(Errc::invalid, "the ranges overlap");
  return length;
}

Result<void> Volume::clone_range(HandleId from_id, u64 from_offset, HandleId to_id, u64 to_offset,
                                 u64 length) {
  State& state = *state_;
  LK_TRY(const auto from, state.find(from_id));
  if (from->directory) return fail(Errc::is_dir, "is a directory");
  if (!from->flags.read) return fail(Errc::bad_handle, "the handle is not open for reading");
  LK_TRY(const auto to, state.find_for_change(to_id));
  if (to->flags.append) return fail(Errc::bad_handle, "the handle is open for appending");
  LK_TRYV(state.ready(*from));
  // What is shared keeps its key, which is one that the other file's must be, too.
  const Attributes source = from->inode->attributes(), target = to->inode->attributes();
  if (source.encrypted != target.encrypted)
    return fail(Errc::invalid, "one of the files is encrypted and the other is not");
  if (source.encrypted && source.key_id != target.key_id)
    return fail(Errc::cross_key, "the files are encrypted under different keys");
  return state.clone(
      {from->inode, from_offset, to->inode, to_offset, length, from->losses, to->losses});
}

// A removal that overtakes the call drops what is dirty: of that there is no copy.
Result<void> Volume::State::nothing_lost(const Clone& clone) {
  if (clone.from->losses != clone.from_losses || clone.to->losses != clone.to_losses)
    return data_lost();
  return {};
}

// Both files stand still meanwhile but for their reads. In bounded steps: each leaves the target
// with a longer part of the range, and with a size that goes with it.
Result<void> Volume::State::clone(const Clone& clone) {
  const Writers writers(*clone.from, *clone.to);
  LK_TRYV(nothing_lost(clone));
  LK_TRY(const u64 length, check_clone(clone));
  if (length == 0) return {};
  LK_TRYV(unlock_inode(*clone.from));
  LK_TRYV(unlock_inode(*clone.to));
  LK_TRYV(settle(clone.from));
  LK_TRYV(settle(clone.to));
  LK_TRYV(nothing_lost(clone));
  LK_TRY(auto space, reserve(kStepNeed));  // here others may still be flushed for it
  Lock flush_lock(clone.to->flush_mutex);
  // Its own keys are those of what it had: a block of another file would be under none of them.
  if (clone.from != clone.to && clone.to->own_keys() != nullptr)
    return fail(Errc::no_key, "the key is sealed, and the files have no key in common");
  extent::FileRange left{clone.from_offset / kPageBytes, (length + kPageBytes - 1) / kPageBytes};
  for (u64 to_block = clone.to_offset / kPageBytes;;) {
    {
      LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
      LK_TRY(const u64 blocks,
             clone_step(transaction, clone.from->id(), left, clone.to->id(), to_block));
      to_block += blocks;
      left = {left.first_block + blocks, left.blocks - blocks};
      const u64 there = std::min(to_block * kPageBytes, clone.to_offset + length);
      LK_TRYV(put_changed(transaction, *clone.to, std::max(clone.to->size(), there)));
    }
    if (left.blocks == 0) return {};
    LK_TRY(space, store->reserve(kStepNeed));  // outside of the transaction: it may wait for others
  }
}

// As many blocks of the range as one transaction takes. References come before others go: the two
// may be the same file's.
Result<u64> Volume::State::clone_step(engine::Transaction& transaction, InodeId from,
                                      extent::FileRange range, InodeId to, u64 to_block) {
  LK_TRY(const auto sources, map_entries(transaction, from, range, kEntriesAtOnce));
  if (sources.size() == kEntriesAtOnce)
    range.blocks = std::min(range.end(), sources.back().file_end()) - range.first_block;
  LK_TRY(const auto targets,
         map_entries(transaction, to, {to_block, range.blocks}, kEntriesAtOnce));
  if (targets.size() == kEntriesAtOnce)
    range.blocks = std::min(to_block + range.blocks, targets.back().file_end()) - to_block;
  std::vector<extent::MapEntry> fresh;
  for (const extent::MapEntry& entry : sources) {
    const u64 first = std::max(entry.file_block, range.first_block);
    const u64 end = std::min(entry.file_end(), range.end());
    if (entry.promised || first >= end) continue;  // a promise is one file's: its copy is a hole
    fresh.push_back({to_block + (first - range.first_block),
                     entry.disk_block + (first - entry.file_block), static_cast<u32>(end - first)});
  }
  const extent::MapEdit edit = extent::replace(targets, {to_block, range.blocks}, fresh);
  for (const extent::MapEntry& entry : fresh)
    LK_TRYV(look_at(transaction, entry.disk_block, entry.blocks));
  for (const extent::DiskRun& run : edit.release)
    LK_TRYV(look_at(transaction, run.block, run.blocks));
  for (const extent::MapEntry& entry : fresh)
    LK_TRYV(transaction.share_extent({entry.disk_block, entry.blocks}));
  LK_TRYV(apply(transaction, to, edit));
  return range.blocks;
}

}  // namespace latchkey::volume
