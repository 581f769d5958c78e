#include "volume/lock_limit.h"

#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "crypto/xts.h"
#include "engine/types.h"
#include "writeback/pipeline.h"

namespace latchkey::volume {

namespace {

constexpr u32 kKeySlotsMin = 64;  // more than all threads pin at a time

bool may_lock_anything() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> sets{};
  if (::syscall(SYS_capget, &header, sets.data()) != 0) return false;
  return (sets[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK)) != 0;
}

}  // namespace

u64 lockable_bytes() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 0;
  return limit.rlim_cur == RLIM_INFINITY || may_lock_anything() ? kNoLockLimit : limit.rlim_cur;
}

LockedSizes fit_lock_limit(const LockedWish& wish, u64 lockable) {
  LockedSizes sizes;
  sizes.key_slots = wish.key_slots;
  if (lockable == kNoLockLimit) return sizes;

  const u64 slots = lockable / 8 / sizeof(crypto::XtsKey);
  sizes.key_slots =
      static_cast<u32>(std::min<u64>(wish.key_slots, std::max<u64>(kKeySlotsMin, slots)));

  const u64 lanes = u64{wish.lanes} * 2 * writeback::kBatchPages * engine::kBlockBytes;
  sizes.register_buffers = lanes + u64{wish.read_rings} * kReadRingBytes <= lockable / 8;
  return sizes;
}

}  // namespace latchkey::volume
