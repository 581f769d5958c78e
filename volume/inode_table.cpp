// Which inodes are in memory, who uses them, and the leases of their keys.

#include <algorithm>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/no_wait.h"
#include "volume/state.h"
#include "volume/xattr_records.h"

namespace latchkey::volume {

DirectoryLocks::DirectoryLocks(Shards& shards,
                               std::initializer_list<InodeId> directories) LK_NO_ANALYSIS {
  LK_CHECK(directories.size() <= held_.size());
  auto end = std::ranges::transform(directories, held_.begin(), [&](InodeId directory) {
               return &shards[std::hash<InodeId>{}(directory) % kShards];
             }).out;
  std::sort(held_.begin(), end);  // addresses of one array: the shards' order
  end = std::unique(held_.begin(), end);
  std::fill(end, held_.end(), nullptr);
  for (Mutex* mutex : held_)
    if (mutex != nullptr) mutex->lock();
}

DirectoryLocks::~DirectoryLocks() LK_NO_ANALYSIS {
  for (Mutex* mutex : held_)
    if (mutex != nullptr) mutex->unlock();
}

InodePtr Volume::State::in_memory(InodeId number) {
  Lock lock(table_mutex);
  const auto it = inodes.find(number);
  return it == inodes.end() ? nullptr : it->second;
}

Result<Volume::State::Use> Volume::State::use(InodeId number) {
  for (;;) {
    u64 seen = 0;
    {
      Lock lock(table_mutex);
      if (!is_there(number.subvolume)) return fail(Errc::not_found, "there is no such subvolume");
      if (const auto it = inodes.find(number); it != inodes.end()) {
        if (it->second->unlinked) return fail(Errc::not_found, "there is no such file");
        ++it->second->users;
        return Use(*this, it->second);
      }
      seen = forgotten_count(number);
    }
    LK_TRY(const Attributes attributes, get_inode(store->view(), number));
    if (attributes.links == 0) return fail(Errc::not_found, "there is no such file");
    Lock lock(table_mutex);
    // Somebody may have had it in memory, changed it and forgotten it since it was read.
    if (forgotten_count(number) != seen || inodes.contains(number)) continue;
    if (!is_there(number.subvolume)) continue;
    return Use(*this, add_to_table(number, attributes));
  }
}

// With its first user.
InodePtr Volume::State::add_to_table(InodeId id, const Attributes& attributes) {
  auto inode = std::make_shared<Inode>(id, next_owner_word++, attributes, memory, block_counts);
  inode->users = 1;
  owners_by_word.emplace(inode->owner_word(), inode.get());
  try {
    inodes.emplace(id, inode);
  } catch (const std::bad_alloc&) {
    owners_by_word.erase(inode->owner_word());
    throw;
  }
  return inode;
}

// Whether it is the last user who goes, of an inode that was read. Under the lock that counts
// users: of two who go at once one would not see itself as the last.
bool Volume::State::owes_atime(const Inode& inode) {
  return inode.users == 1 && !inode.unlinked && inode.atime_pending();
}

Result<void> Volume::State::end_use(const InodePtr& inode) {
  bool reaps = false;
  for (bool can_put = true;;) {
    {
      Lock lock(table_mutex);
      LK_CHECK(inode->users != 0);
      if (!can_put || !owes_atime(*inode)) {
        // The last user of an unlinked inode keeps it in the table until it is reaped: use()
        // refuses it. Decided here: one that is unlinked from now on has a user who reaps it.
        reaps = inode->users == 1 && inode->unlinked;
        if (!reaps && --inode->users != 0) return {};
        break;
      }
    }
    // Without memory it is lost, as in a crash.
    can_put = or_no_memory([&] { put_atime(*inode); }).has_value();
  }
  if (reaps) {
    // An orphan that cannot be reaped now is so at the next open.
    const auto reaped = or_no_memory([&] { return reap(*inode); });
    Lock lock(table_mutex);
    --inode->users;
    leave_table(*inode);
    return reaped;
  }
  Result<void> result;
  if (!inode->clean() && key_is_leaving(*inode)) {
    // The last one out of a key that is being removed: what is dirty goes down before the lease.
    result = or_no_memory([&] { return flush(inode); });
    if (result) result = store->commit();
    if (!result && !may_pass(result.error()) && !inode->clean()) {
      // What cannot be written now never can be: a broken device does not keep a key.
      Lock flush_lock(inode->flush_mutex);
      if (key_is_leaving(*inode)) lose_pages(*inode);
    }
  }
  forget_if_idle(inode);
  return result;
}

// Under the flush lock, so that who waits for that finds them counted.
u64 Volume::State::lose_pages(Inode& inode) {
  const u64 lost = inode.lose_pages();
  if (lost != 0) ++all_losses;
  return lost;
}

void Volume::State::leave_table(const Inode& inode) {
  ++forgotten_count(inode.id());
  owners_by_word.erase(inode.owner_word());
  inodes.erase(inode.id());
}

void Volume::State::forget_if_idle(const InodePtr& inode) {
  {
    Lock lock(table_mutex);
    if (inode->users != 0 || inode->unlinked || !inode->clean()) return;
    const auto it = inodes.find(inode->id());
    if (it == inodes.end() || it->second != inode) return;
    leave_table(*inode);
  }
  return_lease(*inode);
}

std::vector<InodePtr> Volume::State::dirty_inodes() {
  std::vector<InodePtr> dirty;
  {
    Lock lock(table_mutex);
    for (const auto& [number, inode] : inodes)
      if (!inode->clean()) dirty.push_back(inode);
  }
  std::ranges::sort(dirty, {}, [](const InodePtr& inode) { return inode->id(); });
  return dirty;
}

// Whether the key of this inode's lease is on its way out, so that the lease holds it up.
bool Volume::State::key_is_leaving(Inode& inode) {
  {
    SharedLock lock(inode.lease_lock);
    if (!inode.key_lease.held() || inode.key_lease.cut_off()) return false;
  }
  return keyring.status(inode.key_id(), 0).state != keymgr::KeyState::present;
}

void Volume::State::return_lease(Inode& inode) {
  bool last = false;
  {
    ExclusiveLock lock(inode.lease_lock);
    if (!inode.key_lease.held()) return;
    // No dirty page may be left that only this key could seal.
    LK_CHECK_MSG(inode.clean(), "a lease goes before its inode's dirty pages");
    inode.sealed_keys.reset();
    last = keyring.release(inode.key_lease);
  }
  if (last) slots->evict_key(inode.key_id());
}

// Takes the lease that the inode's data needs; one that a removal has cut off is given back first,
// but not before that removal has dropped and counted what was dirty: it finds it by the lease.
Result<void> Volume::State::unlock_inode(Inode& inode) {
  check_may_wait();  // a flush has the lock, and waits for the forest
  if (!inode.encrypted()) return {};
  {
    SharedLock lock(inode.lease_lock);
    if (inode.key_lease.held() && !inode.key_lease.cut_off()) return {};
  }
  ExclusiveLock lock(inode.lease_lock);
  if (inode.key_lease.held()) {
    if (!inode.key_lease.cut_off()) return {};
    if (!inode.clean()) return fail(Errc::no_key, "the key's secret is gone");
    inode.sealed_keys.reset();
    keyring.release(inode.key_lease);
  }
  return keyring.lease(inode.key_id(), inode.owner_word(), inode.key_lease);
}

// What was opened or cut off while the key was away has its lease again, so that the next removal
// knows of it. Without memory it takes it at its next use.
void Volume::State::let_in_again(const crypto::KeyId& id) {
  (void)or_no_memory([&] {
    std::vector<Use> inside;
    {
      Lock lock(table_mutex);
      const auto theirs = handles_of_key.find(id);
      if (theirs == handles_of_key.end()) return;
      inside.reserve(theirs->second.size());
      for (const u64 number : theirs->second) {
        const InodePtr& inode = handles.at(number)->inode;
        ++inode->users;
        inside.emplace_back(*this, inode);
      }
    }
    for (const Use& use : inside) (void)unlock_inode(*use);
  });
}

// --- orphans: unlinked while in use, reaped by the last user or by the next open of the volume ---

Result<void> Volume::State::reap(Inode& inode) {
  {
    Lock flush_lock(inode.flush_mutex);
    inode.drop_pages(0);
  }
  return_lease(inode);
  return reap(inode.id());
}

// Its blocks in bounded steps, then the inode and the orphan record in one. Needs no key.
Result<void> Volume::State::reap(InodeId inode) {
  static constexpr std::size_t kEntriesAtOnce = 64;
  static constexpr std::size_t kXattrRecordsAtOnce = 8;  // each may be a quarter of a leaf
  for (;;) {
    LK_TRY(
        auto space,
        store->reserve({0, 4 * kEntriesAtOnce, 4096, leaves_of_neighbours(kEntriesAtOnce)}, true));
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRY(const auto entries, last_entries(transaction, inode, 0, kEntriesAtOnce));
    std::vector<engine::Key> pieces;  // of a symlink's target
    LK_TRYV(transaction.scan(inode.subvolume, {inode.number, kTargetType, 0},
                             {inode.number, kTargetType, ~u64{0}},
                             [&](const engine::Key& key, Bytes) {
                               pieces.push_back(key);
                               return true;
                             }));
    block_counts.changed(inode);
    LK_TRYV(apply(transaction, inode,
                  extent::punch({entries.rbegin(), entries.rend()}, {0, kFileBlocksMax})));
    if (entries.size() == kEntriesAtOnce) continue;
    LK_TRY(const bool bare, erase_xattrs(transaction, inode, kXattrRecordsAtOnce));
    if (!bare) continue;
    for (const engine::Key& piece : pieces) LK_TRYV(transaction.erase(inode.subvolume, piece));
    LK_TRYV(transaction.erase(inode.subvolume, inode_key(inode.number)));
    LK_TRYV(count_inodes(transaction, inode.subvolume, -1));
    LK_TRYV(transaction.erase(inode.subvolume, orphan_key(inode)));
    return {};
  }
}

Result<void> Volume::State::reap_orphans() {
  for (const engine::TreeId subvolume : all_subvolumes()) LK_TRYV(reap_orphans(subvolume));
  return {};
}

Result<void> Volume::State::reap_orphans(engine::TreeId subvolume) {
  std::vector<InodeId> orphans;
  LK_TRYV(store->view().scan(subvolume, {kOrphanObject, kOrphanType, 0},
                             {kOrphanObject, kOrphanType, ~u64{0}},
                             [&](const engine::Key& key, Bytes) {
                               orphans.push_back({subvolume, key.offset});
                               return true;
                             }));
  for (const InodeId inode : orphans) LK_TRYV(reap(inode));
  return {};
}

}  // namespace latchkey::volume
