#pragma once
// How much of what a volume would like to lock fits into RLIMIT_MEMLOCK. Secrets (the arena) count
// against it by process; rings and what they register count by user, over all his processes.

#include "base/types.h"

namespace latchkey::volume {

inline constexpr u64 kNoLockLimit = ~u64{0};
inline constexpr u64 kReadRingBytes = 512 * kKiB;  // of a ring that readers borrow

// Bytes that this process may lock: RLIMIT_MEMLOCK, or kNoLockLimit with CAP_IPC_LOCK.
u64 lockable_bytes();

struct LockedSizes {
  u32 key_slots = 0;
  bool register_buffers = true;  // with io_uring, which locks them; they work without, too
};

struct LockedWish {
  u32 key_slots = 0;
  u32 lanes = 0;  // 0: nothing is written
  u32 read_rings = 0;
};

// An eighth for key slots, but never fewer than all threads pin. Buffers are registered where all
// of them fit into another eighth: the rest is for keys, rings and the user's other processes,
// which cannot open a store once his limit is used up.
LockedSizes fit_lock_limit(const LockedWish& wish, u64 lockable);

}  // namespace latchkey::volume
