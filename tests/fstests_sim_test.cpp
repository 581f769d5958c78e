// Goal: what fstests generic/595 and 621 try for some seconds by luck is true of every schedule
// that is drawn: no accepted byte is lost to a removal, no name is made twice while its key comes
// and goes. Method: the same actors as fibers of the simulator, a few rounds each, by seed; a
// failure names its seed.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>

#include "base/thread.h"
#include "tests/sim/env.h"
#include "tests/sim/scheduler.h"
#include "tests/sim/small_volume.h"
#include "tests/support/seed.h"
#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using namespace small;   // NOLINT: and of it
using keymgr::KeyState;
using keymgr::RemovalMode;

Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// A machine of one seed, whose volume lives within run().
class Machine {
 public:
  explicit Machine(u64 seed)
      : scheduler_({.seed = seed,
                    .preempt_in_1024 = static_cast<u32>(seed % 3 * 200),
                    .by_priority = seed % 5 == 0}),
        env_(seed),
        device_({.size_bytes = kDeviceBytes,
                 .seed = seed + 1,
                 .clock = &scheduler_,
                 .latency = {.most_ns = seed % 2 == 0 ? 100'000U : 2'000'000U}}),
        seed_(seed) {
    static const SimImage image = image_of({"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"});
    env_.set_clock(&scheduler_);
    device_.restore(image);
  }

  void run(const std::function<void()>& body) {
    scheduler_.run([&] {
      VolumeOptions options;
      options.inline_writeback = seed_ % 4 == 0;
      options.writeback_workers = 1;
      options.commit_interval_ms = seed_ % 3 == 0 ? 1 : 0;
      options.dirty_bytes_max = kMiB;
      options.key_slots = 16;
      options.compat_fscrypt = seed_ % 2 == 0;
      volume_ = must(Volume::open(device_, options, env_));
      add();
      dir_ = must(resolve(*volume_, "/dir"));
      body();
      add();
      EXPECT_TRUE(volume_->close());
      volume_.reset();
    });
    expect_clean(device_, "at the end");
  }
  // Fibers that run body(0), body(1), ... side by side.
  static void together(int count, const std::function<void(int)>& body) {
    std::vector<Thread> threads;
    threads.reserve(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) threads.emplace_back([&body, i] { body(i); });
    for (Thread& thread : threads) thread.join();
  }

  void add() { id_ = must(volume_->add_key(kUser, the_key())); }
  Volume& volume() { return *volume_; }
  InodeId dir() const { return dir_; }
  const crypto::KeyId& id() const { return id_; }
  bool compat() const { return seed_ % 2 == 0; }
  void pause() { scheduler_.sleep_until(scheduler_.now_ns() + 20'000); }

 private:
  FiberScheduler scheduler_;
  SimEnv env_;
  SimDevice device_;
  const u64 seed_;
  std::unique_ptr<Volume> volume_;
  InodeId dir_;
  crypto::KeyId id_;
};

std::string content(Volume& volume, InodeId dir, std::string_view name) {
  const HandleId handle = must(volume.open_file(kUser, dir, name, {}, 0, std::string(name)));
  std::string text(must(volume.stat(handle)).size, '?');
  EXPECT_EQ(must(volume.read(handle, 0, std::as_writable_bytes(std::span(text)))), text.size());
  EXPECT_TRUE(volume.close_handle(handle));
  return text;
}

class Generic595InSchedules : public ::testing::TestWithParam<RemovalMode> {
 protected:
  struct Counts {
    u64 accepted = 0, refused = 0;
  };
  // Opens, appends, closes; the bytes tell whose they are.
  static void write(Machine& machine, char byte, Counts& counts) {
    for (int round = 0; round < 6; ++round) {
      const auto handle =
          machine.volume().open_file(kUser, machine.dir(), "5", {.write = true}, 0, "5");
      if (!handle) {
        const Errc code = handle.error().code;
        EXPECT_TRUE(code == Errc::no_key || (machine.compat() && code == Errc::not_found));
        ++counts.refused;
        machine.pause();
        continue;
      }
      const auto wrote = machine.volume().append(*handle, bytes_of({&byte, 1}));
      if (!wrote) {
        EXPECT_EQ(wrote.error().code, Errc::no_key) << wrote.error().what;
      }
      const auto closed = machine.volume().close_handle(*handle);
      EXPECT_TRUE(closed) << closed.error().what;
      ++(wrote ? counts.accepted : counts.refused);
    }
  }
  static void race(Machine& machine, RemovalMode mode, std::array<Counts, 2>& counts) {
    Machine::together(3, [&](int actor) {
      if (actor != 0) return write(machine, static_cast<char>('W' + actor), counts[actor - 1]);
      for (int round = 0; round < 8; ++round) {
        (void)machine.volume().remove_key(kUser, machine.id(), mode);
        if (round % 2 == 0) machine.pause();
        machine.add();
        machine.pause();
      }
    });
  }
};

TEST_P(Generic595InSchedules, no_accepted_byte_is_lost) {
  u64 accepted = 0, refused = 0;
  for (const u64 seed : seeds(cases(120))) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(seed);
    std::array<Counts, 2> counts;
    machine.run([&] {
      race(machine, GetParam(), counts);
      machine.add();
      const std::string text = content(machine.volume(), machine.dir(), "5");
      EXPECT_EQ(std::ranges::count(text, 'X'), static_cast<i64>(counts[0].accepted));
      EXPECT_EQ(std::ranges::count(text, 'Y'), static_cast<i64>(counts[1].accepted));
      EXPECT_EQ(text.size(), counts[0].accepted + counts[1].accepted);
    });
    for (const Counts& one : counts) {
      accepted += one.accepted;
      refused += one.refused;
    }
  }
  EXPECT_GT(accepted, 20U);
  EXPECT_GT(refused, 20U);
}

INSTANTIATE_TEST_SUITE_P(Mode, Generic595InSchedules,
                         ::testing::Values(RemovalMode::soft, RemovalMode::sealed,
                                           RemovalMode::safe, RemovalMode::freeze,
                                           RemovalMode::deny, RemovalMode::suspend),
                         [](const auto& mode) {
                           return std::string(keymgr::removal_row(mode.param).name);
                         });

// Calls that fail where the name is there already.
Result<void> make_again(Machine& machine, u64 call) {
  Volume& volume = machine.volume();
  const InodeId dir = machine.dir();
  const auto answer = [](const auto& result) -> Result<void> {
    if (!result) return std::unexpected(result.error());
    return {};
  };
  switch (call % 5) {
    case 0:
      return answer(volume.mkdir(kUser, dir, "9", 0700));
    case 1:
      return answer(volume.make_node(kUser, dir, "9", {}));
    case 2:
      return answer(volume.symlink(kUser, dir, "9", "target"));
    case 3:
      return volume.rename(dir, "1", dir, "9", {.no_replace = true});
    default:
      return answer(volume.open_file(
          kUser, dir, "9", {.write = true, .create = true, .exclusive = true}, 0600, "9"));
  }
}

TEST(Generic621InSchedules, no_name_is_made_twice) {
  u64 there = 0, locked = 0;
  for (const u64 seed : seeds(cases(200))) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(seed);
    machine.run([&] {
      const InodeId before = must(machine.volume().lookup(machine.dir(), "9"));
      Machine::together(3, [&](int actor) {
        for (u64 round = 0; round < 10; ++round) {
          if (actor == 0) {
            (void)machine.volume().remove_key(kUser, machine.id(), RemovalMode::soft);
            machine.pause();
            machine.add();
            continue;
          }
          const auto made = make_again(machine, round + seed);
          ASSERT_FALSE(made) << "call " << (round + seed) % 5;
          const Errc code = made.error().code;
          // The kernel's rename does not find a plain name while it is locked.
          const bool hidden = machine.compat() && code == Errc::not_found;
          if (code == Errc::exists)
            ++there;
          else if (code == Errc::no_key || hidden)
            ++locked;
          else
            ADD_FAILURE() << made.error().what;
        }
      });
      machine.add();
      const auto entries = must(machine.volume().read_directory(machine.dir()));
      EXPECT_EQ(entries.size(), 10U);
      EXPECT_EQ(std::ranges::count(entries, "9", &DirEntry::name), 1);
      EXPECT_EQ(must(machine.volume().lookup(machine.dir(), "9")), before);
    });
  }
  EXPECT_GT(there, 20U);
  EXPECT_GT(locked, 20U);
}

}  // namespace
}  // namespace latchkey::tests
