// The scene's volume: how volume/ uses a key, with all else left out.

#include <algorithm>
#include <optional>
#include <vector>

#include "tests/explore/key_scene.h"

namespace latchkey::tests {

// --- a removal, in the order of volume/removal.cpp -----------------------------------------------

Result<keymgr::RemovalStart> KeyScene::begin_removal(u32 uid, bool all_users,
                                                     keymgr::RemovalMode mode) {
  if (!keymgr::removal_row(mode).refuse_when_busy)
    return ring_.begin_removal(id_, uid, all_users, mode);
  for (;;) {
    {
      Lock lock(table_mutex_);
      const bool busy = inode_ != nullptr && inode_->handles != 0;
      auto start = ring_.begin_removal(id_, uid, all_users, mode,
                                       busy ? keymgr::Inside::somebody : keymgr::Inside::nobody);
      if (!start || !start->another) return start;
    }
    ring_.wait_for_removal(id_);
  }
}

void KeyScene::remove(const Act& act, bool flush_fails) {
  const keymgr::RemovalRow& row = keymgr::removal_row(act.mode);
  const bool goes_back = flush_fails && !row.claim_first;
  const bool refuses = row.later_io == keymgr::LaterIo::no_key ||
                       (row.later_io == keymgr::LaterIo::waits && !waits_);
  // Pages that are not read in are not asked for again here.
  may_refuse_ |= plan_.front && row.later_io != keymgr::LaterIo::succeeds;
  may_refuse_ |= refuses && (!goes_back || row.writers == keymgr::Writers::stop);
  may_lose_ |= row.may_lose;
  const u32 epoch = epoch_;
  const bool all_users = act.verb == Verb::remove_all;
  auto start = begin_removal(all_users ? 0 : act.uid, all_users, act.mode);
  if (!start) return note("removal refused");
  if (start->claim_only) return note("the claim is removed");
  if (epoch == epoch_ && reopening_ == 0) shut_ = true;
  const auto others_remain = run(*start->removal, flush_fails);
  if (!others_remain) return note("removal went back");
  if (*others_remain) return note("the claim is removed, others remain");
  note("removed");
  if (epoch != epoch_ || reopening_ != 0) return;
  (row.stays == keymgr::Stays::nothing ? cut_off_ : leaving_) = true;
  // Who else is inside of a call may be the one to let the last lease go.
  const bool nobody_inside = handles_open() == 0 && acting_ == 1;
  gone_ = row.stays != keymgr::Stays::master || nobody_inside;
}

// True: claims of others remain, and the key is as it was.
Result<bool> KeyScene::run(keymgr::Removal& removal, bool flush_fails) {
  const keymgr::RemovalRow& row = removal.row();
  const bool seals = row.stays == keymgr::Stays::own_keys;
  if (!row.claim_first) {
    if (const auto prepared = prepare(removal, flush_fails); !prepared) {
      const Reopening reopening(*this);
      removal.rollback();
      if (seals) unseal(removal.number(), removal.number());
      return std::unexpected(prepared.error());
    }
  }
  const bool suspends = row.later_io == keymgr::LaterIo::waits;
  if (suspends) ring_.suspensions().begin(id_, removal.claimers(), std::nullopt);
  const auto committed = removal.commit();
  if (!committed || committed->others_remain) {
    if (suspends) ring_.suspensions().end(id_);
    if (seals) unseal(removal.number(), removal.number());
  }
  LK_TRYV(committed);
  if (committed->others_remain) return true;
  if (row.stays == keymgr::Stays::nothing) {
    drop_cut_off(removal);
    if (row.may_lose) drop_page(row);
  } else {
    if (row.claim_first) drop_page(row);
    let_leave(removal);
  }
  return false;
}

Result<void> KeyScene::prepare(keymgr::Removal& removal, bool flush_fails) {
  take_page(removal);
  if (flush_fails) return fail(Errc::io, "the device refuses");
  const bool seals = removal.row().stays == keymgr::Stays::own_keys;
  const InodePtr inode = owner(removal);
  if (inode == nullptr) return {};
  if (!seals || inode->users == 0) {
    LK_TRYV(flush(*inode));
    forget_if_idle(inode);
  }
  if (!seals || ring_.status(id_, 0).sealed) return {};
  if (const InodePtr busy = owner(removal)) LK_TRYV(seal(*busy, removal.number()));
  return {};
}

void KeyScene::drop_cut_off(keymgr::Removal& removal) {
  const InodePtr inode = owner(removal);
  if (inode == nullptr) return;
  {
    Lock flush_lock(inode->flush_mutex);
    ExclusiveLock lease_lock(inode->lease_lock);
    if (!inode->key_lease.cut_off()) return;
    must(!inode->dirty || removal.row().may_lose, "a secret was wiped that a dirty page needed");
    lose(*inode);
    inode->sealed_for.reset();
    ring_.release(inode->key_lease);
  }
  forget_if_idle(inode);
}

void KeyScene::let_leave(keymgr::Removal& removal) {
  const InodePtr inode = owner(removal);
  if (inode == nullptr || inode->users != 0) return;
  if (!flush(*inode)) {
    Lock flush_lock(inode->flush_mutex);
    if (key_is_leaving(*inode)) lose(*inode);
  }
  forget_if_idle(inode);
}

// --- the volume's parts, in the order of volume/inode_table.cpp and volume/seal.cpp --------------

KeyScene::InodePtr KeyScene::in_memory() {
  Lock lock(table_mutex_);
  return inode_;
}

u32 KeyScene::handles_open() const {
  return static_cast<u32>(std::ranges::count_if(
      handles_, [](const Handle& handle) { return handle.inode != nullptr; }));
}

KeyScene::InodePtr KeyScene::use() {
  Lock lock(table_mutex_);
  if (inode_ == nullptr) inode_ = std::make_shared<Inode>(next_word_++);
  ++inode_->users;
  return inode_;
}

bool KeyScene::end_use(const InodePtr& inode) {
  {
    Lock lock(table_mutex_);
    if (--inode->users != 0) return false;
  }
  if (inode->dirty && key_is_leaving(*inode)) {
    if (!flush(*inode)) {
      Lock flush_lock(inode->flush_mutex);
      if (key_is_leaving(*inode)) lose(*inode);
    }
  }
  forget_if_idle(inode);
  return true;
}

void KeyScene::forget_if_idle(const InodePtr& inode) {
  {
    Lock lock(table_mutex_);
    if (inode->users != 0 || inode->dirty || inode_ != inode) return;
    inode_.reset();
  }
  return_lease(*inode);
}

KeyScene::InodePtr KeyScene::owner(keymgr::Removal& removal) {
  InodePtr found;
  u64 cursor = 0;
  for (;;) {
    const std::vector<u64> words = removal.owners(cursor, 4);
    if (words.empty()) return found;
    Lock lock(table_mutex_);
    for (const u64 word : words)
      if (inode_ != nullptr && inode_->word == word) found = inode_;
  }
}

Result<void> KeyScene::lease(u64 word, keymgr::Lease& lease) {
  const u32 epoch = epoch_;
  const bool shut = shut_;
  auto leased = ring_.lease(id_, word, lease);
  must(!leased || !shut || epoch != epoch_, "a lease was taken while the door was closed");
  return leased;
}

Result<void> KeyScene::unlock(Inode& inode) {
  {
    SharedLock lock(inode.lease_lock);
    if (inode.key_lease.held() && !inode.key_lease.cut_off()) return {};
  }
  ExclusiveLock lock(inode.lease_lock);
  if (inode.key_lease.held()) {
    if (!inode.key_lease.cut_off()) return {};
    if (inode.dirty) return fail(Errc::no_key, "the key's secret is gone");
    inode.sealed_for.reset();
    ring_.release(inode.key_lease);
  }
  return lease(inode.word, inode.key_lease);
}

void KeyScene::return_lease(Inode& inode) {
  ExclusiveLock lock(inode.lease_lock);
  if (!inode.key_lease.held()) return;
  must(!inode.dirty, "a lease goes before its inode's dirty page");
  inode.sealed_for.reset();
  ring_.release(inode.key_lease);
}

bool KeyScene::key_is_leaving(Inode& inode) {
  {
    SharedLock lock(inode.lease_lock);
    if (!inode.key_lease.held() || inode.key_lease.cut_off()) return false;
  }
  return ring_.status(id_, 0).state != KeyState::present;
}

Result<void> KeyScene::flush(Inode& inode) {
  Lock flush_lock(inode.flush_mutex);
  SharedLock lease_lock(inode.lease_lock);
  if (!inode.dirty) return {};
  const u32 taken = inode.cached;
  if (!inode.sealed_for) {
    LK_TRY(const keymgr::KeyUse use, keymgr::KeyUse::begin(inode.key_lease));
    point();  // the derivation
    must(holds_front(&use.state().inner), "a secret was wiped that is in use");
  }
  point();  // the device
  stored_ = taken;
  if (inode.cached == taken) inode.dirty = false;
  return {};
}

// Counted, and told.
void KeyScene::lose(Inode& inode) {
  if (!inode.dirty) return;
  must(may_lose_, "an acknowledged write was lost under a mode that loses none");
  inode.dirty = false;
  ++inode.losses;
  lost_ = std::max(lost_, inode.cached);
}

Result<void> KeyScene::seal(Inode& inode, u64 number) {
  Lock flush_lock(inode.flush_mutex);
  {
    SharedLock lock(inode.lease_lock);
    if (!inode.key_lease.held() || inode.key_lease.cut_off()) return {};
    LK_TRY(const keymgr::KeyUse use, keymgr::KeyUse::begin(inode.key_lease));
    point();
  }
  ExclusiveLock lock(inode.lease_lock);
  if (inode.key_lease.held()) inode.sealed_for = number;
  return {};
}

void KeyScene::unseal(u64 first, u64 last) {
  const InodePtr inode = in_memory();
  if (inode == nullptr) return;
  ExclusiveLock lock(inode->lease_lock);
  if (inode->sealed_for && first <= *inode->sealed_for && *inode->sealed_for <= last)
    inode->sealed_for.reset();
}

}  // namespace latchkey::tests
