#include "keymgr/suspensions.h"

#include <utility>

#include "base/no_wait.h"

namespace latchkey::keymgr {

void Suspensions::begin(const crypto::KeyId& id, std::set<u32> claimers, std::optional<u64> until) {
  Lock lock(mutex_);
  const auto [it, fresh] = keys_.try_emplace(id);
  it->second.claimers.merge(claimers);
  it->second.until = until;
  ++changes_;
  if (fresh) it->second.number = changes_;
  ended_.notify_all();  // the deadline may be an earlier one
}

void Suspensions::end(const crypto::KeyId& id) {
  Lock lock(mutex_);
  if (keys_.erase(id) == 0) return;
  ++changes_;
  ended_.notify_all();
}

void Suspensions::end_all() {
  Lock lock(mutex_);
  keys_.clear();
  ++changes_;
  ended_.notify_all();
}

bool Suspensions::may_end(const crypto::KeyId& id, u32 uid) const {
  Lock lock(mutex_);
  const auto it = keys_.find(id);
  return it != keys_.end() && (uid == 0 || it->second.claimers.contains(uid));
}

bool Suspensions::suspended(const crypto::KeyId& id) const {
  Lock lock(mutex_);
  return keys_.contains(id);
}

u32 Suspensions::waiters() const {
  Lock lock(mutex_);
  return waiters_;
}

std::vector<crypto::KeyId> Suspensions::end_late(u64 now_ns) {
  Lock lock(mutex_);
  std::vector<crypto::KeyId> late;
  for (const auto& [id, suspension] : keys_)
    if (suspension.until && *suspension.until <= now_ns) late.push_back(id);
  if (late.empty()) return late;
  for (const crypto::KeyId& id : late) keys_.erase(id);
  ++changes_;
  ended_.notify_all();
  return late;
}

std::optional<u64> Suspensions::next_deadline() const {
  Lock lock(mutex_);
  std::optional<u64> next;
  for (const auto& [id, suspension] : keys_)
    if (suspension.until && (!next || *suspension.until < *next)) next = suspension.until;
  return next;
}

Result<void> Suspensions::wait(const crypto::KeyId& id, Env& env) {
  check_may_wait();
  Lock lock(mutex_);
  auto it = keys_.find(id);
  if (it == keys_.end()) return fail(Errc::no_key, "the key is not present");
  if (waiters_ == waiters_max_)
    return fail(Errc::no_key, "the key is suspended, and no more calls can wait for it");
  const u64 number = it->second.number;
  ++waiters_;
  bool late = false;
  for (; it != keys_.end() && it->second.number == number; it = keys_.find(id)) {
    if (!it->second.until) {
      ended_.wait(mutex_);
      continue;
    }
    const u64 now = env.monotonic_ns();
    late = now >= *it->second.until;
    if (late) break;
    ended_.wait_for(mutex_, *it->second.until - now);
  }
  --waiters_;
  if (!late) return {};
  keys_.erase(it);
  ++changes_;
  ended_.notify_all();
  return fail(Errc::no_key, "the key did not come back in time");
}

}  // namespace latchkey::keymgr
