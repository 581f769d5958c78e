#include "volume/log_replay.h"

#include <algorithm>

#include "volume/map_records.h"

namespace latchkey::volume {

namespace {

struct Note {
  Attributes item;
  std::vector<extent::MapEntry> pieces;
};

std::unexpected<Error> malformed(const char* what) { return fail(Errc::malformed, what); }

Result<Note> decode_note(Bytes bytes) {
  if (bytes.size() < sizeof(InodeDisk) ||
      (bytes.size() - sizeof(InodeDisk)) % sizeof(LogPieceDisk) != 0)
    return malformed("a note in the fsync log is malformed");
  Note note;
  LK_TRY(note.item, decode_inode(bytes.first(sizeof(InodeDisk))));
  bytes = bytes.subspan(sizeof(InodeDisk));
  for (u64 end = 0; !bytes.empty(); bytes = bytes.subspan(sizeof(LogPieceDisk))) {
    const auto disk = load_disk<LogPieceDisk>(bytes);
    LK_TRY(const extent::MapEntry piece,
           extent::decode_map(disk.offset, std::as_bytes(std::span(&disk.piece, 1))));
    if (piece.promised || piece.file_block < end)
      return malformed("pieces in the fsync log overlap, or have no blocks");
    end = piece.file_end();
    note.pieces.push_back(piece);
  }
  return note;
}

// The pieces are the blocks of the extents, each once.
bool are_of(const std::vector<extent::MapEntry>& pieces,
            const std::vector<engine::ExtentRecord>& extents) {
  std::vector<u64> named, held;
  for (const extent::MapEntry& piece : pieces)
    for (u32 i = 0; i < piece.blocks; ++i) named.push_back(piece.disk_block + i);
  for (const engine::ExtentRecord& extent : extents)
    for (u32 i = 0; i < extent.run.count; ++i) held.push_back(extent.run.block + i);
  std::ranges::sort(named);
  std::ranges::sort(held);
  return !named.empty() && named == held;
}

// The file that it is of, in the tree, with all that no insert changes.
Result<Note> understand(const engine::View& view, const engine::LogRecord& record) {
  LK_TRY(Note note, decode_note(record.note));
  u64 blocks = 0;
  for (const engine::ExtentRecord& extent : record.extents) blocks += extent.run.count;
  for (const extent::MapEntry& piece : note.pieces)
    if (piece.blocks > blocks) return malformed("a piece in the fsync log is not of its extents");
  if (!are_of(note.pieces, record.extents))
    return malformed("pieces in the fsync log are not of their extents");
  LK_TRY(const Attributes item, get_inode(view, {record.tree, record.object}));
  const bool same = item.kind == FileKind::regular && note.item.kind == item.kind &&
                    note.item.encrypted == item.encrypted && note.item.key_id == item.key_id &&
                    note.item.nonce == item.nonce && note.item.links == item.links;
  if (!same) return malformed("the fsync log tells of another file under this number");
  return note;
}

}  // namespace

std::vector<std::byte> insert_note(const Attributes& item,
                                   std::span<const extent::MapEntry> fresh) {
  std::vector<std::byte> note;
  const auto append = [&note](const auto& disk) {
    const Bytes bytes = std::as_bytes(std::span(&disk, 1));
    note.insert(note.end(), bytes.begin(), bytes.end());
  };
  append(encode(item));
  for (const extent::MapEntry& piece : fresh)
    append(LogPieceDisk{piece.file_block * engine::kBlockBytes, extent::encode(piece)});
  return note;
}

Result<void> replay_record(engine::Transaction& transaction, const engine::LogRecord& record) {
  const InodeId inode{record.tree, record.object};
  LK_TRY(const Note note, understand(transaction, record));
  engine::DrawnPromise none;
  LK_TRYV(replace_entries(transaction, inode, note.pieces, none));
  LK_TRYV(put_inode(transaction, inode, note.item));
  for (const engine::ExtentRecord& extent : record.extents)
    LK_TRYV(
        transaction.insert_extent(extent.run, extent.first_unit, extent.context, extent.checksums));
  return {};
}

Result<void> check_record(const engine::View& view, const engine::LogRecord& record) {
  LK_TRYV(understand(view, record));
  return {};
}

}  // namespace latchkey::volume
