#include "volume/inode.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/secret.h"

namespace latchkey::volume {

Inode::~Inode() { LK_CHECK_MSG(!key_lease.held(), "an inode is forgotten with its key's lease"); }

Attributes Inode::attributes() const {
  Lock lock(mutex);
  return attributes_;
}

void Inode::set_attributes(const Attributes& attributes) {
  Lock lock(mutex);
  const u64 size = attributes_.size;
  attributes_ = attributes;
  attributes_.size = size;
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

bool Inode::has_page(u64 index) const {
  Lock lock(mutex);
  return pages_.contains(index);
}

u64 Inode::clean_pages(u64 first, u64 count) const {
  Lock lock(mutex);
  u64 dirty = 0;
  for (auto it = pages_.lower_bound(first); it != pages_.end() && it->first < first + count; ++it)
    dirty += it->second.dirty ? 1 : 0;
  return count - dirty;
}

bool Inode::copy_page(u64 index, u64 offset, MutableBytes into) const {
  Lock lock(mutex);
  const auto it = pages_.find(index);
  if (it == pages_.end()) return false;
  std::memcpy(into.data(), it->second.data.bytes().data() + offset, into.size());
  return true;
}

void Inode::wait_sealed(u64 index) {
  for (;;) {
    const auto it = pages_.find(index);
    if (it == pages_.end() || !it->second.sealing) return;
    sealed_.wait(mutex);
  }
}

bool Inode::write_page(u64 index, u64 offset, Bytes from, Bytes base, engine::Reservation& space,
                       i64 now_ns) {
  Lock lock(mutex);
  wait_sealed(index);
  const auto [it, fresh] = pages_.try_emplace(index);
  Page& page = it->second;
  if (fresh) {
    auto buffer = engine::IoBuffer::create(kPageBytes);
    LK_CHECK_MSG(buffer, "no memory for a page within the dirty limit");
    page.data = std::move(*buffer);
    if (!base.empty()) std::memcpy(page.data.bytes().data(), base.data(), kPageBytes);
  }
  std::memcpy(page.data.bytes().data() + offset, from.data(), from.size());
  attributes_.size = std::max(attributes_.size, index * kPageBytes + offset + from.size());
  attributes_.mtime_ns = attributes_.ctime_ns = now_ns;
  if (page.dirty) return fresh;
  page.dirty = true;
  ++dirty_pages_;
  const u64 tree_share = space.data_blocks() == 0 ? 0 : space.tree_blocks() / space.data_blocks();
  space_.merge(space.take(1, tree_share));
  return fresh;
}

void Inode::drop_if_clean(Pages::iterator page) {
  if (page->second.dirty || page->second.in_flight) return;
  if (attributes_.encrypted) wipe(page->second.data.bytes());
  pages_.erase(page);
  budget_.pages_gone(1);
}

u64 Inode::drop_pages(u64 first) {
  Lock lock(mutex);
  u64 dropped = 0;
  for (auto it = pages_.lower_bound(first); it != pages_.end();) {
    LK_CHECK_MSG(!it->second.in_flight, "pages are dropped under the flush lock only");
    if (it->second.dirty) ++dropped;
    it->second.dirty = false;
    drop_if_clean(it++);
  }
  dirty_pages_ -= dropped;
  const u64 tree_share =
      space_.data_blocks() == 0 ? 0 : space_.tree_blocks() / space_.data_blocks();
  const engine::Reservation gone = space_.take(dropped, tree_share * dropped);
  return dropped * kPageBytes;
}

const keymgr::Lease* Inode::lease() const { return attributes_.encrypted ? &key_lease : nullptr; }

std::vector<writeback::DirtyPage> Inode::take(u64 from, u32 pages_max, engine::Reservation& space) {
  Lock lock(mutex);
  std::vector<writeback::DirtyPage> taken;
  for (auto it = pages_.lower_bound(from); it != pages_.end() && taken.size() < pages_max; ++it) {
    Page& page = it->second;
    // One flush at a time: what is in flight now is its other batch, which ends before `from`.
    if (!page.dirty || page.in_flight) continue;
    page.dirty = false;
    page.in_flight = page.sealing = true;
    taken.push_back({it->first, page.data.bytes().data()});
  }
  dirty_pages_ -= taken.size();
  const u64 tree_share =
      space_.data_blocks() == 0 ? 0 : space_.tree_blocks() / space_.data_blocks();
  space.merge(space_.take(taken.size(), tree_share * taken.size()));
  return taken;
}

void Inode::sealed(std::span<const writeback::DirtyPage> pages) {
  Lock lock(mutex);
  for (const writeback::DirtyPage& page : pages) pages_.at(page.index).sealing = false;
  sealed_.notify_all();
}

Result<void> Inode::insert(engine::Transaction& transaction,
                           const std::vector<extent::MapEntry>& fresh) {
  for (const extent::MapEntry& entry : fresh) {
    const extent::FileRange range{entry.file_block, entry.blocks};
    LK_TRY(const auto old, map_entries(transaction, number_, range));
    LK_TRYV(apply(transaction, number_, extent::replace(old, range, {entry})));
  }
  Attributes now;
  {
    Lock lock(mutex);
    tree_size_ =
        std::max(tree_size_, std::min(attributes_.size, fresh.back().file_end() * kPageBytes));
    now = attributes_;
    now.size = tree_size_;
  }
  last_transaction = transaction.id();
  return put_inode(transaction, number_, now);
}

void Inode::finished(std::span<const writeback::DirtyPage> pages, const Result<void>& result,
                     engine::Reservation&& space) {
  Lock lock(mutex);
  for (const writeback::DirtyPage& done : pages) {
    const auto it = pages_.find(done.index);
    it->second.in_flight = false;
    if (!result && !it->second.dirty) {
      it->second.dirty = true;
      ++dirty_pages_;
    }
    drop_if_clean(it);
  }
  if (result) return;
  space_.merge(std::move(space));
  error = result.error();
  error_pending = true;
}

// --- records -----------------------------------------------------------------------------------

Result<std::vector<extent::MapEntry>> map_entries(const engine::View& view, InodeNumber inode,
                                                  extent::FileRange range) {
  std::vector<extent::MapEntry> entries;
  Result<void> wrong;
  const auto add = [&](const engine::Key& key, Bytes value) {
    auto entry = extent::decode_map(key.offset, value);
    if (!entry) {
      wrong = std::unexpected(entry.error());
      return false;
    }
    if (entry->file_end() > range.first_block && entry->file_block < range.end())
      entries.push_back(*entry);
    return true;
  };
  LK_TRY(const auto before, view.at_or_before(engine::kFirstSubvolume,
                                              {inode, kMapType, range.first_block * kPageBytes}));
  const bool has_before = before && before->key.object == inode && before->key.type == kMapType;
  if (has_before) add(before->key, before->value);
  const u64 first = has_before ? before->key.offset + 1 : range.first_block * kPageBytes;
  if (range.blocks != 0)
    LK_TRYV(view.scan(engine::kFirstSubvolume, {inode, kMapType, first},
                      {inode, kMapType, (range.end() - 1) * kPageBytes}, add));
  LK_TRYV(wrong);
  return entries;
}

Result<void> apply(engine::Transaction& transaction, InodeNumber inode,
                   const extent::MapEdit& edit) {
  for (const u64 block : edit.erase)
    LK_TRYV(transaction.erase(engine::kFirstSubvolume, {inode, kMapType, block * kPageBytes}));
  for (const extent::MapEntry& entry : edit.put) {
    const extent::MapDisk disk = extent::encode(entry);
    LK_TRYV(transaction.put(engine::kFirstSubvolume,
                            {inode, kMapType, entry.file_block * kPageBytes},
                            std::as_bytes(std::span(&disk, 1))));
  }
  for (const extent::DiskRun& run : edit.release)
    LK_TRYV(transaction.release_extent({run.block, run.blocks}));
  return {};
}

Result<void> put_inode(engine::Transaction& transaction, InodeNumber inode,
                       const Attributes& attributes) {
  const InodeDisk disk = encode(attributes);
  return transaction.put(engine::kFirstSubvolume, inode_key(inode),
                         std::as_bytes(std::span(&disk, 1)));
}

Result<Attributes> get_inode(const engine::View& view, InodeNumber inode) {
  LK_TRY(const auto record, view.get(engine::kFirstSubvolume, inode_key(inode)));
  if (!record) return fail(Errc::not_found, "there is no such file");
  return decode_inode(record->value);
}

}  // namespace latchkey::volume
