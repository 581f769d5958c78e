#include "volume/log_replay.h"

#include <algorithm>

#include "crypto/names.h"

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

// Of an insert; what the note says agrees with itself and with the extents.
Result<Note> understand(const engine::LogRecord& record) {
  LK_TRY(Note note, decode_note(record.note));
  u64 blocks = 0;
  for (const engine::ExtentRecord& extent : record.extents) blocks += extent.run.count;
  for (const extent::MapEntry& piece : note.pieces)
    if (piece.blocks > blocks) return malformed("a piece in the fsync log is not of its extents");
  if (!are_of(note.pieces, record.extents))
    return malformed("pieces in the fsync log are not of their extents");
  return note;
}

// All that no insert changes is as it was.
Result<void> must_be_of(const Attributes& note, const Attributes& item) {
  const bool same = item.kind == FileKind::regular && note.kind == item.kind &&
                    note.encrypted == item.encrypted && note.key_id == item.key_id &&
                    note.nonce == item.nonce && note.links == item.links;
  if (!same) return malformed("the fsync log tells of another file under this number");
  return {};
}

// A file that was made.
struct Made {
  InodeId inode;
  Attributes item;
  InodeId directory;
  Entry entry;
};

Result<Made> decode_create(const engine::LogRecord& record) {
  constexpr std::size_t kHead = sizeof(InodeDisk) + sizeof(LogNameDisk);
  if (record.note.size() <= kHead || !record.extents.empty())
    return malformed("a note in the fsync log is malformed");
  const Bytes note(record.note);
  const auto disk = load_disk<LogNameDisk>(note.subspan(sizeof(InodeDisk)));
  Made made;
  made.inode = {record.tree, record.object};
  LK_TRY(made.item, decode_inode(note.first(sizeof(InodeDisk))));
  made.directory = {record.tree, disk.directory};
  made.entry.key = {disk.directory, kEntryType, disk.place};
  made.entry.inode = made.inode;
  const Bytes name = note.subspan(kHead);
  made.entry.stored.assign(reinterpret_cast<const char*>(name.data()), name.size());
  const bool numbered = made.inode.number > kRootNumber && made.inode.number >> 62 == 0 &&
                        made.directory.number >= kRootNumber;
  const bool fresh =
      made.item.kind == FileKind::regular && made.item.links == 1 && made.item.size == 0;
  if (!numbered || !fresh || made.entry.stored.size() > crypto::kNameBytesMax)
    return malformed("the fsync log tells of a file that nobody would have made");
  return made;
}

// Its directory is there with the same policy, and has room for it under its name; nothing is there
// under its number.
Result<void> must_fit(const engine::View& view, const Made& made) {
  LK_TRY(const Attributes above, get_inode(view, made.directory));
  if (above.kind != FileKind::directory || !has_policy_of(made.item, above) ||
      made.item.encrypted != above.encrypted ||
      !could_be_stored(made.entry.stored, above.encrypted))
    return malformed("the fsync log names a file where no such one can be");
  const engine::Key first{made.inode.number, 0, 0};
  LK_TRY(const auto there, view.at_or_after(made.inode.subvolume, first));
  if (there && there->key.object == made.inode.number)
    return malformed("the fsync log makes a file under a number that is used");
  const u64 base = entry_offset(made.entry.stored);
  bool taken = made.entry.key.offset < base || made.entry.key.offset >= base + kNamesOfOneHashMax;
  LK_TRYV(view.scan(made.inode.subvolume, {made.directory.number, kEntryType, base},
                    {made.directory.number, kEntryType, base + kEntrySlots - 1},
                    [&](const engine::Key& key, Bytes value) {
                      const auto entry = decode_entry(made.inode.subvolume, key, value);
                      taken = taken || key.offset == made.entry.key.offset || !entry ||
                              entry->stored == made.entry.stored;
                      return !taken;
                    }));
  if (taken) return malformed("the fsync log makes a file where its name is in use");
  return {};
}

// As Volume::State::make(), but for what the directory and the counts were by then: other files
// that were made at that time may not have been synced.
Result<void> replay_create(engine::Transaction& transaction, const Made& made) {
  const engine::TreeId tree = made.inode.subvolume;
  LK_TRYV(must_fit(transaction, made));
  LK_TRYV(transaction.put(tree, made.entry.key, encode_entry(made.entry)));
  const NameOfInode name{made.directory.number, made.entry.stored};
  LK_TRYV(
      transaction.put(tree, {made.inode.number, kBackType, back_offset(name)}, encode_back(name)));
  LK_TRYV(put_inode(transaction, made.inode, made.item));
  LK_TRYV(count_inodes(transaction, tree, +1));
  LK_TRY(Attributes above, get_inode(transaction, made.directory));
  above.mtime_ns = std::max(above.mtime_ns, made.item.mtime_ns);
  above.ctime_ns = std::max(above.ctime_ns, made.item.ctime_ns);
  LK_TRYV(put_inode(transaction, made.directory, above));
  LK_TRY(const u64 limit, number_limit(transaction, tree));
  if (made.inode.number < limit) return {};
  return put_number_limit(transaction, tree, made.inode.number + 1);
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

std::vector<std::byte> create_note(const Attributes& item, const Entry& entry) {
  const InodeDisk inode = encode(item);
  const LogNameDisk name{entry.key.object, entry.key.offset};
  std::vector<std::byte> note;
  for (const Bytes part : {std::as_bytes(std::span(&inode, 1)), std::as_bytes(std::span(&name, 1)),
                           std::as_bytes(std::span(entry.stored))})
    note.insert(note.end(), part.begin(), part.end());
  return note;
}

Result<void> replay_record(engine::Transaction& transaction, const engine::LogRecord& record) {
  if (record.kind == engine::LogKind::create) {
    LK_TRY(const Made made, decode_create(record));
    return replay_create(transaction, made);
  }
  const InodeId inode{record.tree, record.object};
  LK_TRY(const Note note, understand(record));
  LK_TRY(const Attributes before, get_inode(transaction, inode));
  LK_TRYV(must_be_of(note.item, before));
  engine::DrawnPromise none;
  LK_TRYV(replace_entries(transaction, inode, note.pieces, none));
  LK_TRYV(put_inode(transaction, inode, note.item));
  for (const engine::ExtentRecord& extent : record.extents)
    LK_TRYV(
        transaction.insert_extent(extent.run, extent.first_unit, extent.context, extent.checksums));
  return {};
}

Result<void> LogCheck::check(const engine::LogRecord& record) {
  const InodeId inode{record.tree, record.object};
  if (record.kind == engine::LogKind::insert) {
    LK_TRY(const Note note, understand(record));
    if (const auto made = made_.find(inode); made != made_.end())
      return must_be_of(note.item, made->second);
    LK_TRY(const Attributes item, get_inode(view_, inode));
    return must_be_of(note.item, item);
  }
  LK_TRY(const Made made, decode_create(record));
  LK_TRYV(must_fit(view_, made));
  const bool fresh = made_.emplace(inode, made.item).second &&
                     places_.emplace(made.directory, made.entry.key.offset).second &&
                     names_.emplace(made.directory, made.entry.stored).second;
  if (!fresh) return malformed("the fsync log makes a file twice");
  return {};
}

}  // namespace latchkey::volume
