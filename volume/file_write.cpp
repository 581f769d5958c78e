// Writing. The order of a write (design 6): room in the cache, space on the device, the key's gate,
// the copy.

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/no_memory.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr u64 kPagesAtOnce = 512;  // of one reservation and one pass of the gate: 2 MiB

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

// What the device has of a write's first and last page, where those are not written whole.
struct Edges {
  alignas(64) std::array<std::byte, 2 * kPageBytes> bytes;
  std::array<u64, 2> index{};
  std::array<bool, 2> there{};

  Bytes of(u64 page) const {
    for (u32 i = 0; i < 2; ++i)
      if (there[i] && index[i] == page) return Bytes(bytes).subspan(i * kPageBytes, kPageBytes);
    return {};
  }
  ~Edges() {
    if (there[0] || there[1]) wipe(bytes);
  }
};

// Inside of the key's gate and of the lease's lock, for a copy into the cache. A held gate is
// waited for without the lock, which a flush and an add of the key take.
class CopySection {
 public:
  static Result<CopySection> enter(Inode& inode, IoFlags flags) LK_NO_ANALYSIS {
    const bool encrypted = inode.encrypted();
    for (keymgr::HeldGate held;; held.wait()) {
      CopySection section(inode);
      if (!encrypted) return section;
      auto pass = try_enter(inode, flags, held);
      if (pass) {
        section.pass_.emplace(std::move(*pass));
        return section;
      }
      if (pass.error().code != Errc::busy) return std::unexpected(pass.error());
      if (!flags.wait) return would_wait();
    }
  }
  CopySection(CopySection&& other) noexcept
      : lock_(std::exchange(other.lock_, nullptr)), pass_(std::move(other.pass_)) {}
  CopySection& operator=(CopySection&&) = delete;
  ~CopySection() LK_NO_ANALYSIS {
    pass_.reset();
    if (lock_ != nullptr) lock_->unlock_shared();
  }

 private:
  static Result<keymgr::GatePass> try_enter(const Inode& inode, IoFlags flags,
                                            keymgr::HeldGate& held) {
    if (flags.written_back || flags.serve) {
      auto pass = keymgr::GatePass::enter_from_front(inode.key_lease);
      if (pass || flags.written_back) return pass;
    }
    return keymgr::GatePass::try_enter(inode.key_lease, held);
  }
  explicit CopySection(Inode& inode) LK_NO_ANALYSIS : lock_(&inode.lease_lock) {
    lock_->lock_shared();
  }
  SharedMutex* lock_;
  std::optional<keymgr::GatePass> pass_;
};

}  // namespace

// The piece touches at most kPagesAtOnce pages. Nobody else writes this file meanwhile, but a flush
// may take its pages, and a removal may drop them: then what the caller saw of the file is gone.
Result<void> Volume::State::write_piece(Inode& inode, const WritePiece& piece) {
  const u64 offset = piece.offset;
  const Bytes from = piece.from;
  const u64 first = offset / kPageBytes;
  const u64 count = (offset + from.size() - 1) / kPageBytes - first + 1;
  LK_TRYV(unlock_inode(inode));
  LK_TRY(Room room, take_room(count));
  Edges edges;
  edges.index = {first, first + count - 1};
  for (u32 i = 0; i < (count == 1 ? 1U : 2U); ++i) {
    const bool whole = part_of(edges.index[i], offset, from).bytes.size() == kPageBytes;
    if (whole || edges.index[i] * kPageBytes >= inode.size()) continue;
    edges.there[i] = true;  // wiped from now on
    LK_TRYV(read_blocks(inode, edges.index[i],
                        MutableBytes(edges.bytes).subspan(i * kPageBytes, kPageBytes)));
  }
  // Dirty pages have their space already. Those that a flush takes in the meantime need new space:
  // then the rest is reserved and the copy goes on.
  u64 wanted = inode.pages_without_space(first, count);
  for (u64 index = first; index < first + count; wanted = first + count - index) {
    engine::Reservation space;
    std::vector<bool> promised;
    if (wanted != 0 && store->promised_blocks() != 0) {
      LK_TRY(promised, promised_pages(inode, index, first + count - index));
    }
    if (wanted != 0) {
      const auto drawn = static_cast<u64>(std::ranges::count(promised, true));
      wanted = std::max(wanted, drawn);
      const engine::SpaceNeed need{
          .data_blocks = wanted,
          .records = static_cast<u32>(wanted * engine::kRecordsABlock),
          .record_bytes = wanted * engine::kRecordBytesABlock,
          .leaves = leaves_of_neighbours(wanted),
          .promised_blocks = drawn,
      };
      LK_TRY(space, reserve(need, piece.use_reserve));
    }
    LK_TRY(const CopySection section, CopySection::enter(inode, piece.flags));
    if (inode.losses != piece.losses) return data_lost();
    const i64 now = static_cast<i64>(env.realtime_ns());
    const u64 begun = index;
    for (; index < first + count; ++index) {
      const PagePart part = part_of(index, offset, from);
      const bool draws = !promised.empty() && promised[index - begun];
      if (!inode.write_page({index, part.in_page, part.bytes, edges.of(index), now, draws}, room,
                            space))
        break;
    }
  }
  return {};
}

