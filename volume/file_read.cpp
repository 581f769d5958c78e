// Reading: pages from the cache where they are, else ciphertext through a borrowed ring, verified,
// then opened in place.

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "extent/context.h"
#include "extent/seal.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

// One contiguous piece of the device that becomes blocks of the file.
struct Piece {
  u64 first_block = 0;  // of the file
  engine::ExtentRecord record;
  std::optional<extent::Context> context;
  MutableBytes buffer;
  engine::Op op;
};

Result<void> look_up(const engine::View& view, InodeNumber inode, extent::FileRange range,
                     std::vector<Piece>& pieces) {
  LK_TRY(const auto entries, map_entries(view, inode, range));
  for (const extent::MapEntry& entry : entries) {
    const u64 from = std::max(entry.file_block, range.first_block);
    const u64 to = std::min(entry.file_end(), range.end());
    for (u64 block = from; block < to;) {
      Piece piece;
      piece.first_block = block;
      LK_TRY(piece.record, view.extent_at(entry.disk_block + (block - entry.file_block),
                                          static_cast<u32>(to - block)));
      LK_TRY(piece.context, extent::decode_context(piece.record.context));
      block += piece.record.run.count;
      pieces.push_back(std::move(piece));
    }
  }
  return {};
}

Result<void> read_pieces(engine::Io& io, std::vector<Piece>& pieces) {
  u64 at = 0;
  for (Piece& piece : pieces) {
    const u64 size = piece.record.run.count * kPageBytes;
    piece.buffer = io.buffer().subspan(at, size);
    at += size;
    piece.op.kind = engine::OpKind::read;
    piece.op.offset = piece.record.run.block * engine::kBlockBytes;
    piece.op.data = piece.buffer;
    piece.op.done = [](engine::Op&) {};
    io.submit(piece.op);
  }
  while (io.pending() != 0) LK_TRYV(io.tick(io.pending()));
  for (const Piece& piece : pieces)
    if (piece.op.result < 0)
      return fail_os(Errc::io, static_cast<i32>(-piece.op.result), "data cannot be read",
                     piece.op.offset);
  return {};
}

}  // namespace

// `into` is whole blocks, at most a ring's buffer. Pages in memory win over the device. Holes are
// zeros.
Result<void> Volume::State::read_blocks(Inode& inode, u64 first_block, MutableBytes into) {
  const u64 blocks = into.size() / kPageBytes;
  std::vector<bool> cached(blocks);
  bool all = true;
  for (u64 i = 0; i < blocks; ++i) {
    cached[i] = inode.copy_page(first_block + i, 0, into.subspan(i * kPageBytes, kPageBytes));
    all = all && cached[i];
    if (!cached[i]) std::memset(into.data() + i * kPageBytes, 0, kPageBytes);
  }
  if (all) return {};
  SharedLock lease(inode.lease_lock);
  // Pages that were not in memory a moment ago are in the tree by now.
  const engine::ReadPin pin = store->pin();
  std::vector<Piece> pieces;
  LK_TRYV(look_up(store->view(), inode.number(), {first_block, blocks}, pieces));
  if (pieces.empty()) return {};
  const engine::BorrowedIo io = store->borrow_io();
  const auto read = read_pieces(*io, pieces);
  if (!read) return read;
  for (const Piece& piece : pieces) {
    const i64 bad = extent::first_mismatch(piece.buffer, piece.record.checksums);
    if (bad >= 0)
      return fail(Errc::damaged, "data does not match its checksum",
                  (piece.record.run.block + static_cast<u64>(bad)) * engine::kBlockBytes);
    std::optional<keymgr::SlotPin> slot;
    if (piece.context && !options.clear_cipher) {
      LK_TRY(keymgr::SlotPin got,
             slots->get(inode.key_lease, piece.context->key_id, piece.context->nonce));
      slot.emplace(std::move(got));
    }
    for (u32 unit = 0; unit < piece.record.run.count; ++unit) {
      const u64 index = piece.first_block - first_block + unit;
      if (cached[index]) continue;
      const Bytes block = Bytes(piece.buffer).subspan(unit * kPageBytes, kPageBytes);
      const MutableBytes target = into.subspan(index * kPageBytes, kPageBytes);
      if (slot)
        extent::open_blocks(slot->key(), piece.record.first_unit + unit, block, target);
      else
        std::memcpy(target.data(), block.data(), kPageBytes);
    }
  }
  burn_stack_and_registers();
  return {};
}

Result<u64> Volume::State::read(Handle& handle, u64 offset, MutableBytes into) {
  Inode& inode = *handle.inode;
  LK_TRYV(unlock_inode(inode));
  const u64 size = inode.size();
  if (offset >= size) return u64{0};
  into = into.first(std::min<u64>(into.size(), size - offset));
  static constexpr u64 kChunk = 512 * kKiB;  // half of a ring's buffer
  std::optional<engine::IoBuffer> bounce;
  for (u64 done = 0; done < into.size();) {
    const u64 at = offset + done;
    const u64 in_block = at % kPageBytes;
    const u64 part = std::min(kChunk - in_block, into.size() - done);
    const u64 whole = (in_block + part + kPageBytes - 1) / kPageBytes * kPageBytes;
    if (in_block == 0 && part == whole) {
      LK_TRYV(read_blocks(inode, at / kPageBytes, into.subspan(done, part)));
    } else {
      if (!bounce) {
        LK_TRY(auto buffer, engine::IoBuffer::create(kChunk));
        bounce.emplace(std::move(buffer));
      }
      LK_TRYV(read_blocks(inode, at / kPageBytes, bounce->bytes().first(whole)));
      std::memcpy(into.data() + done, bounce->bytes().data() + in_block, part);
    }
    done += part;
  }
  if (bounce && inode.attributes().encrypted) wipe(bounce->bytes());
  return into.size();
}

Result<u64> Volume::read(HandleId id, u64 offset, MutableBytes into) {
  LK_TRY(const auto handle, state_->find(id));
  if (handle->directory) return fail(Errc::is_dir, "is a directory");
  if (!handle->flags.read) return fail(Errc::bad_handle, "the handle is not open for reading");
  if (handle->inode->lost_data)
    return fail(Errc::io, "data of this file was lost when its key was removed");
  return state_->read(*handle, offset, into);
}

}  // namespace latchkey::volume
