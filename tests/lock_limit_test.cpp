#include "volume/lock_limit.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace latchkey::volume {
namespace {

const LockedWish kWish{.key_slots = 1024, .lanes = 2, .read_rings = 4};

u64 locked(const LockedSizes& sizes) {
  return 2 * u64{kWish.lanes} * sizes.batch_pages * 4096 + kWish.read_rings * sizes.read_ring_bytes;
}

TEST(LockLimit, nothing_grows_beyond_what_is_wished) {
  for (const u64 limit : {kNoLockLimit, u64{1} << 40, 64 * kMiB}) {
    const LockedSizes sizes = fit_lock_limit(kWish, limit);
    EXPECT_EQ(sizes.key_slots, 1024u);
    EXPECT_EQ(sizes.batch_pages, kBatchPages);
    EXPECT_EQ(sizes.read_ring_bytes, kReadRingBytes);
  }
}

TEST(LockLimit, debians_eight_mebibytes_hold_all_buffers_and_all_slots) {
  const LockedSizes sizes = fit_lock_limit(kWish, 8 * kMiB);
  EXPECT_EQ(sizes.key_slots, 1024u);
  EXPECT_LE(locked(sizes), 4 * kMiB);
  EXPECT_GE(locked(sizes), 3 * kMiB);
  EXPECT_EQ(sizes.read_ring_bytes % 4096, 0u);
}

TEST(LockLimit, every_limit_down_to_nothing_gives_sizes_that_work) {
  LockedSizes last = fit_lock_limit(kWish, 64 * kMiB);
  for (u64 limit = 64 * kMiB; limit != 0; limit /= 2) {
    const LockedSizes sizes = fit_lock_limit(kWish, limit);
    EXPECT_LE(sizes.batch_pages, last.batch_pages);
    EXPECT_LE(sizes.read_ring_bytes, last.read_ring_bytes);
    EXPECT_GE(sizes.batch_pages, 1u);
    EXPECT_GE(sizes.key_slots, 64u);
    EXPECT_GE(sizes.read_ring_bytes, kReadRingBytesMin);
    last = sizes;
  }
}

TEST(LockLimit, is_what_the_kernel_would_let_this_process_lock) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const rlimit limit{3 * kMiB, 3 * kMiB};
    bool ok = ::setrlimit(RLIMIT_MEMLOCK, &limit) == 0;
    if (::geteuid() == 0) {
      ok = ok && lockable_bytes() == kNoLockLimit;
      ok = ok && ::setresuid(65534, 65534, 65534) == 0;  // its capabilities go with it
    }
    ::_exit(ok && lockable_bytes() == 3 * kMiB ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace latchkey::volume