// Which pages may take their space out of a promise, to nobody else's loss. Pages first, then the
// map: what lands in between has used its promise up, and was in flight.
Result<std::vector<bool>> Volume::State::promised_pages(const Inode& inode, u64 first, u64 count) {
  const std::vector<bool> to_draw = inode.pages_to_draw(first, count);
  std::vector<bool> promised(count, false);
  LK_TRY(const auto entries, map_entries(store->view(), inode.id(), {first, count}));
  for (const extent::MapEntry& entry : entries) {
    if (!entry.promised || blocks_held(entry, inode.id().subvolume) == 0) continue;
    const u64 end = std::min(entry.file_end(), first + count);
    for (u64 page = std::max(entry.file_block, first); page < end; ++page)
      promised[page - first] = to_draw[page - first];
  }
  return promised;
}

// `offset`: none for the end of the file. Answers where it was written.
Result<Volume::State::Written> Volume::State::write(HandleId id, std::optional<u64> offset,
                                                    Bytes from, IoFlags flags) {
  LK_TRY(HandleUse handle, find(id));
  u64 done = 0;
  const auto wrote = or_no_memory([&] { return write(*handle, offset, from, flags, done); });
  if (!wrote && flags.written_back)
    note_refused(handle->inode, *offset + done, from.size() - done, wrote.error());
  // After a close under it this is the last user, whose flush nobody else hears of.
  const auto ended = handle.end();
  if (!wrote) return std::unexpected(wrote.error());
  LK_TRYV(ended);
  return Written{*wrote, done};
}

Result<u64> Volume::State::write(Handle& handle, std::optional<u64> offset, Bytes from,
                                 IoFlags flags, u64& done) {
  if (!handle.flags.write) return fail(Errc::bad_handle, "the handle is not open for writing");
  LK_TRYV(must_be_writable());
  LK_TRYV(ready_for_io(handle, flags));
  if (auto failure = store->failure()) {
    if (!flags.written_back) handle.stop_told = true;
    return std::unexpected(*failure);
  }
  Inode& inode = *handle.inode;
  Lock writer(inode.write_mutex);
  if (!offset || (handle.flags.append && !flags.written_back)) offset = inode.size();
  if (*offset > kFileBytesMax || from.size() > kFileBytesMax - *offset)
    return fail(Errc::too_big, "a file is too big");
  if (!flags.written_back) LK_TRYV(drop_privileges(inode, handle.uid));
  const u64 pages = std::min(kPagesAtOnce, memory.pages_max() / 2);
  while (done < from.size()) {
    const u64 size = std::min<u64>(from.size() - done, (pages - 1) * kPageBytes);
    const u64 seen = keyring.suspensions().changes();
    auto wrote =
        write_piece(inode, {*offset + done, from.subspan(done, size), handle.losses, false, flags});
    if (wrote) {
      done += size;
      continue;
    }
    // The lock stays held, so that an append keeps its place.
    if (begins_again(handle, wrote.error(), seen)) {
      wrote = ready_for_io(handle, flags);
      if (wrote) continue;
    }
    // What is written back is all taken, or somebody is told of the rest.
    if (wrote.error().code == Errc::would_wait && done != 0 && !flags.written_back) break;
    return std::unexpected(wrote.error());
  }
  return *offset;
}

Result<u64> Volume::write(HandleId id, u64 offset, Bytes from, IoFlags flags) {
  LK_TRY(const auto written, state_->write(id, offset, from, flags));
  return written.bytes;
}

Result<u64> Volume::append(HandleId id, Bytes from) {
  LK_TRY(const auto written, state_->write(id, {}, from, {}));
  return written.offset;
}

}  // namespace latchkey::volume
