#include "volume/inode.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "volume/log_replay.h"
#include "writeback/plan.h"

namespace latchkey::volume {

Inode::~Inode() {
  LK_CHECK_MSG(!key_lease.held(), "an inode is forgotten with its key's lease");
  drop_pages(0);
}

Attributes Inode::attributes() const {
  Lock lock(mutex);
  return attributes_;
}

Attributes Inode::change(const std::function<void(Attributes&)>& fn) {
  Lock lock(mutex);
  const u64 size = attributes_.size;
  fn(attributes_);
  attributes_.size = size;
  atime_pending_ = false;
  Attributes item = attributes_;
  item.size = tree_size_;
  return item;
}

bool Inode::encrypted() const {
  Lock lock(mutex);
  return attributes_.encrypted;
}

u64 Inode::size() const {
  Lock lock(mutex);
  return attributes_.size;
}

void Inode::set_size(u64 size) {
  Lock lock(mutex);
  attributes_.size = size;
  tree_size_ = size;
}

u64 Inode::dirty_bytes() const {
  Lock lock(mutex);
  return dirty_pages_ * kPageBytes;
}

bool Inode::clean() const {
  Lock lock(mutex);
  return pages_.empty();
}

Error Inode::last_error() const {
  Lock lock(mutex);
  return error_;
}

void Inode::note_error(const Error& error) {
  Lock lock(mutex);
  error_ = error;
  error_untold = true;
  ++errors;
}

u64 Inode::pages_without_space(u64 first, u64 count) const {
  Lock lock(mutex);
  u64 dirty = 0;
  for (auto it = pages_.lower_bound(first); it != pages_.end() && it->first < first + count; ++it)
    dirty += it->second.dirty ? 1 : 0;
  return count - dirty;
}

std::vector<bool> Inode::pages_to_draw(u64 first, u64 count) const {
  Lock lock(mutex);
  std::vector<bool> pages(count, true);
  for (auto it = pages_.lower_bound(first); it != pages_.end() && it->first < first + count; ++it)
    pages[it->first - first] = !it->second.dirty && !it->second.flight_drawn;
  return pages;
}

std::vector<u64> Inode::pages_from(u64 first) const {
  Lock lock(mutex);
  std::vector<u64> pages;
  for (auto it = pages_.lower_bound(first); it != pages_.end(); ++it) pages.push_back(it->first);
  return pages;
}

bool Inode::copy_page(u64 index, u64 offset, MutableBytes into) const {
  Lock lock(mutex);
  const auto it = pages_.find(index);
  if (it == pages_.end()) return false;
  std::memcpy(into.data(), it->second.data + offset, into.size());
  return true;
}

bool Inode::write_page(const PageWrite& write, Room& room, engine::Reservation& space) {
  Lock lock(mutex);
  auto it = pages_.find(write.index);
  // D5: closed to writers while it is being sealed, and only then.
  while (it != pages_.end() && it->second.sealing) {
    sealed_.wait(mutex);
    it = pages_.find(write.index);
  }
  const bool dirty = it != pages_.end() && it->second.dirty;
  const u64 blocks_left =
      write.promised ? space.drawn_blocks() : space.data_blocks() - space.drawn_blocks();
  if (!dirty && blocks_left == 0) return false;
  if (it == pages_.end()) {
    Pages fresh;  // a page that is in the map has memory
    Page& page = fresh[write.index];
    page.data = room.take();
    it = pages_.insert(fresh.extract(fresh.begin())).position;
    if (!write.base.empty()) std::memcpy(it->second.data, write.base.data(), kPageBytes);
  }
  std::memcpy(it->second.data + write.offset, write.from.data(), write.from.size());
  attributes_.size =
      std::max(attributes_.size, write.index * kPageBytes + write.offset + write.from.size());
  attributes_.mtime_ns = attributes_.ctime_ns = write.now_ns;
  if (dirty) return true;
  it->second.dirty = true;
  ++dirty_pages_;
  space_.merge(writeback::take_share(space, 1));
  it->second.drawn = write.promised;
  if (write.promised) drawn_.merge(space.take_drawn(1));
  return true;
}

void Inode::drop_if_clean(Pages::iterator page, PageList& released) {
  if (page->second.dirty || page->second.in_flight) return;
  released.push(page->second.data);
  pages_.erase(page);
}

u64 Inode::drop(u64 first, PageList& released) {
  u64 dropped = 0, undrawn = 0;
  for (auto it = pages_.lower_bound(first); it != pages_.end();) {
    LK_CHECK_MSG(!it->second.in_flight, "pages are dropped under the flush lock only");
    if (it->second.dirty) ++dropped;
    if (it->second.drawn) ++undrawn;
    it->second.dirty = it->second.drawn = false;
    drop_if_clean(it++, released);
  }
  dirty_pages_ -= dropped;
  // The promises stand again before the space is anybody's.
  const engine::Reservation gone = writeback::take_share(space_, dropped);
  const engine::DrawnPromise promised = drawn_.take(undrawn);
  return dropped * kPageBytes;
}

u64 Inode::drop_pages(u64 first) {
  PageList released;
  u64 lost = 0;
  {
    Lock lock(mutex);
    lost = drop(first, released);
  }
  memory_.give_back(released);
  return lost;
}

u64 Inode::lose_pages() {
  PageList released;
  u64 lost = 0;
  {
    Lock lock(mutex);
    lost = drop(0, released);
    attributes_.size = tree_size_;
    if (lost != 0) ++losses;  // before anybody can miss the pages
  }
  memory_.give_back(released);
  return lost;
}

const keymgr::Lease* Inode::lease() const { return encrypted() ? &key_lease : nullptr; }

crypto::KeyId Inode::key_id() const {
  Lock lock(mutex);
  return attributes_.key_id;
}

std::vector<writeback::DirtyPage> Inode::take(u64 from, u32 pages_max, engine::Reservation& space) {
  Lock lock(mutex);
  std::vector<writeback::DirtyPage> taken;
  taken.reserve(std::min<u64>(pages_max, dirty_pages_));  // no page is taken and then forgotten
  if (from != 0 && attributes_.size > flight_size_) {
    // The file has grown since the last take. If it grew inside of its last page, then what comes
    // after must not land before that page does, which this flush has passed by.
    const auto tail = pages_.find(flight_size_ / kPageBytes);
    if (tail != pages_.end() && tail->first < from && tail->second.dirty) return taken;
  }
  flight_size_ = attributes_.size;
  // A file that grows as fast as it is flushed would keep this flush, and its whole group, for
  // ever.
  if (from == 0) flush_end_ = (attributes_.size + kPageBytes - 1) / kPageBytes;
  const auto end = pages_.lower_bound(flush_end_);
  for (auto it = pages_.lower_bound(from); it != end && taken.size() < pages_max; ++it) {
    Page& page = it->second;
    // One flush at a time: what is in flight now is its other batch, which ends before `from`.
    if (!page.dirty || page.in_flight) continue;
    page.dirty = false;
    page.in_flight = page.sealing = true;
    page.flight_drawn = std::exchange(page.drawn, false);
    taken.push_back({it->first, page.data});
  }
  dirty_pages_ -= taken.size();
  space.merge(writeback::take_share(space_, taken.size()));
  return taken;
}

void Inode::sealed(std::span<const writeback::DirtyPage> pages) {
  Lock lock(mutex);
  for (const writeback::DirtyPage& page : pages) pages_.at(page.index).sealing = false;
  sealed_.notify_all();
}

u64 Inode::flight_drawn(std::span<const extent::MapEntry> fresh, bool end) {
  u64 drawn = 0;
  for (const extent::MapEntry& entry : fresh)
    for (auto it = pages_.lower_bound(entry.file_block);
         it != pages_.end() && it->first < entry.file_end(); ++it) {
      drawn += it->second.flight_drawn ? 1 : 0;
      if (end) it->second.flight_drawn = false;
    }
  return drawn;
}

Result<void> Inode::insert(engine::Transaction& transaction,
                           std::span<const extent::MapEntry> fresh) {
  engine::DrawnPromise drawn;
  {
    Lock lock(mutex);
    drawn = drawn_.take(flight_drawn(fresh, false));
  }
  block_counts_.changed(id_);
  auto replaced = replace_entries(transaction, id_, fresh, drawn);
  Attributes now;
  {
    Lock lock(mutex);
    drawn_.merge(std::move(drawn));  // what a failure left
    LK_TRYV(replaced);
    flight_drawn(fresh, true);
    now = item_with(fresh);
    tree_size_ = now.size;
    atime_pending_ = false;
  }
  last_transaction = transaction.id();
  u64 blocks = 0;
  for (const extent::MapEntry& piece : fresh) blocks += piece.blocks;
  transaction.declare_insert(id_.subvolume, id_.number, insert_note(now, fresh), blocks);
  return put_inode(transaction, id_, now);
}

// Of a page that has grown since it was taken, only the old part is on the device: take() sees to
// it that nothing beyond such a page comes here before the page does.
Attributes Inode::item_with(std::span<const extent::MapEntry> fresh) const {
  Attributes item = attributes_;
  item.size = std::max(tree_size_, std::min(flight_size_, fresh.back().file_end() * kPageBytes));
  return item;
}

// A map that cannot be read is met before anything is logged. A promise that the insert ends is
// counted elsewhere than in this file (Transaction::end_promise). The view keeps out transactions
// that have changed the attributes in memory and not yet told the log that they did: a name that
// only such a one gives would be in the record, and not in the tree that the record is entered in.
std::optional<engine::LogRecord> Inode::log_record(const engine::Store& store,
                                                   std::span<const extent::MapEntry> fresh) const {
  const u64 first = fresh.front().file_block;
  const engine::View view = store.view();
  const auto there = map_entries(view, id_, {first, fresh.back().file_end() - first});
  if (!there || std::ranges::any_of(*there, &extent::MapEntry::promised)) return {};
  Lock lock(mutex);
  return engine::LogRecord{id_.subvolume, id_.number, {}, insert_note(item_with(fresh), fresh)};
}

// The pages are wiped before the lease's lock is let go, so before a removal can take the lease.
void Inode::finished(std::span<const writeback::DirtyPage> pages, const Result<void>& result,
                     engine::Reservation&& space) {
  PageList released;
  settle(pages, result, std::move(space), released);
  memory_.give_back(released);
}

void Inode::settle(std::span<const writeback::DirtyPage> pages, const Result<void>& result,
                   engine::Reservation&& space, PageList& released) {
  Lock lock(mutex);
  for (const writeback::DirtyPage& done : pages) {
    const auto it = pages_.find(done.index);
    LK_CHECK(it != pages_.end() && it->second.in_flight);
    it->second.in_flight = false;
    if (!result && !it->second.dirty) {
      it->second.dirty = true;
      ++dirty_pages_;
    }
    if (it->second.flight_drawn) it->second.drawn = true;
    it->second.flight_drawn = false;
    drop_if_clean(it, released);
  }
  if (result) return;
  space_.merge(std::move(space));
  if (space_.data_blocks() > dirty_pages_) {
    // Pages that were written again meanwhile had brought space of their own.
    const auto spare = writeback::take_share(space_, space_.data_blocks() - dirty_pages_);
  }
  error_ = result.error();
  error_untold = true;
  ++errors;
}

}  // namespace latchkey::volume
