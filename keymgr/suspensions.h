#pragma once
// Keys that a removal has taken away until they come back (mode suspend), and who waits for one of
// them: reads and writes of handles that stayed open. A bounded table of waiters, each a thread of
// its caller, which holds no lock that a removal or an add takes.
//
//   begin() by the removal, before the wipe -> end() by an add, by a removal that refuses instead,
//   by the deadline
//
// Thread-safe. Lock: mutex_, a leaf.

#include <atomic>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/env.h"
#include "base/mutex.h"
#include "base/result.h"
#include "crypto/ids.h"

namespace latchkey::keymgr {

class Suspensions {
 public:
  explicit Suspensions(u32 waiters_max) : waiters_max_(waiters_max) {}

  // `until`: on env's monotonic clock; none: for ever. `claimers` may end it. Of a key that is
  // suspended already: the new deadline counts.
  void begin(const crypto::KeyId& id, std::set<u32> claimers, std::optional<u64> until);
  void end(const crypto::KeyId& id);
  void end_all();

  // Root, or one whose claim the key had. False where the key is not suspended.
  bool may_end(const crypto::KeyId& id, u32 uid) const;
  bool suspended(const crypto::KeyId& id) const;
  // Rises with each beginning and end: who saw no_key, and a change since before, looks again.
  // No lock: every read and write asks.
  u64 changes() const { return changes_.load(std::memory_order_acquire); }
  // Waits for the end of the key's suspension. The caller looks again at what it wanted: the key
  // may be back. no_key: it is not suspended, the deadline has passed, or waiters_max wait already.
  Result<void> wait(const crypto::KeyId& id, Env& env);
  u32 waiters() const;
  // For who cannot wait: ends those whose deadline has passed, each for one caller only; and the
  // next deadline that is still to come.
  std::vector<crypto::KeyId> end_late(u64 now_ns);
  std::optional<u64> next_deadline() const;

 private:
  struct Suspension {
    std::set<u32> claimers;
    std::optional<u64> until;
    u64 number = 0;  // of this suspension: none is another's
  };
  const u32 waiters_max_;
  mutable Mutex mutex_;
  CondVar ended_;  // with mutex_
  std::unordered_map<crypto::KeyId, Suspension, crypto::IdHash> keys_ LK_GUARDED_BY(mutex_);
  std::atomic<u64> changes_{0};  // changed under mutex_
  u32 waiters_ LK_GUARDED_BY(mutex_) = 0;
};

}  // namespace latchkey::keymgr
