#pragma once
// What writeback knows of a file: pages that it takes, and a place that hears where they went. The
// volume's inodes implement it.
//
// Threads: one flush of a file at a time; the caller of flush() holds the file's flush lock (D5: a
// range is under one writeout at a time).

#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "engine/store.h"
#include "extent/map.h"
#include "keymgr/own_keys.h"

namespace latchkey::writeback {

struct DirtyPage {
  u64 index = 0;                    // in the file, in pages of 4096
  const std::byte* data = nullptr;  // stable and unchanged until sealed()
};

class DirtyFile {
 public:
  virtual ~DirtyFile() = default;
  // What its data is encrypted under; nullptr: a clear file.
  virtual const keymgr::Lease* lease() const = 0;
  virtual crypto::KeyId key_id() const = 0;
  // Under a sealed removal: its extents are written under the write key of these. Else nullptr.
  virtual keymgr::OwnKeys* own_keys() const { return nullptr; }
  // Moves up to `pages_max` dirty pages into flight, ascending from `from` on, and adds their
  // reserved space to `space`; they are closed to writers until sealed(). A flush begins with
  // `from` 0 and goes on where the last take ended. It gives nothing where taking more would let
  // the size in the tree run ahead of the data (D5).
  virtual std::vector<DirtyPage> take(u64 from, u32 pages_max, engine::Reservation& space) = 0;
  virtual void sealed(std::span<const DirtyPage> pages) = 0;
  // What insert() is about to enter, as the fsync log carries it but for the extents; none: only a
  // commit can make it durable. A short look at the map at most.
  virtual std::optional<engine::LogRecord> log_record(
      const engine::Store& /*store*/, std::span<const extent::MapEntry> /*fresh*/) const {
    return {};
  }
  // The pages' data is on the device: enters it into the map. In the order of the takes; after an
  // error no later take of that flush is inserted. A failure has changed nothing unless the store
  // has stopped.
  virtual Result<void> insert(engine::Transaction& transaction,
                              std::span<const extent::MapEntry> fresh) = 0;
  // The end of their flight. On an error they are dirty again and `space` is theirs; under no_key
  // they are the file's to drop.
  virtual void finished(std::span<const DirtyPage> pages, const Result<void>& result,
                        engine::Reservation&& space) = 0;
};

}  // namespace latchkey::writeback
