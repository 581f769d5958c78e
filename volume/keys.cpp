// Keys: claims pass through to the keyring; who is inside, and what a caller may know of a key.

#include "volume/state.h"

namespace latchkey::volume {

Result<crypto::KeyId> Volume::add_key(Caller caller, SecretBytes&& secret) {
  std::optional<u64> unsealed;
  LK_TRY(const crypto::KeyId id, state_->keyring.add(caller.uid, std::move(secret), &unsealed));
  {
    Lock lock(state_->worker_mutex);
    std::erase_if(state_->overdue, [&](const State::Overdue& late) { return late.id == id; });
  }
  if (unsealed) state_->unseal(id, *unsealed);
  state_->let_in_again(id);
  state_->try_again(id);
  return id;
}

std::vector<Holder> Volume::State::holders(const crypto::KeyId& id) {
  std::vector<Holder> list;
  const auto inside = handles_of_key.find(id);
  if (inside == handles_of_key.end()) return list;
  for (const u64 number : inside->second) {
    const Handle& handle = *handles.at(number);
    list.push_back(handle.as_holder(HandleId{number}));
  }
  return list;
}

// To strangers every key is absent: they cannot find out which identifiers are in use.
KeyReport Volume::State::key_facts(const crypto::KeyId& id, u32 uid) {
  const keymgr::KeyStatus status = keyring.status(id, uid);
  KeyReport report;
  report.key_id = id;
  const bool told = uid == 0 || status.claimed_by_caller || status.claimed_before ||
                    options.status_public || options.compat_fscrypt;
  if (!told) return report;
  report.state = status.state;
  report.added_by_self = status.claimed_by_caller;
  report.user_count = status.claims;
  return report;
}

KeyReport Volume::State::key_report(const crypto::KeyId& id, u32 uid) {
  KeyReport report = key_facts(id, uid);
  if (report.state != keymgr::KeyState::absent) {
    Lock lock(table_mutex);
    report.holders = holders(id);
  }
  return report;
}

KeyReport Volume::key_status(Caller caller, const crypto::KeyId& id) {
  return state_->key_report(id, caller.uid);
}

keymgr::KeyState Volume::key_state(Caller caller, const crypto::KeyId& id) {
  return state_->key_facts(id, caller.uid).state;
}

std::vector<KeyReport> Volume::key_list(Caller caller) {
  std::vector<KeyReport> reports;
  for (const crypto::KeyId& id : state_->keyring.list()) {
    reports.push_back(state_->key_report(id, caller.uid));
    if (reports.back().state == keymgr::KeyState::absent) reports.pop_back();
  }
  return reports;
}

// The inodes in memory that hold a lease of the key: its own list says which, so the cost grows
// with them and not with what else is in memory. `next` is owners() of a removal or of the ring.
std::vector<InodePtr> Volume::State::leased(const OwnersOf& next) {
  static constexpr u32 kOwnersAtOnce = 256;
  std::vector<InodePtr> found;
  for (u64 cursor = 0;;) {
    const std::vector<u64> words = next(cursor, kOwnersAtOnce);
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

}  // namespace latchkey::volume
