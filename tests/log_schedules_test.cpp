// Goal: whatever else happens to a file, its directory and its neighbours at the moment at which an
// fsync tells the log of it, the log that a crash leaves can be entered: check finds nothing before
// and behind it, and what was acknowledged is there. Method: fibers of the simulator, by seed, that
// do all of it to the same few names; the power goes at the end of each; a failure names its seed.

#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "base/thread.h"
#include "tests/sim/env.h"
#include "tests/sim/scheduler.h"
#include "tests/sim/small_volume.h"
#include "tests/support/random.h"
#include "tests/support/seed.h"
#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using namespace small;   // NOLINT: and of it

constexpr u64 kNames = 3, kActors = 3;
constexpr char kRounds = 10;
constexpr u64 kSlots = 6;  // blocks of a file

class Machine {
 public:
  explicit Machine(u64 seed)
      : seed_(seed),
        scheduler_({.seed = seed,
                    .preempt_in_1024 = static_cast<u32>(20 + seed % 4 * 20),
                    .by_priority = seed % 30 == 0}),
        env_(seed),
        device_({.size_bytes = kDeviceBytes,
                 .seed = seed + 1,
                 .clock = &scheduler_,
                 .latency = {.most_ns = seed % 5 < 2 ? 100'000U : 2'000'000U}}) {
    static const SimImage image = image_of({"0", "1", "kept"});
    env_.set_clock(&scheduler_);
    device_.restore(image);
  }

  // Runs them side by side until they end or the power goes, which it does at one of so many
  // writes. Answers how many blocks of the log were written.
  u64 live(const std::vector<std::function<void()>>& bodies, u64 writes) {
    u64 blocks = 0;
    scheduler_.run([&] {
      open();
      device_.cut_after(4 + seed_ / 60 % writes);
      std::vector<Thread> threads;
      threads.reserve(bodies.size());
      for (const auto& body : bodies) threads.emplace_back([&body] { body(); });
      for (Thread& thread : threads) thread.join();
      blocks = volume_->facts().log_blocks;
      volume_.reset();
    });
    device_.crash(seed_ + 2);
    return blocks;
  }
  // One more letter in a file whose content one actor alone changes.
  void keep(char letter) {
    const auto handle = volume_->open_file(kUser, dir_, "kept", {.write = true}, 0, "kept");
    if (!told(handle)) return;
    const Bytes text = std::as_bytes(std::span(&letter, 1));
    if (told(volume_->write(*handle, kept_.size(), text)) && told(volume_->fsync(*handle)))
      kept_ += letter;
    (void)volume_->close_handle(*handle);
  }
  void link_kept() {
    if (const auto kept = volume_->lookup(dir_, "kept"); told(kept))
      told(volume_->link(*kept, dir_, "linked"));
  }
  // Whatever can be done to a few files of whom all actors know.
  void act(u64 actor) {
    SplitMix64 random(seed_ * kActors + actor);
    for (char round = 0; round < kRounds && !device_.power_off(); ++round) {
      if (actor == 0 && round % 2 == 0) keep(static_cast<char>('a' + round));
      const std::string name(1, static_cast<char>('0' + random() % kNames));
      const std::string other(1, static_cast<char>('0' + random() % kNames));
      if (random() % 2 == 0)
        act_on_names(random, name, other);
      else
        act_on_file(random, name, other);
    }
  }
  void expect_whole() {
    expect_clean(device_, "before the log is entered");
    scheduler_.run([&] {
      open();
      if (!volume_) return;
      expect_kept();
      EXPECT_TRUE(volume_->close());
      volume_.reset();
    });
    expect_clean(device_, "behind it");
  }

 private:
  void open() {
    VolumeOptions options;
    options.inline_writeback = seed_ % 4 == 0;
    options.writeback_workers = 1;
    options.commit_interval_ms = seed_ % 3 == 0 ? 1 : 0;
    options.dirty_bytes_max = kMiB;
    options.key_slots = 16;
    auto opened = Volume::open(device_, options, env_);
    ASSERT_TRUE(opened) << opened.error().what;
    volume_ = std::move(*opened);
    must(volume_->add_key(kUser, the_key()));
    dir_ = must(resolve(*volume_, "/dir"));
  }
  void act_on_names(SplitMix64& random, const std::string& name, const std::string& other) {
    const u64 what = random() % 8;
    if (what == 0) return (void)volume_->unlink(dir_, name);
    if (what == 1) return (void)volume_->rename(dir_, name, dir_, other);
    if (what == 2) return (void)volume_->rename(dir_, name, dir_, other, {.exchange = true});
    if (what == 3) return sync_directory();
    if (what == 4) return (void)told(volume_->sync());
    const auto inode = volume_->lookup(dir_, name);
    if (!inode) return;
    if (what == 5) return (void)volume_->set_attributes(*inode, {.mode = 0640});
    (void)volume_->link(*inode, dir_, other);
  }
  void sync_directory() {
    const auto handle = volume_->open_directory(kUser, dir_, "dir");
    if (!told(handle)) return;
    told(volume_->fsync(*handle));
    (void)volume_->close_handle(*handle);
  }
  void act_on_file(SplitMix64& random, const std::string& name, const std::string& other) {
    const OpenFlags flags{.write = true, .create = random() % 2 == 0};
    const auto handle = volume_->open_file(kUser, dir_, name, flags, 0600, name);
    if (!handle) return;
    const auto second = volume_->open_file(kUser, dir_, other, {.write = true}, 0, other);
    for (u64 left = 1 + random() % 6; left != 0; --left) change(random, *handle, second);
    if (second) (void)volume_->close_handle(*second);
    (void)volume_->close_handle(*handle);
  }
  void change(SplitMix64& random, HandleId handle, const Result<HandleId>& second) {
    std::array<std::byte, 5000> bytes{std::byte(random())};
    const u64 offset = random() % kSlots * 4096, to = random() % kSlots * 4096;
    const u64 what = random() % 16;
    if (what < 5) (void)volume_->write(handle, offset, bytes);
    if (what == 5) (void)volume_->truncate(handle, offset + random() % 4096);
    if (what == 6) (void)volume_->punch(handle, offset, 8192);
    if (what == 7) (void)volume_->allocate(handle, offset, 8192, random() % 2 == 0);
    if (what == 8) (void)volume_->clone_range(handle, offset, handle, to, 4096);
    if (what == 9 && second) (void)volume_->clone_range(handle, offset, *second, to, 8192);
    if (what == 10) (void)volume_->read(handle, offset, bytes);
    if (what == 11) (void)volume_->set_xattr(handle, "user.a", Bytes(bytes).first(random() % 99));
    if (what >= 12) told(volume_->fsync(handle));
  }
  // Whether it worked; it must while the power is on.
  template <class T>
  bool told(const Result<T>& result) {
    if (!device_.power_off()) {
      EXPECT_TRUE(result) << result.error().what;
    }
    return result.has_value();
  }
  void expect_kept() {
    const HandleId handle = must(volume_->open_file(kUser, dir_, "kept", {}, 0, "kept"));
    std::string text(must(volume_->stat(handle)).size, '?');
    must(volume_->read(handle, 0, std::as_writable_bytes(std::span(text))));
    EXPECT_TRUE(text.starts_with(kept_)) << text << " instead of " << kept_;
    EXPECT_TRUE(volume_->close_handle(handle));
  }
  const u64 seed_;
  FiberScheduler scheduler_;
  SimEnv env_;
  SimDevice device_;
  std::unique_ptr<Volume> volume_;
  InodeId dir_;
  std::string kept_;  // acknowledged
};

using Bodies = std::vector<std::function<void()>>;

// `bodies` are what runs beside each other.
void expect_whole_logs(u64 count, u64 writes, const std::function<Bodies(Machine&)>& bodies) {
  u64 blocks = 0;
  for (const u64 seed : seeds(count)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Machine machine(seed);
    blocks += machine.live(bodies(machine), writes);
    machine.expect_whole();
    if (testing::Test::HasFailure()) break;
  }
  EXPECT_GT(blocks, count / 20);
}

// The link must be half done when the log is told, and the power go before the commit that the
// fsync needs then: one seed of a thousand.
TEST(LogSchedules, of_a_file_that_gets_a_name_while_it_is_told_of) {
  expect_whole_logs(cases(4000), 6, [](Machine& machine) -> Bodies {
    return {[&] { machine.link_kept(); }, [&] { machine.keep('k'); }};
  });
}

TEST(LogSchedules, of_files_to_which_everything_happens) {
  expect_whole_logs(cases(1500), 24, [](Machine& machine) {
    Bodies bodies;
    for (u64 actor = 0; actor < kActors; ++actor)
      bodies.emplace_back([&machine, actor] { machine.act(actor); });
    return bodies;
  });
}

}  // namespace
}  // namespace latchkey::tests
