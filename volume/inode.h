#pragma once
// An inode in memory: kept while a handle is open on it, or while it is dirty. Its unlocked part is
// the lease of its key and its pages.
//
// Locks, in order: write_mutex (one writer or truncate at a time) -> flush_mutex (one flush at a
// time, truncate and unlink included) -> lease_lock (shared by reads, writes and flushes; exclusive
// where the lease comes or goes) -> the engine's forest -> mutex (pages and attributes; a leaf but
// for the gate's and the keyring's own).

#include <atomic>
#include <map>
#include <memory>

#include "base/mutex.h"
#include "engine/io_buffer.h"
#include "engine/store.h"
#include "keymgr/keyring.h"
#include "volume/format.h"
#include "writeback/dirty_file.h"

namespace latchkey::volume {

inline constexpr u64 kPageBytes = 4096;

// Told of every page that becomes dirty or clean: the bound on dirty memory.
class DirtyBudget {
 public:
  virtual ~DirtyBudget() = default;
  virtual void pages_gone(u64 count) = 0;
};

class Inode final : public writeback::DirtyFile {
 public:
  Inode(InodeNumber number, const Attributes& attributes, DirtyBudget& budget)
      : number_(number), attributes_(attributes), tree_size_(attributes.size), budget_(budget) {}
  ~Inode() override;

  InodeNumber number() const { return number_; }

  Mutex write_mutex;
  Mutex flush_mutex LK_AFTER(write_mutex);
  mutable SharedMutex lease_lock LK_AFTER(flush_mutex);
  mutable Mutex mutex LK_AFTER(lease_lock);

  // Under lease_lock.
  keymgr::Lease key_lease;

  // --- pages and attributes, each takes `mutex` itself ------------------------------------------
  Attributes attributes() const LK_EXCLUDES(mutex);
  void set_attributes(const Attributes& attributes) LK_EXCLUDES(mutex);  // not the size
  u64 size() const LK_EXCLUDES(mutex);
  void set_size(u64 size) LK_EXCLUDES(mutex);  // truncate, with everything beyond it dropped
  u64 dirty_bytes() const LK_EXCLUDES(mutex);
  bool clean() const LK_EXCLUDES(mutex);
  bool has_page(u64 index) const LK_EXCLUDES(mutex);
  // Pages of [first, first + count) that are not dirty: each needs space before a write.
  u64 clean_pages(u64 first, u64 count) const LK_EXCLUDES(mutex);
  // Copies what is in memory of page `index`; false: it is not there.
  bool copy_page(u64 index, u64 offset, MutableBytes into) const LK_EXCLUDES(mutex);
  // Writes inside one page. `base` is the page's content on the device, used if it is not in
  // memory. Takes a block of `space` if it becomes dirty. True: the page is new in memory.
  bool write_page(u64 index, u64 offset, Bytes from, Bytes base, engine::Reservation& space,
                  i64 now_ns) LK_EXCLUDES(mutex);
  // Drops pages from `first` on, in memory only; returns how many dirty bytes went.
  u64 drop_pages(u64 first) LK_EXCLUDES(mutex);

  // --- writeback::DirtyFile ---------------------------------------------------------------------
  const keymgr::Lease* lease() const override;
  crypto::KeyId key_id() const override { return attributes_.key_id; }
  std::vector<writeback::DirtyPage> take(u64 from, u32 pages_max,
                                         engine::Reservation& space) override LK_EXCLUDES(mutex);
  void sealed(std::span<const writeback::DirtyPage> pages) override LK_EXCLUDES(mutex);
  Result<void> insert(engine::Transaction& transaction,
                      const std::vector<extent::MapEntry>& fresh) override LK_EXCLUDES(mutex);
  void finished(std::span<const writeback::DirtyPage> pages, const Result<void>& result,
                engine::Reservation&& space) override LK_EXCLUDES(mutex);

  std::atomic<u64> last_transaction{0};  // that changed it
  std::atomic<u32> handles{0};           // open; changes under the volume's table lock
  std::atomic<bool> unlinked{false};
  std::atomic<bool> lost_data{false};      // hard removal took dirty pages: EIO until closed
  std::atomic<bool> error_pending{false};  // a writeback error that nobody has been told yet
  Error error{Errc::io};                   // under mutex

 private:
  struct Page {
    engine::IoBuffer data;
    bool dirty = false;
    bool in_flight = false;
    bool sealing = false;
  };
  using Pages = std::map<u64, Page>;
  void drop_if_clean(Pages::iterator page) LK_REQUIRES(mutex);
  void wait_sealed(u64 index) LK_REQUIRES(mutex);

  const InodeNumber number_;
  Attributes
      attributes_;  // key id and encrypted never change after set_policy; the rest under mutex
  u64 tree_size_;   // what the inode item says; never ahead of the data in the tree (D5)
  DirtyBudget& budget_;
  CondVar sealed_;
  Pages pages_ LK_GUARDED_BY(mutex);
  u64 dirty_pages_ LK_GUARDED_BY(mutex) = 0;
  engine::Reservation space_ LK_GUARDED_BY(mutex);  // of the dirty pages
};

// Reads the entries that touch the range, in order.
Result<std::vector<extent::MapEntry>> map_entries(const engine::View& view, InodeNumber inode,
                                                  extent::FileRange range);
// Applies an edit of the map and releases what it no longer refers to.
Result<void> apply(engine::Transaction& transaction, InodeNumber inode,
                   const extent::MapEdit& edit);
Result<void> put_inode(engine::Transaction& transaction, InodeNumber inode,
                       const Attributes& attributes);
Result<Attributes> get_inode(const engine::View& view, InodeNumber inode);

}  // namespace latchkey::volume
