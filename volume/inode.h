#pragma once
// An inode in memory: kept while somebody uses it (an open handle, an operation) or it is dirty.
// Its unlocked part is the lease of its key and its pages.
//
// Locks, in order: write_mutex (one writer or truncate at a time) -> flush_mutex (one flush at a
// time, truncate and unlink included) -> lease_lock (shared by reads, writes and flushes; exclusive
// where the lease comes or goes) -> the engine's forest -> mutex (pages and attributes).

#include <atomic>
#include <functional>
#include <map>
#include <memory>

#include "base/mutex.h"
#include "engine/store.h"
#include "keymgr/keyring.h"
#include "volume/block_counts.h"
#include "volume/map_records.h"
#include "volume/page_memory.h"
#include "writeback/dirty_file.h"

namespace latchkey::volume {

class Inode final : public writeback::DirtyFile, public std::enable_shared_from_this<Inode> {
 public:
  Inode(InodeId id, u64 owner_word, const Attributes& attributes, PageMemory& memory,
        BlockCounts& block_counts)
      : id_(id),
        owner_word_(owner_word),
        memory_(memory),
        block_counts_(block_counts),
        attributes_(attributes),
        tree_size_(attributes.size) {}
  ~Inode() override;

  InodeId id() const { return id_; }
  // By which a removal finds this inode from its lease; no other inode in memory has it.
  u64 owner_word() const { return owner_word_; }

  Mutex write_mutex;
  Mutex flush_mutex LK_AFTER(write_mutex);
  mutable SharedMutex lease_lock LK_AFTER(flush_mutex);
  mutable Mutex mutex LK_AFTER(lease_lock);

  // Under lease_lock. The keys of its own, where a sealed removal left it those instead of the
  // master's, come under flush_mutex too, so that a clone in hand is over; they go with the lease,
  // or when the master is back.
  keymgr::Lease key_lease;
  std::unique_ptr<keymgr::OwnKeys> sealed_keys;

  // Under the volume's table lock. `users` counts handles and operations under way.
  u32 users = 0;
  std::vector<u64> handle_ids;

  std::atomic<bool> unlinked{false};      // set under the volume's table lock
  std::atomic<bool> linkable{false};      // without a name yet, and may get one
  std::atomic<u64> last_transaction{0};   // that changed it
  std::atomic<u32> losses{0};             // how often dirty pages were dropped that were not to be
  std::atomic<u64> errors{0};             // failed writeouts; each handle hears of the last one
  std::atomic<bool> error_untold{false};  // no handle has heard of the last one

  // --- pages and attributes: each takes `mutex` itself ------------------------------------------
  Attributes attributes() const LK_EXCLUDES(mutex);
  // Changes anything but the size; returns what the inode item has to say. Inside of a transaction,
  // so that the last change is also the last item.
  Attributes change(const std::function<void(Attributes&)>& fn) LK_EXCLUDES(mutex);
  bool encrypted() const LK_EXCLUDES(mutex);
  // A read: moves atime if it is old enough. Pending until the item is put again.
  bool note_read(i64 now_ns, Atime which) LK_EXCLUDES(mutex);
  bool atime_pending() const LK_EXCLUDES(mutex);
  u64 size() const LK_EXCLUDES(mutex);
  // By truncate: everything beyond it is dropped, in memory and in the tree.
  void set_size(u64 size) LK_EXCLUDES(mutex);
  u64 dirty_bytes() const LK_EXCLUDES(mutex);
  bool clean() const LK_EXCLUDES(mutex);
  Error last_error() const LK_EXCLUDES(mutex);
  void note_error(const Error& error) LK_EXCLUDES(mutex);  // each handle hears of it

  // Pages of [first, first + count) that need space before a write: all but the dirty ones.
  u64 pages_without_space(u64 first, u64 count) const LK_EXCLUDES(mutex);
  // Which of those do, but for the ones whose promise is drawn by what is in flight.
  std::vector<bool> pages_to_draw(u64 first, u64 count) const LK_EXCLUDES(mutex);
  // Copies what is in memory of page `index`; false: it is not there.
  bool copy_page(u64 index, u64 offset, MutableBytes into) const LK_EXCLUDES(mutex);

