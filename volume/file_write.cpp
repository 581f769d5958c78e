// Writing, truncating, flushing. The order of a write (design 6): room in the cache, space on the
// device, the key's gate, the copy.

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr u64 kFileBytesMax = u64{1} << 62;
constexpr u64 kPagesAtOnce = 256;  // of one reservation and one pass of the gate
constexpr u32 kRecordsAPage = 4;   // map entry and its cut neighbours, extent record, inode item
constexpr u32 kRecordBytesAPage = 220;

}  // namespace

void Volume::State::pages_gone(u64 count) {
  Lock lock(dirty_mutex);
  pages_in_memory -= count;
  dirty_changed.notify_all();
}

void Volume::State::wait_for_room() {
  const u64 limit = options.dirty_bytes_max / kPageBytes;
  for (;;) {
    {
      Lock lock(dirty_mutex);
      if (pages_in_memory < limit) {
        if (pages_in_memory * 2 >= limit) dirty_changed.notify_all();
        return;
      }
      dirty_changed.notify_all();
      if (!workers.empty()) {
        dirty_changed.wait_for(dirty_mutex, 50'000'000);
        // A store that has stopped takes nothing any more; the write will say so.
        if (store->failure()) return;
        continue;
      }
    }
    for (const InodePtr& inode : dirty_inodes())
      if (!flush(*inode)) return;
  }
}

Result<void> Volume::State::flush_locked(Inode& inode) {
  SharedLock lease(inode.lease_lock);
  u64 transaction = 0;
  auto flushed = pipeline->flush(inode, transaction);
  if (transaction > inode.last_transaction) inode.last_transaction = transaction;
  return flushed;
}

Result<void> Volume::State::flush(Inode& inode) {
  if (!pipeline) return {};
  Lock lock(inode.flush_mutex);
  return flush_locked(inode);
}

Result<void> Volume::State::tell_errors(Handle& handle) {
  Inode& inode = *handle.inode;
  if (inode.error_pending.exchange(false)) {
    Lock lock(inode.mutex);
    return std::unexpected(inode.error);
  }
  if (inode.lost_data) return fail(Errc::io, "data of this file was lost when its key was removed");
  if (auto failure = store->failure(); failure && !handle.stop_told.exchange(true))
    return std::unexpected(*failure);
  return {};
}

namespace {

// The part of [offset, offset + from.size()) that lies in page `index`.
struct PagePart {
  u64 in_page;
  Bytes bytes;
};

PagePart part_of(u64 index, u64 offset, Bytes from) {
  const u64 start = std::max(offset, index * kPageBytes);
  const u64 end = std::min(offset + from.size(), (index + 1) * kPageBytes);
  return {start - index * kPageBytes, from.subspan(start - offset, end - start)};
}

}  // namespace

// With write_mutex held; the piece touches at most kPagesAtOnce pages.
Result<void> Volume::State::write_at(Handle& handle, u64 offset, Bytes from) {
  Inode& inode = *handle.inode;
  const u64 first = offset / kPageBytes;
  const u64 count = (offset + from.size() - 1) / kPageBytes - first + 1;
  const bool encrypted = inode.attributes().encrypted;
  LK_TRYV(unlock_inode(inode));
  wait_for_room();
  LK_TRY(engine::Reservation space, store->reserve({count, static_cast<u32>(count * kRecordsAPage),
                                                    static_cast<u32>(count * kRecordBytesAPage)}));
  // Pages that are only partly written need what the device has; nobody else writes this file now.
  LK_TRY(auto base, engine::IoBuffer::create(2 * kPageBytes));
  std::array<bool, 2> have_base{};
  const std::array<u64, 2> edges{first, first + count - 1};
  for (u32 i = 0; i < 2; ++i) {
    if (part_of(edges[i], offset, from).bytes.size() == kPageBytes) continue;
    if (edges[i] * kPageBytes >= inode.size()) continue;
    LK_TRYV(read_blocks(inode, edges[i], base.bytes().subspan(i * kPageBytes, kPageBytes)));
    have_base[i] = true;
  }
  SharedLock lease(inode.lease_lock);
  std::optional<keymgr::GatePass> pass;
  if (encrypted) {
    LK_TRY(keymgr::GatePass entered, keymgr::GatePass::enter(inode.key_lease));
    pass.emplace(std::move(entered));
  }
  const i64 now = static_cast<i64>(env.realtime_ns());
  u64 fresh = 0;
  for (u64 index = first; index < first + count; ++index) {
    const PagePart part = part_of(index, offset, from);
    const u32 edge = index == first ? 0 : 1;
    const Bytes old = (index == first || index == first + count - 1) && have_base[edge]
                          ? Bytes(base.bytes()).subspan(edge * kPageBytes, kPageBytes)
                          : Bytes{};
    if (inode.write_page(index, part.in_page, part.bytes, old, space, now)) ++fresh;
  }
  Lock lock(dirty_mutex);
  pages_in_memory += fresh;
  return {};
}

