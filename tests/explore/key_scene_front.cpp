// The scene's front: one page of the file as the kernel has it, stored into by whoever has the file
// open, written back and dropped in the order of volume/front.h and volume/removal.cpp.

#include <algorithm>

#include "tests/explore/key_scene.h"

namespace latchkey::tests {

void KeyScene::store(Handle& handle) {
  const u32 epoch = epoch_;
  const bool cut_off = cut_off_;
  Lock lock(page_mutex_);
  if (!page_there_) {
    const auto read = page_in(*handle.inode);
    must(read || may_refuse_, "a page was not read in where that works as before");
    if (!read) return note("page not read in");
    page_there_ = true;
  }
  must(!cut_off || epoch != epoch_, "a front has a page of a key that was cut off");
  page_value_ = ++written_;
  page_dirty_ = true;
  note("stored");
}

Result<void> KeyScene::page_in(Inode& inode) {
  LK_TRYV(unlock(inode));
  SharedLock lock(inode.lease_lock);
  if (inode.key_lease.page_ins(false) == keymgr::PageIns::go_on) return {};
  return fail(Errc::no_key, "the key is being removed");
}

void KeyScene::write_back() {
  Lock lock(page_mutex_);
  write_page_down();
}

// Clean afterwards, as in the kernel.
void KeyScene::write_page_down() {
  if (!page_dirty_) return;
  page_dirty_ = false;
  const InodePtr inode = use();
  const auto wrote = write_from_front(*inode, page_value_);
  note(wrote ? "page written back" : "page refused");
  if (!wrote) {
    must(may_lose_, "a front's page was lost under a mode that loses none");
    ++inode->losses;
    lost_ = std::max(lost_, page_value_);
  }
  (void)end_use(inode);
}

Result<void> KeyScene::write_from_front(Inode& inode, u32 value) {
  LK_TRYV(unlock(inode));
  SharedLock lock(inode.lease_lock);
  LK_TRY(const auto pass, keymgr::GatePass::enter_from_front(inode.key_lease));
  point();  // the copy
  inode.cached = value;
  inode.dirty = true;
  return {};
}

// Before a close.
void KeyScene::leave_page() {
  if (!plan_.front) return;
  Lock lock(page_mutex_);
  write_page_down();
  if (ring_.status(id_, 0).state == KeyState::incompletely_removed) page_there_ = false;
}

void KeyScene::take_page(keymgr::Removal& removal) {
  if (!plan_.front) return;
  const keymgr::RemovalRow& row = removal.row();
  if (row.stays == keymgr::Stays::nothing) removal.stop_page_ins();
  drop_page(row);
  if (row.writers != keymgr::Writers::keep) removal.stop_from_front();
}

void KeyScene::drop_page(const keymgr::RemovalRow& row) {
  if (!plan_.front) return;
  if (row.stays != keymgr::Stays::nothing) {
    Lock lock(table_mutex_);
    if (inode_ != nullptr && inode_->handles != 0) return;
  }
  Lock lock(page_mutex_);
  write_page_down();
  page_there_ = false;
}

}  // namespace latchkey::tests
