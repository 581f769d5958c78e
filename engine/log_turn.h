#pragma once
// An fsync in two steps of the device: the data and the block of the fsync log that tells of it go
// down beside each other, then one flush makes both durable (fsync_log.h, L4: replay takes the
// block only if the data verifies). Who has the turn keeps commits and other blocks of the log
// waiting, so nothing but that I/O is waited for in between.

#include <optional>

#include "engine/io.h"
#include "engine/store.h"

namespace latchkey::engine {

class LogTurn {
 public:
  // None where somebody writes a commit or the log already, or where only a commit makes `record`
  // durable (L1): insert, then sync_object(), as ever. The blocks of the record are allocated and
  // in nobody's tree, and nobody inserts anything else into its object until it is inserted itself.
  static std::optional<LogTurn> take(Store& store, const LogRecord& record);
  LogTurn(LogTurn&& other) noexcept;
  LogTurn& operator=(LogTurn&&) = delete;
  ~LogTurn();  // of a turn that has ended

  // The block's write, to be submitted with those of the data; its `done` and `owner` are the
  // caller's. From then on the turn stays where it is until the op is done.
  Op& op() { return op_; }
  // All of it is done, `landed`: so that the data is on the device. Flushes through `io`, which has
  // nothing pending, and ends the turn. The answer says in which generation's log the record is:
  // Transaction::already_logged(). 0 where it is in none, because not all of it landed, or the
  // block did not; then the log is not gone on with before the next commit, since its last block
  // must never count. A flush that fails stops the store (E5).
  Result<u64> end(Io& io, bool landed);

 private:
  LogTurn(StoreState& state, u64 generation) : state_(&state), generation_(generation) {}
  StoreState* state_;
  u64 generation_;
  Op op_;
};

}  // namespace latchkey::engine
