// Truncating. The zeros behind the end in the last page, the map beyond it and the size go in one
// transaction: what was cut off never comes back when the file grows again, and neither a crash nor
// an error shows the zeros under the old size. Only a file of many pieces is cut in steps.

#include <algorithm>
#include <utility>

#include "volume/page_buffer.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

// Of the map, in one transaction.
constexpr u32 kEntriesAtOnce = 64;
constexpr engine::SpaceNeed kCutNeed{0, 4 * (kEntriesAtOnce + 1), 4096 + 220,
                                     leaves_of_neighbours(kEntriesAtOnce + 1)};

// That page on its way down. Writeback seals it and writes it as any other, but it was never dirty
// in memory; and where it is entered into the map the cut is made.
class CutPage final : public writeback::DirtyFile {
 public:
  using Cut = std::function<Result<bool>(engine::Transaction&, std::span<const extent::MapEntry>)>;
  CutPage(const Inode& inode, u64 index, const PageBuffer& page, engine::Reservation&& space,
          Cut cut)
      : inode_(inode),
        page_{index, page.bytes.data()},
        space_(std::move(space)),
        cut_(std::move(cut)) {}

  const keymgr::Lease* lease() const override { return inode_.lease(); }
  crypto::KeyId key_id() const override { return inode_.key_id(); }
  keymgr::OwnKeys* own_keys() const override { return inode_.own_keys(); }
  std::vector<writeback::DirtyPage> take(u64 from, u32 /*pages_max*/,
                                         engine::Reservation& space) override {
    if (from != 0) return {};
    space.merge(std::move(space_));
    return {page_};
  }
  void sealed(std::span<const writeback::DirtyPage> /*pages*/) override {}
  Result<void> insert(engine::Transaction& transaction,
                      std::span<const extent::MapEntry> fresh) override {
    LK_TRYV(cut_(transaction, fresh));
    return {};
  }
  void finished(std::span<const writeback::DirtyPage> /*pages*/, const Result<void>& /*result*/,
                engine::Reservation&& /*space*/) override {}

 private:
  const Inode& inode_;
  const writeback::DirtyPage page_;
  engine::Reservation space_;
  const Cut cut_;
};

}  // namespace

Result<void> Volume::truncate(HandleId id, u64 size, IoFlags flags) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  if (!handle->flags.write) return fail(Errc::invalid, "the handle is not open for writing");
  LK_TRYV(state.must_be_writable());
  LK_TRYV(state.ready(*handle));
  if (size > kFileBytesMax) return fail(Errc::too_big, "a file is too big");
  LK_TRYV(state.drop_privileges(*handle->inode, handle->uid));
  return state.truncate(handle->inode, size, handle->losses, flags);
}

// Dirty data goes down first: the size in the tree must not run ahead of it. `losses`: of the inode
// when the caller looked at it.
Result<void> Volume::State::truncate(const InodePtr& inode, u64 size, u32 losses, IoFlags flags) {
  Lock writer(inode->write_mutex);
  const u64 old_size = inode->size();
  if (size == old_size) return {};
  LK_TRYV(unlock_inode(*inode));
  const bool inside = size < old_size && size % kPageBytes != 0;
  if (inside) LK_TRYV(pass_gate(*inode, flags));
  if (size != 0) LK_TRYV(flush(inode));
  Lock flush_lock(inode->flush_mutex);
  if (inode->losses != losses) return data_lost();
  return inside ? cut_inside(*inode, size) : cut_map(*inode, size);
}

// A truncate that writes is a writer to whoever settles those.
Result<void> Volume::State::pass_gate(Inode& inode, IoFlags flags) {
  if (!inode.encrypted()) return {};
  for (keymgr::HeldGate held;; held.wait()) {
    SharedLock lease(inode.lease_lock);
    const auto pass = keymgr::GatePass::try_enter(inode.key_lease, held);
    if (pass) return {};
    if (pass.error().code != Errc::busy) return std::unexpected(pass.error());
    if (!flags.wait) return would_wait();
  }
}

Result<void> Volume::State::cut_map(Inode& inode, u64 size) {
  for (bool more = true; more;) {
    LK_TRY(auto space, store->reserve(kCutNeed, true));
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRY(more, cut_step(transaction, inode, size, {}));
  }
  return {};
}

Result<void> Volume::State::cut_inside(Inode& inode, u64 size) {
  PageBuffer page;
  const u64 index = size / kPageBytes;
  LK_TRYV(read_blocks(inode, index, page.bytes));
  const MutableBytes behind = std::span(page.bytes).subspan(size % kPageBytes);
  if (std::ranges::all_of(behind, [](std::byte byte) { return byte == std::byte{0}; }))
    return cut_map(inode, size);
  std::ranges::fill(behind, std::byte{0});
  for (;;) {
    LK_TRY(const auto pieces,
           last_entries(store->view(), inode.id(), index + 1, kEntriesAtOnce + 1));
    if (pieces.size() <= kEntriesAtOnce) break;
    LK_TRY(auto space, store->reserve(kCutNeed, true));
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRYV(cut_step(transaction, inode, (index + 1) * kPageBytes, {}));
  }
  engine::SpaceNeed need = kCutNeed;
  need.data_blocks = 1;
  LK_TRY(auto space, store->reserve(need, true));
  CutPage last(inode, index, page, std::move(space),
               [&](engine::Transaction& transaction, std::span<const extent::MapEntry> fresh) {
                 return cut_step(transaction, inode, size, fresh);
               });
  writeback::FileFlush flush;
  flush.file = &last;
  SharedLock lease(inode.lease_lock);
  if (auto failure = store->failure()) return std::unexpected(*failure);
  pipeline->flush({&flush, 1});
  return flush.result;
}

// From the end in bounded steps, the size and the pages in memory along with them: whatever commit
// is the last one before a crash, the file ends where its map ends, and a step that fails leaves
// what is before it. `last`: the page with the end as it is now on the device; then no more than
// one step may be left. True: there is more to cut.
Result<bool> Volume::State::cut_step(engine::Transaction& transaction, Inode& inode, u64 size,
                                     std::span<const extent::MapEntry> last) {
  const u64 first = last.empty() ? (size + kPageBytes - 1) / kPageBytes : last.front().file_block;
  LK_TRY(auto entries, last_entries(transaction, inode.id(), first, kEntriesAtOnce + 1));
  const bool more = last.empty() && entries.size() > kEntriesAtOnce;
  const u64 from = more ? std::max(first, entries.back().file_block) : first;
  inode.drop_pages(from);
  std::ranges::reverse(entries);
  LK_TRYV(
      apply(transaction, inode.id(),
            extent::replace(entries, {from, kFileBlocksMax - from}, {last.begin(), last.end()})));
  LK_TRYV(put_changed(transaction, inode, more ? from * kPageBytes : size));
  return more;
}

}  // namespace latchkey::volume
