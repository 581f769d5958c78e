#include "volume/lock_limit.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

namespace latchkey::volume {
namespace {

const LockedWish kWish{.key_slots = 1024, .lanes = 2, .read_rings = 4};

TEST(LockLimit, whoever_may_lock_enough_gets_all_that_is_wished) {
  for (const u64 limit : {kNoLockLimit, u64{1} << 40, 80 * kMiB}) {
    const LockedSizes sizes = fit_lock_limit(kWish, limit);
    EXPECT_EQ(sizes.key_slots, 1024u);
    EXPECT_TRUE(sizes.register_buffers);
  }
}

// Eight processes of one user have room side by side under Debian's limit.
TEST(LockLimit, debians_eight_mebibytes_hold_all_slots_and_no_buffers) {
  const LockedSizes sizes = fit_lock_limit(kWish, 8 * kMiB);
  EXPECT_EQ(sizes.key_slots, 1024u);
  EXPECT_FALSE(sizes.register_buffers);
  EXPECT_TRUE(
      fit_lock_limit({.key_slots = 1024, .lanes = 0, .read_rings = 2}, 8 * kMiB).register_buffers);
}

TEST(LockLimit, every_limit_down_to_nothing_leaves_slots_that_suffice) {
  u32 last = 1024;
  for (u64 limit = 64 * kMiB; limit != 0; limit /= 2) {
    const LockedSizes sizes = fit_lock_limit(kWish, limit);
    EXPECT_LE(sizes.key_slots, last);
    EXPECT_GE(sizes.key_slots, 64u);
    last = sizes.key_slots;
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