  // Indexes of the pages in memory from `first` on.
  std::vector<u64> pages_from(u64 first) const LK_EXCLUDES(mutex);

  // A write inside one page.
  struct PageWrite {
    u64 index = 0;
    u64 offset = 0;  // in the page
    Bytes from;
    Bytes base;  // the page's content on the device where it is not all written; empty: zeros
    i64 now_ns = 0;
    bool promised = false;  // its block is promised
  };
  // Takes a page of `room` if it has none, a block of `space` if it was not dirty: one of those
  // that were drawn where its block is promised, else another. False: `space` has no such block
  // left, nothing was written.
  bool write_page(const PageWrite& write, Room& room, engine::Reservation& space)
      LK_EXCLUDES(mutex);

  // Drops pages from `first` on that nobody wants any more; returns how many dirty bytes went.
  // Under the flush lock.
  u64 drop_pages(u64 first) LK_EXCLUDES(mutex);
  // Drops pages that somebody wanted, which counts as a loss: the file is again what the tree says.
  u64 lose_pages() LK_EXCLUDES(mutex);

  // --- writeback::DirtyFile ---------------------------------------------------------------------
  const keymgr::Lease* lease() const override;
  crypto::KeyId key_id() const override;
  keymgr::OwnKeys* own_keys() const override { return sealed_keys.get(); }
  std::vector<writeback::DirtyPage> take(u64 from, u32 pages_max,
                                         engine::Reservation& space) override LK_EXCLUDES(mutex);
  void sealed(std::span<const writeback::DirtyPage> pages) override LK_EXCLUDES(mutex);
  std::optional<engine::LogRecord> log_record(
      const engine::Store& store, std::span<const extent::MapEntry> fresh) const override
      LK_EXCLUDES(mutex);
  Result<void> insert(engine::Transaction& transaction,
                      std::span<const extent::MapEntry> fresh) override LK_EXCLUDES(mutex);
  void finished(std::span<const writeback::DirtyPage> pages, const Result<void>& result,
                engine::Reservation&& space) override LK_EXCLUDES(mutex);

 private:
  struct Page {
    std::byte* data = nullptr;
    bool dirty = false;
    bool in_flight = false;
    bool sealing = false;
    bool drawn = false;         // its space is its block's promise
    bool flight_drawn = false;  // that of what is in flight is
  };
  using Pages = std::map<u64, Page>;
  // Memory of pages that went, given back when the lock is not held any more.
  u64 drop(u64 first, PageList& released) LK_REQUIRES(mutex);
  // The item once `fresh` is in the map.
  Attributes item_with(std::span<const extent::MapEntry> fresh) const LK_REQUIRES(mutex);
  // Of the pages of `fresh`, which are in flight, those that drew. `end`: they do no more.
  u64 flight_drawn(std::span<const extent::MapEntry> fresh, bool end) LK_REQUIRES(mutex);
  void drop_if_clean(Pages::iterator page, PageList& released) LK_REQUIRES(mutex);
  void settle(std::span<const writeback::DirtyPage> pages, const Result<void>& result,
              engine::Reservation&& space, PageList& released) LK_EXCLUDES(mutex);

  const InodeId id_;
  const u64 owner_word_;
  PageMemory& memory_;
  BlockCounts& block_counts_;
  CondVar sealed_;  // with mutex

  Attributes attributes_ LK_GUARDED_BY(mutex);
  bool atime_pending_ LK_GUARDED_BY(mutex) = false;  // not in the tree yet
  u64 tree_size_ LK_GUARDED_BY(mutex);               // what the inode item says (D5)
  u64 flight_size_ LK_GUARDED_BY(mutex) = 0;         // the size when pages were last taken
  u64 flush_end_ LK_GUARDED_BY(mutex) = 0;  // pages from here on came after the flush began
  Pages pages_ LK_GUARDED_BY(mutex);
  u64 dirty_pages_ LK_GUARDED_BY(mutex) = 0;
  engine::Reservation space_ LK_GUARDED_BY(mutex);   // of the dirty pages
  engine::DrawnPromise drawn_ LK_GUARDED_BY(mutex);  // by pages that are dirty or in flight
  Error error_ LK_GUARDED_BY(mutex){Errc::io};
};

}  // namespace latchkey::volume
