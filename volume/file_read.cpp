// Reading: pages from the cache where they are, else ciphertext through a borrowed ring, verified,
// then opened straight into the caller's memory.

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/secret_work.h"
#include "engine/read_around.h"
#include "extent/context.h"
#include "extent/seal.h"
#include "volume/lock_limit.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr u64 kBounceBytes = 64 * kKiB;

// One contiguous piece of the device that becomes blocks of the file.
struct Piece {
  u64 first_block = 0;  // of the file
  engine::ExtentRecord record;
  std::optional<extent::Context> context;
  MutableBytes buffer;
  engine::Op op;
  Bytes sealed;  // what was read: in the buffer, or in a window around it

  u64 device_offset(u64 block) const { return (record.run.block + block) * engine::kBlockBytes; }
};

Result<void> look_up(const engine::View& view, InodeId inode, extent::FileRange range,
                     std::vector<Piece>& pieces) {
  LK_TRY(const auto entries, map_entries(view, inode, range));
  for (const extent::MapEntry& entry : entries) {
    if (entry.promised) continue;
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

// A small read among others near by: out of the window around it, which is read for that if need
// be. What of it is not as it should be is another's to read.
class NearReader {
 public:
  NearReader(engine::ReadAround& around, std::vector<Piece>& pieces)
      : piece_(pieces.size() == 1 ? &pieces[0] : nullptr) {
    if (piece_ == nullptr) return;
    found_ = around.find(piece_->record.run);
    if (!found_) load_ = around.load(piece_->record.run);
  }
  u64 buffer_bytes() const { return load_ ? engine::ReadAround::kWindowBytes : 0; }

  bool read_found() { return found_ && is_sound(found_->bytes); }
  bool read_window(engine::Io& io) {
    if (!load_) return false;
    const MutableBytes bytes = io.buffer().first(engine::ReadAround::kWindowBytes);
    const engine::BlockRun window = load_->window();
    if (!read_sync(io, window.block * kPageBytes, bytes)) {
      load_->refuse();
      return false;
    }
    load_->keep(bytes);
    const engine::BlockRun run = piece_->record.run;
    return is_sound(bytes.subspan((run.block - window.block) * kPageBytes, run.count * kPageBytes));
  }

 private:
  bool is_sound(Bytes sealed) {
    if (extent::first_mismatch(sealed, piece_->record.checksums) >= 0) return false;
    piece_->sealed = sealed;
    return true;
  }

  Piece* piece_;
  std::optional<engine::ReadAround::Found> found_;
  std::optional<engine::ReadAround::Load> load_;
};

// The first block of the file that was wanted and is not what it should be.
struct BadBlock {
  u64 block = 0;
  Error error;
};

class PieceReader {
 public:
  // Blocks that are in memory already are not asked how they are on the device.
  PieceReader(engine::Io& io, u64 first_block, const std::vector<bool>& cached)
      : io_(io), first_block_(first_block), cached_(cached) {}

  Result<std::optional<BadBlock>> read(std::vector<Piece>& pieces) {
    u64 at = 0;
    for (Piece& piece : pieces) {
      const u64 size = piece.record.run.count * kPageBytes;
      piece.sealed = piece.buffer = io_.buffer().subspan(at, size);
      at += size;
      piece.op.kind = engine::OpKind::read;
      piece.op.offset = piece.device_offset(0);
      piece.op.data = piece.buffer;
      piece.op.done = [](engine::Op&) {};
      io_.submit(piece.op);
    }
    while (io_.pending() != 0) LK_TRYV(io_.tick(io_.pending()));
    for (const Piece& piece : pieces)
      if (auto bad = first_bad(piece)) return bad;
    return std::optional<BadBlock>{};
  }

 private:
  std::optional<BadBlock> first_bad(const Piece& piece) {
    for (u32 i = 0; i < piece.record.run.count; ++i) {
      const u64 block = piece.first_block + i;
      if (cached_[block - first_block_]) continue;
      const MutableBytes bytes = piece.buffer.subspan(i * kPageBytes, kPageBytes);
      // Of a piece that could not be read each block is asked for by itself.
      const auto read =
          piece.op.result >= 0 ? Result<void>{} : read_sync(io_, piece.device_offset(i), bytes);
      const std::span sum = std::span(piece.record.checksums).subspan(i, 1);
      if (read && extent::first_mismatch(bytes, sum) < 0) continue;
      Error error{Errc::damaged, "data does not match its checksum"};
      if (!read) error = {Errc::io, "data cannot be read", kNowhere, read.error().os_errno};
      error.at = piece.device_offset(i);
      error.in_file = block * kPageBytes;
      return BadBlock{block, error};
    }
    return std::nullopt;
  }

  engine::Io& io_;
  const u64 first_block_;
  const std::vector<bool>& cached_;
};

// A file's blocks are encrypted as the file is, whatever the records say.
Result<void> expect_context(const Piece& piece, const Inode& inode) {
  const bool encrypted = inode.encrypted();
  if (encrypted != piece.context.has_value() ||
      (encrypted && piece.context->key_id != inode.key_id()))
    return fail(Errc::damaged, "an extent is not encrypted as its file is", piece.device_offset(0));
  return {};
}

// An extent's key for the length of a read: out of the slots, or one of the inode's own, which no
// slot is to remember.
class ReadKey {
 public:
  // Under the inode's lease_lock.
  Result<void> find(const Inode& inode, keymgr::SlotTable& slots, const extent::Context& context) {
    if (inode.sealed_keys == nullptr) {
      LK_TRY(keymgr::SlotPin slot, slots.get(inode.key_lease, context.nonce));
      slot_.emplace(std::move(slot));
      return {};
    }
    LK_TRY(own_, Secret<crypto::XtsKey>::create());
    if (!inode.sealed_keys->extent_key(context.nonce, *own_))
      return fail(Errc::no_key, "the key is sealed, and this extent's own key is not there");
    return {};
  }
  const crypto::XtsKey* get() const {
    if (slot_) return &slot_->key();
    return own_.empty() ? nullptr : &*own_;
  }

 private:
  std::optional<keymgr::SlotPin> slot_;
  Secret<crypto::XtsKey> own_;
};

}  // namespace

// `into` is whole blocks, at most a ring's buffer. Pages in memory win over the device. Holes are
// zeros. Returns how many blocks, from the first on, are as they should be: at least one; what lies
// behind a damaged one is another call's.
Result<u64> Volume::State::read_blocks(Inode& inode, u64 first_block, MutableBytes into) {
  const u64 blocks = into.size() / kPageBytes;
  std::vector<bool> cached(blocks);
  u64 missing = 0;
  for (u64 i = 0; i < blocks; ++i) {
    const MutableBytes block = into.subspan(i * kPageBytes, kPageBytes);
    cached[i] = inode.copy_page(first_block + i, 0, block);
    if (cached[i]) continue;
    ++missing;
    std::memset(block.data(), 0, kPageBytes);
  }
  if (missing == 0) return blocks;
  // Until the end: the lease is not taken away under a read, nor are its blocks reused.
  SharedLock lease(inode.lease_lock);
  const engine::ReadPin pin = store->pin();
  // Pages that were not in memory a moment ago are in the tree by now.
  std::vector<Piece> pieces;
  LK_TRYV(look_up(store->view(), inode.id(), {first_block, blocks}, pieces));
  if (pieces.empty()) return blocks;
  std::optional<BadBlock> bad;
  std::optional<engine::BorrowedIo> io;
  NearReader near(store->read_around(), pieces);
  if (!near.read_found()) {
    io.emplace(store->borrow_io(std::max<u64>(into.size(), near.buffer_bytes())));
    if (!near.read_window(**io)) {
      LK_TRY(bad, PieceReader(**io, first_block, cached).read(pieces));
    }
  }
  if (bad && bad->block == first_block) return std::unexpected(bad->error);
  const u64 good_end = bad ? bad->block : first_block + blocks;
  std::optional<SecretWork> work;  // however the read ends
  if (inode.encrypted() && !options.clear_cipher) work.emplace();
  for (const Piece& piece : pieces) {
    if (piece.first_block >= good_end) break;
    LK_TRYV(expect_context(piece, inode));
    ReadKey key;
    if (piece.context && work) LK_TRYV(key.find(inode, *slots, *piece.context));
    // What lies between pages that were in memory, in one go each.
    const u64 index = piece.first_block - first_block;
    const u64 units = std::min<u64>(piece.record.run.count, good_end - piece.first_block);
    for (u64 unit = 0, end = 0; unit < units; unit = end + 1) {
      for (end = unit; end < units && !cached[index + end];) ++end;
      const u64 bytes = (end - unit) * kPageBytes;
      const Bytes sealed = piece.sealed.subspan(unit * kPageBytes, bytes);
      const MutableBytes target = into.subspan((index + unit) * kPageBytes, bytes);
      if (key.get() != nullptr)
        extent::open_blocks(*key.get(), piece.record.first_unit + unit, sealed, target);
      else
        std::memcpy(target.data(), sealed.data(), bytes);
    }
  }
  return good_end - first_block;
}

Result<u64> Volume::State::read(Inode& inode, u64 offset, MutableBytes into) {
  const u64 size = inode.size();
  if (offset >= size) return u64{0};
  const u64 wanted = std::min<u64>(into.size(), size - offset);
  alignas(64) std::array<std::byte, kBounceBytes> bounce;
  bool bounced = false;
  Result<u64> good;
  u64 done = 0;
  while (good && done < wanted) {
    const u64 in_block = (offset + done) % kPageBytes;
    const u64 block = (offset + done) / kPageBytes;
    const u64 left = wanted - done;
    // Whole blocks go where the caller wants them, the last one too where he has room for it.
    const u64 whole = std::min((left + kPageBytes - 1) / kPageBytes * kPageBytes,
                               (into.size() - done) / kPageBytes * kPageBytes);
    if (in_block == 0 && whole != 0) {
      good = read_blocks(inode, block, into.subspan(done, std::min(whole, kReadRingBytes)));
      if (good) done += std::min(*good * kPageBytes, left);
      continue;
    }
    const u64 part = std::min(left, kBounceBytes - in_block);
    const u64 blocks = (in_block + part + kPageBytes - 1) / kPageBytes;
    bounced = true;
    good = read_blocks(inode, block, MutableBytes(bounce).first(blocks * kPageBytes));
    if (!good) break;
    const u64 copied = std::min(part, *good * kPageBytes - in_block);
    std::memcpy(into.data() + done, bounce.data() + in_block, copied);
    done += copied;
  }
  if (bounced && inode.encrypted()) wipe(bounce);
  // What came before the error is told first; the next read meets it again.
  if (!good && done == 0) return std::unexpected(good.error());
  return done;
}

Result<u64> Volume::read(HandleId id, u64 offset, MutableBytes into, IoFlags flags) {
  LK_TRY(const auto handle, state_->find(id));
  if (handle->directory) return fail(Errc::is_dir, "is a directory");
  if (!handle->flags.read) return fail(Errc::bad_handle, "the handle is not open for reading");
  Result<u64> read;
  u64 seen = 0;
  do {
    seen = state_->keyring.suspensions().changes();
    LK_TRYV(state_->ready_for_io(*handle, flags));
    const auto may = flags.wait ? Result<void>{} : state_->may_page_in(*handle->inode, flags);
    if (may)
      read = state_->read(*handle->inode, offset, into);
    else
      read = std::unexpected(may.error());
  } while (!read && state_->begins_again(*handle, read.error(), seen));
  // A removal that dropped pages meanwhile has left holes where they were.
  if (handle->losses != handle->inode->losses) return data_lost();
  if (read) state_->note_read(*handle->inode);
  return read;
}

}  // namespace latchkey::volume
