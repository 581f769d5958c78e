#pragma once
// A bounded table of expanded extent keys for readers, as blk-crypto's keyslots: key schedules are
// written straight into their slot in the arena; a pinned slot is never reused; idle ones are an
// LRU; eviction wipes.
//
// Thread-safe. Lock: State::mutex (a leaf). Derivation runs outside of it. A thread that holds a
// pin and asks for another can wait for ever when every slot is pinned: the table has more slots
// than all threads together hold pins.

#include <memory>

#include "base/mutex.h"
#include "base/result.h"
#include "base/secret.h"
#include "crypto/ids.h"
#include "crypto/xts.h"
#include "keymgr/keyring.h"

namespace latchkey::keymgr {

class SlotTable;

class SlotPin {
 public:
  SlotPin(SlotPin&& other) noexcept;
  SlotPin& operator=(SlotPin&&) = delete;
  ~SlotPin();
  const crypto::XtsKey& key() const;

 private:
  friend class SlotTable;
  SlotPin() = default;
  SlotTable* table_ = nullptr;
  u32 slot_ = 0;
};

struct SlotCounters {
  u64 capacity = 0;
  u64 hits = 0, misses = 0;
  u64 evictions = 0;  // to make room; not what evict_key() wiped
};

class SlotTable {
 public:
  // Errc::no_memory: the arena has no room for `slots` schedules.
  static Result<std::unique_ptr<SlotTable>> create(u32 slots);
  ~SlotTable();

  // The expanded key of (lease's key, nonce); derives on a miss under a KeyUse. Waits while every
  // slot is pinned. no_key as KeyUse::begin.
  Result<SlotPin> get(const Lease& lease, const crypto::Nonce& nonce);
  // Wipes and unlinks every slot of the key; waits for pinned ones. Whenever a key turned absent:
  // after a commit that says so, after a release() that returned true.
  void evict_key(const crypto::KeyId& id);
  SlotCounters counters() const;

 private:
  friend class SlotPin;
  struct State;
  explicit SlotTable(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace latchkey::keymgr