Result<u64> Volume::write(HandleId id, u64 offset, Bytes from) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  if (!handle->flags.write) return fail(Errc::bad_handle, "the handle is not open for writing");
  if (state.options.read_only) return fail(Errc::read_only, "the volume is open read-only");
  LK_TRYV(state.tell_errors(*handle));
  if (offset > kFileBytesMax - from.size()) return fail(Errc::too_big, "a file is too big");
  Lock writer(handle->inode->write_mutex);
  for (u64 done = 0; done < from.size();) {
    const u64 piece = std::min<u64>(from.size() - done, (kPagesAtOnce - 1) * kPageBytes);
    LK_TRYV(state.write_at(*handle, offset + done, from.subspan(done, piece)));
    done += piece;
  }
  return from.size();
}

Result<u64> Volume::append(HandleId id, Bytes from) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  if (!handle->flags.write) return fail(Errc::bad_handle, "the handle is not open for writing");
  if (state.options.read_only) return fail(Errc::read_only, "the volume is open read-only");
  LK_TRYV(state.tell_errors(*handle));
  Lock writer(handle->inode->write_mutex);
  const u64 offset = handle->inode->size();
  if (offset > kFileBytesMax - from.size()) return fail(Errc::too_big, "a file is too big");
  for (u64 done = 0; done < from.size();) {
    const u64 piece = std::min<u64>(from.size() - done, (kPagesAtOnce - 1) * kPageBytes);
    LK_TRYV(state.write_at(*handle, offset + done, from.subspan(done, piece)));
    done += piece;
  }
  return offset;
}

Result<void> Volume::truncate(HandleId id, u64 size) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  if (!handle->flags.write) return fail(Errc::bad_handle, "the handle is not open for writing");
  LK_TRYV(state.tell_errors(*handle));
  if (size > kFileBytesMax) return fail(Errc::too_big, "a file is too big");
  return state.truncate(*handle->inode, size);
}

// The tail of the last page is zeroed as a write of its own, so that what lay there never comes
// back when the file grows again; then the map beyond goes and the size with it, in one
// transaction.
Result<void> Volume::State::truncate(Inode& inode, u64 size) {
  Lock writer(inode.write_mutex);
  const u64 old_size = inode.size();
  if (size == old_size) return {};
  if (size < old_size && size % kPageBytes != 0) {
    const u64 tail = std::min(kPageBytes - size % kPageBytes, old_size - size);
    const std::vector<std::byte> zeros(tail);
    Handle self;
    self.inode = std::shared_ptr<Inode>(&inode, [](Inode*) {});
    LK_TRYV(write_at(self, size, zeros));
  }
  // Dirty data goes down first: the size in the tree must not run ahead of it.
  LK_TRYV(flush(inode));
  Lock flush_lock(inode.flush_mutex);
  const u64 first_gone = (size + kPageBytes - 1) / kPageBytes;
  inode.drop_pages(first_gone);
  static constexpr u64 kEntriesAtOnce = 64;
  for (bool more = true; more;) {
    LK_TRY(auto space, store->reserve({0, 4 * kEntriesAtOnce, 4096}, true));
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRY(auto entries, map_entries(transaction, inode.number(),
                                     {first_gone, kFileBytesMax / kPageBytes - first_gone}));
    more = entries.size() > kEntriesAtOnce;
    // From the end, so that after a crash the file has a hole nowhere.
    if (more) entries.erase(entries.begin(), entries.end() - kEntriesAtOnce);
    const u64 from = more ? entries.front().file_block : first_gone;
    LK_TRYV(apply(transaction, inode.number(),
                  extent::punch(entries, {from, kFileBytesMax / kPageBytes - from})));
    if (more) continue;
    Attributes attributes = inode.attributes();
    attributes.size = size;
    attributes.mtime_ns = attributes.ctime_ns = static_cast<i64>(env.realtime_ns());
    LK_TRYV(put_inode(transaction, inode.number(), attributes));
    inode.set_attributes(attributes);
    inode.set_size(size);
    inode.last_transaction = transaction.id();
  }
  return {};
}

Result<void> Volume::fsync(HandleId id) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  const auto flushed = handle->directory ? Result<void>{} : state.flush(*handle->inode);
  LK_TRYV(state.tell_errors(*handle));
  LK_TRYV(flushed);
  return state.store->commit();
}

}  // namespace latchkey::volume
