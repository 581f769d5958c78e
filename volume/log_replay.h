#pragma once
// What the fsync log carries of a file: its inode item and the pieces of its map that an insert
// entered, and how they are entered again (engine/fsync_log.h). Needs no key.

#include <span>
#include <vector>

#include "engine/store.h"
#include "extent/map.h"
#include "volume/format.h"

namespace latchkey::volume {

// The note of a record: an inode item, then one of these for each piece.
struct LogPieceDisk {
  Le64 offset;  // of the file, as in the key of a map record
  extent::MapDisk piece;
};
LK_DISK_STRUCT(LogPieceDisk, 24);

// Of an insert whose changes those are, and all of them.
std::vector<std::byte> insert_note(const Attributes& item, std::span<const extent::MapEntry> fresh);

// engine::OpenOptions::replay.
Result<void> replay_record(engine::Transaction& transaction, const engine::LogRecord& record);
// Whether replay_record() could enter it into this tree: its file is there, with the same identity.
Result<void> check_record(const engine::View& view, const engine::LogRecord& record);

}  // namespace latchkey::volume
