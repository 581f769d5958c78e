#pragma once
// How much of what a volume would like to lock fits into RLIMIT_MEMLOCK. Secrets (the arena) and
// memory that io_uring registers both count against it: the one by process, the other by user.

#include "base/types.h"

namespace latchkey::volume {

inline constexpr u64 kNoLockLimit = ~u64{0};
inline constexpr u64 kReadRingBytes = 512 * kKiB;    // of a ring that readers borrow
inline constexpr u64 kReadRingBytesMin = 64 * kKiB;  // the reader's bounce buffer
inline constexpr u32 kBatchPages = 512;              // of writeback: half of a lane's buffer

// Bytes that this process may lock: RLIMIT_MEMLOCK, or kNoLockLimit with CAP_IPC_LOCK.
u64 lockable_bytes();

struct LockedSizes {
  u32 key_slots = 0;
  u32 batch_pages = kBatchPages;
  u64 read_ring_bytes = kReadRingBytes;  // whole pages
};

struct LockedWish {
  u32 key_slots = 0;
  u32 lanes = 0;  // 0: nothing is written
  u32 read_rings = 0;
};

// An eighth for key slots, half for buffers: the rest is for keys, rings and the user's other
// processes. Nothing grows beyond what is wished, nor shrinks below what works; what does not fit
// even so stays unregistered (buffers) or is refused by the arena (slots).
LockedSizes fit_lock_limit(const LockedWish& wish, u64 lockable);

}  // namespace latchkey::volume
