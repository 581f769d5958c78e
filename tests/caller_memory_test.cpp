// Goal: nobody's memory is looked at but that of a thread that waits in the very ioctl that it is
// looked at for, and a job that never ends stands before nobody but its own user. Method: a process
// that waits in something else, and none; jobs that are held up by hand. (What is read and written:
// mount_ioctl_kernel_test, mount_ioctl_test.)

#include <gtest/gtest.h>
#include <linux/fscrypt.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <memory>

#include "base/mutex.h"
#include "base/thread.h"
#include "mount/caller_memory.h"
#include "mount/ioctl_threads.h"

namespace latchkey::tests {
namespace {

using mount::CallerMemory;
using mount::IoctlThreads;

bool is_refused(u32 thread, u64 address) {
  const auto memory = CallerMemory::of(thread, FS_IOC_SET_ENCRYPTION_POLICY, address);
  return !memory && memory.error().code == Errc::unsupported;
}

TEST(CallerMemory, is_of_nobody_who_waits_in_something_else) {
  const std::array<std::byte, 24> here{};
  const auto address = reinterpret_cast<u64>(here.data());
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) ::pause();
  }
  EXPECT_TRUE(is_refused(static_cast<u32>(child), address));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(is_refused(static_cast<u32>(child), address)) << "a process that has ended";
  EXPECT_TRUE(is_refused(0, address)) << "a caller of another world";
}

// A place where jobs stand until they are let go.
class Barrier {
 public:
  void stand() {
    Lock lock(mutex_);
    ++standing_;
    changed_.notify_all();
    while (!open_) changed_.wait(mutex_);
  }
  void wait_for(u32 count) {
    Lock lock(mutex_);
    while (standing_ < count) changed_.wait(mutex_);
  }
  void open() {
    Lock lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  u32 standing_ LK_GUARDED_BY(mutex_) = 0;
  bool open_ LK_GUARDED_BY(mutex_) = false;
};

TEST(IoctlThreads, one_users_jobs_that_hang_stand_before_his_own_alone) {
  struct World {
    Barrier hanging, others;
    std::atomic<bool> came{false};
  };
  const auto world = std::make_shared<World>();
  IoctlThreads threads({.of_a_user = 2, .of_all = 3});
  for (int i = 0; i < 2; ++i)
    ASSERT_TRUE(threads.start(1000, [world](IoctlThreads::Turn&) { world->hanging.stand(); }));
  world->hanging.wait_for(2);
  world->others.open();
  ASSERT_TRUE(threads.start(1000, [world](IoctlThreads::Turn&) {
    world->came = true;
    world->others.stand();
  }));
  for (u32 i = 1; i <= 3; ++i) {
    // In the one place that is left, one after the other.
    ASSERT_TRUE(threads.start(1001, [world](IoctlThreads::Turn&) { world->others.stand(); }));
    world->others.wait_for(i);
  }
  EXPECT_FALSE(world->came) << "the third of 1000";
  world->hanging.open();
  world->others.wait_for(4);
}

TEST(IoctlThreads, stop_waits_for_who_acts_and_for_nobody_else) {
  Barrier hanging, acting;
  std::atomic<int> acted{0};
  std::atomic<bool> was_late{false}, ended{false};
  IoctlThreads threads({.of_a_user = 4, .of_all = 4});
  ASSERT_TRUE(threads.start(0, [&](IoctlThreads::Turn& turn) {
    hanging.stand();
    was_late = !turn.act();
    ended = true;
  }));
  ASSERT_TRUE(threads.start(0, [&](IoctlThreads::Turn& turn) {
    if (!turn.act()) return;
    acting.stand();
    ++acted;
  }));
  hanging.wait_for(1);
  acting.wait_for(1);
  Thread opener([&] { acting.open(); });
  threads.stop();
  EXPECT_EQ(acted, 1);
  opener.join();
  EXPECT_FALSE(threads.start(0, [&](IoctlThreads::Turn&) { ++acted; }));
  hanging.open();
  while (!ended) ::usleep(1000);
  EXPECT_TRUE(was_late) << "it acts behind stop()";
}

}  // namespace
}  // namespace latchkey::tests
