// Keys: claims pass through to the keyring; a removal drives its row over the inodes of that key.

#include <algorithm>

#include "base/check.h"
#include "volume/state.h"

namespace latchkey::volume {

Result<crypto::KeyId> Volume::add_key(Caller caller, SecretBytes&& secret) {
  return state_->keyring.add(caller.uid, std::move(secret));
}

std::vector<Holder> Volume::State::holders(const crypto::KeyId& id) {
  Lock lock(table_mutex);
  std::vector<Holder> list;
  for (const auto& [number, handle] : handles) {
    const Attributes attributes = handle->inode->attributes();
    if (!attributes.encrypted || attributes.key_id != id) continue;
    list.push_back({handle->path, handle->uid, HandleId{number}, handle->inode->dirty_bytes(),
                    handle->since_ns});
  }
  std::ranges::sort(list, {}, [](const Holder& holder) { return holder.handle; });
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

// Each inode that holds a lease of the key: flushed if nobody has it open, or dropped and counted.
void Volume::State::settle_inodes(keymgr::Removal& removal, RemovalReport& report) {
  static constexpr u32 kOwnersAtOnce = 256;
  u64 cursor = 0;
  for (;;) {
    const std::vector<u64> owners = removal.owners(cursor, kOwnersAtOnce);
    if (owners.empty()) break;
    for (const u64 owner : owners) {
      InodePtr inode;
      {
        Lock lock(table_mutex);
        if (const auto it = inodes.find(owner); it != inodes.end()) inode = it->second;
      }
      if (!inode) continue;  // an operation on names, over in a moment
      if (removal.row().dirty == keymgr::Dirty::drop) {
        Lock flush_lock(inode->flush_mutex);
        const u64 dropped = inode->drop_pages(0);
        const u64 lost = inode->unlinked ? 0 : dropped;
        if (lost != 0) {
          report.bytes_lost += lost;
          ++report.files_lost;
          inode->lost_data = inode->handles != 0;
        }
        return_lease(*inode);
      } else if (inode->handles == 0) {
        const u64 dirty = inode->dirty_bytes();
        if (flush(*inode)) {
          report.bytes_flushed += dirty;
        } else {
          // A broken device does not keep a key alive.
          Lock flush_lock(inode->flush_mutex);
          report.bytes_lost += inode->drop_pages(0);
          ++report.files_lost;
        }
      }
      forget_if_idle(inode);
    }
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
  phases.end("commit");
  if (committed.others_remain) {
    report.state = committed.state;
    return report;
  }
  state.settle_inodes(removal, report);
  phases.end(row.dirty == keymgr::Dirty::drop ? "drop" : "flush");
  if (row.dirty != keymgr::Dirty::drop) {
    if (report.bytes_flushed != 0) LK_TRYV(state.store->commit());
    phases.end("durable");
  }
  report.holders = state.holders(id);
  report.files_busy = !report.holders.empty() && row.stays == keymgr::Stays::master;
  report.state = state.keyring.status(id, caller.uid).state;
  if (report.state == keymgr::KeyState::absent) {
    state.slots->evict_key(id);
    phases.end("evict");
  }
  return report;
}

}  // namespace latchkey::volume
