#pragma once
// What the fsync log carries of a file: its inode item and the pieces of its map that an insert
// entered, or the name under which it was made; and how they are entered again
// (engine/fsync_log.h). Needs no key.

#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/store.h"
#include "extent/map.h"
#include "volume/format.h"

namespace latchkey::volume {

// The note of an insert: an inode item, then one of these for each piece.
struct LogPieceDisk {
  Le64 offset;  // of the file, as in the key of a map record
  extent::MapDisk piece;
};
LK_DISK_STRUCT(LogPieceDisk, 24);

// The note of a create: an inode item, this, then the name as it is stored.
struct LogNameDisk {
  Le64 directory;
  Le64 place;  // offset in the key of the entry
};
LK_DISK_STRUCT(LogNameDisk, 16);

// Of an insert whose changes those are, and all of them.
std::vector<std::byte> insert_note(const Attributes& item, std::span<const extent::MapEntry> fresh);

// Of a regular file that is made with one name, and how many records of the two inodes its
// transaction changes: the item and the back item, the entry and the item of the directory.
std::vector<std::byte> create_note(const Attributes& item, const Entry& entry);
inline constexpr u32 kChangesOfACreate = 4;

// engine::OpenOptions::is_name.
inline bool is_name(const engine::Key& key) { return key.type == kEntryType; }
// engine::OpenOptions::replay.
Result<void> replay_record(engine::Transaction& transaction, const engine::LogRecord& record);

// Whether replay_record() could enter a log's records one after the other, without entering them.
class LogCheck {
 public:
  explicit LogCheck(const engine::View& view) : view_(view) {}
  // The file of an insert is there, with the same identity; of a create nothing is.
  Result<void> check(const engine::LogRecord& record);

 private:
  const engine::View& view_;
  std::map<InodeId, Attributes> made_;  // by records that were checked
  std::set<std::pair<InodeId, u64>> places_;
  std::set<std::pair<InodeId, std::string>> names_;
};

}  // namespace latchkey::volume
