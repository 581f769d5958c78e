// Keys: claims pass through to the keyring; a removal drives its row over the inodes of that key.

#include <algorithm>

#include "base/check.h"
#include "volume/state.h"

namespace latchkey::volume {

Result<crypto::KeyId> Volume::add_key(Caller caller, SecretBytes&& secret) {
  return state_->keyring.add(caller.uid, std::move(secret));
}

std::vector<Holder> Volume::State::holders(const crypto::KeyId& id) {
  std::vector<Holder> list;
  {
    Lock lock(table_mutex);
    for (const auto& [number, handle] : handles) {
      const Attributes attributes = handle->inode->attributes();
      if (!attributes.encrypted || attributes.key_id != id) continue;
      list.push_back({handle->path, handle->uid, HandleId{number}, handle->inode->dirty_bytes(),
                      handle->since_ns});
    }
  }
  std::ranges::sort(list, {}, &Holder::handle);
  return list;
}

KeyReport Volume::State::key_report(const crypto::KeyId& id, u32 uid) {
  const keymgr::KeyStatus status = keyring.status(id, uid);
  KeyReport report;
  report.key_id = id;
  report.state = status.state;
  report.added_by_self = status.claimed_by_caller;
  report.user_count = status.claims;
  if (status.state != keymgr::KeyState::absent) report.holders = holders(id);
  return report;
}

KeyReport Volume::key_status(Caller caller, const crypto::KeyId& id) {
  return state_->key_report(id, caller.uid);
}

std::vector<KeyReport> Volume::key_list(Caller caller) {
  std::vector<KeyReport> reports;
  for (const crypto::KeyId& id : state_->keyring.list())
    reports.push_back(state_->key_report(id, caller.uid));
  return reports;
}

namespace {

// Time of each phase of a removal.
class Phases {
 public:
  Phases(Env& env, RemovalReport& report) : env_(env), report_(report), last_(env.monotonic_ns()) {}
  void end(std::string_view name) {
    const u64 now = env_.monotonic_ns();
    report_.phases.push_back({name, now - last_});
    last_ = now;
  }

 private:
  Env& env_;
  RemovalReport& report_;
  u64 last_;
};

}  // namespace

// The inodes in memory that hold a lease of the key: its own list says which, so the cost grows
// with them and not with what else is in memory.
std::vector<InodePtr> Volume::State::owners(keymgr::Removal& removal) {
  static constexpr u32 kOwnersAtOnce = 256;
  std::vector<InodePtr> found;
  for (u64 cursor = 0;;) {
    const std::vector<u64> words = removal.owners(cursor, kOwnersAtOnce);
    if (words.empty()) return found;
    Lock lock(table_mutex);
    for (const u64 word : words) {
      // One that is not there is an operation's own lease, over in a moment.
      const auto it = owners_by_word.find(word);
      if (it != owners_by_word.end() && (found.empty() || found.back().get() != it->second))
        found.push_back(it->second->shared_from_this());
    }
  }
}

// What nobody uses is flushed with one commit, then its leases go; who is inside does the same at
// the last close. A broken device does not keep a key alive: what it does not take is lost.
// no_memory: nothing is, and another removal goes on.
Result<void> Volume::State::flush_leaving(keymgr::Removal& removal, RemovalReport& report) {
  std::vector<InodePtr> idle;
  {
    std::vector<InodePtr> all = owners(removal);
    Lock lock(table_mutex);
    std::ranges::copy_if(all, std::back_inserter(idle),
                         [](const InodePtr& inode) LK_NO_ANALYSIS { return inode->users == 0; });
  }
  const Flushed flushed = flush_many(idle, true);
  report.bytes_flushed = flushed.pages * kPageBytes;
  if (!flushed.result && may_pass(flushed.result.error())) return flushed.result;
  for (const InodePtr& inode : flushed.failed) {
    Lock flush_lock(inode->flush_mutex);
    if (!key_is_leaving(*inode)) continue;  // added again meanwhile: nothing is in a hurry
    const u64 lost = inode->lose_pages();
    if (lost == 0) continue;
    ++report.files_lost;
    report.bytes_lost += lost;
  }
  if (flushed.pages != 0 && !store->commit()) {
    report.bytes_lost += std::exchange(report.bytes_flushed, 0);
    report.files_lost += idle.size() - flushed.failed.size();
  }
  for (const InodePtr& inode : idle) forget_if_idle(inode);
  return {};
}

// The secret is gone: dirty pages under it are dropped and counted, the leases given back. A clean
// inode may have leased the key anew, because it was added again.
void Volume::State::drop_cut_off(keymgr::Removal& removal, RemovalReport& report) {
  for (const InodePtr& inode : owners(removal)) {
    {
      Lock flush_lock(inode->flush_mutex);
      ExclusiveLock lease_lock(inode->lease_lock);
      if (!inode->key_lease.cut_off()) continue;
      const u64 lost = inode->lose_pages();
      keyring.release(inode->key_lease);
      if (lost != 0) {
        ++report.files_lost;
        report.bytes_lost += lost;
      }
    }
    forget_if_idle(inode);
  }
}

Result<RemovalReport> Volume::remove_key(Caller caller, const crypto::KeyId& id,
                                         keymgr::RemovalMode mode, bool all_users) {
  State& state = *state_;
  RemovalReport report;
  report.key_id = id;
  report.mode = mode;
  Phases phases(state.env, report);
  LK_TRY(auto start, state.keyring.begin_removal(id, caller.uid, all_users, mode));
  phases.end("door");
  if (start.claim_only) {
    report.other_users = true;
    report.state = state.keyring.status(id, caller.uid).state;
    return report;
  }
  keymgr::Removal& removal = *start.removal;
  const keymgr::RemovalRow& row = removal.row();
  // Both rows that exist commit their claim first; hard wipes with it, the batch in hand finishes.
  LK_CHECK(row.claim_first);
  LK_TRY(const auto committed, removal.commit());
  report.other_users = committed.others_remain;
  report.state = committed.state;
  phases.end("commit");
  if (committed.others_remain) return report;
  if (committed.state == keymgr::KeyState::absent) state.slots->evict_key(id);
  if (row.dirty == keymgr::Dirty::drop) {
    state.drop_cut_off(removal, report);
    phases.end("drop");
  } else {
    LK_TRYV(state.flush_leaving(removal, report));
    phases.end("flush");
  }
  report.holders = state.holders(id);
  report.files_busy = !report.holders.empty() && row.stays == keymgr::Stays::master;
  report.state = state.keyring.status(id, caller.uid).state;
  phases.end("report");
  return report;
}

}  // namespace latchkey::volume
