#pragma once
// Removal modes are rows of data: the removal reads the row, no mode has code of its own (design
// 3).

#include <array>
#include <optional>
#include <string_view>

#include "base/types.h"

namespace latchkey::keymgr {

enum class RemovalMode : u8 { soft, sealed, safe, sync, freeze, deny, hard, suspend };

enum class Writers : u8 {
  keep,  // work as before
  hold,  // wait at the gate while the removal prepares
  stop,  // get ENOKEY at the gate from now on
};
enum class Dirty : u8 {
  flush_busy_later,  // closed inodes are flushed by the call, open ones at their last close
  flush,             // all of the key's dirty pages are written before the wipe
  drop,              // dropped and counted as lost
};
enum class Stays : u8 { master, own_keys, nothing };  // in memory while handles are open
enum class LaterIo : u8 { succeeds, no_key, waits };  // read and write of handles that remain

struct RemovalRow {
  RemovalMode mode;
  std::string_view name;
  bool refuse_when_busy;  // EBUSY and holders; nothing changed
  bool claim_first;       // the claim is committed before the flush, not after
  Writers writers;
  Dirty dirty;
  Stays stays;
  LaterIo later_io;
  bool may_lose;  // acknowledged writes that are dirty at the wipe: dropped, and counted
};

const RemovalRow& removal_row(RemovalMode mode);
std::span<const RemovalRow> removal_rows();
std::optional<RemovalMode> parse_removal_mode(std::string_view name);

}  // namespace latchkey::keymgr
