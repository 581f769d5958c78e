// Goal: under threads nothing that was acknowledged is lost, no key is kept by a race, and memory
// stays bounded. Method: fstests generic/595 (a key added and removed in a loop against
// open-append-close writers), opens against unlinks, and one counter file appended to by everybody.
// Real threads on a SimDevice; every check also after reopening from the device.

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;

class VolumeThreads : public VolumeTest {
 protected:
  static bool before(u64 end) { return system_env().monotonic_ns() < end; }
  static u64 in_ms(u64 ms) { return system_env().monotonic_ns() + ms * 1'000'000; }

  // Removes and adds the key until `stop`.
  std::thread remover(const crypto::KeyId& id, std::atomic<bool>& stop) {
    return std::thread([this, id, &stop] {
      while (!stop) {
        (void)volume_->remove_key(kUser, id, keymgr::RemovalMode::soft);
        (void)volume_->add_key(kUser, master_key(7));
        // The door is open for a moment, else nobody ever gets in.
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    });
  }
};

TEST_F(VolumeThreads, every_accepted_byte_survives_keys_that_come_and_go) {
  const crypto::KeyId id = vault();
  put("/vault/log", "");
  const auto directory = resolve(*volume_, "/vault");
  std::atomic<bool> stop{false};
  std::atomic<u64> accepted{0}, wrong{0};
  std::thread remove_and_add = remover(id, stop);
  const u64 end = in_ms(1500);
  std::vector<std::thread> writers;
  for (int i = 0; i < 3; ++i)
    writers.emplace_back([&] {
      while (before(end)) {
        auto handle = volume_->open_file(kUser, *directory, "log", {.write = true}, 0, "log");
        if (!handle) {
          if (handle.error().code != Errc::no_key) ++wrong;
          continue;
        }
        const bool wrote = volume_->append(*handle, bytes_of("X")).has_value();
        const bool closed = volume_->close_handle(*handle).has_value();
        if (wrote && closed)
          ++accepted;
        else
          ++wrong;
      }
    });
  for (std::thread& writer : writers) writer.join();
  stop = true;
  remove_and_add.join();
  EXPECT_EQ(wrong, 0U);
  add_key();
  EXPECT_TRUE(content("/vault/log") == std::string(accepted, 'X'));
  // Nobody is inside: no race has left a lease behind.
  EXPECT_EQ(remove(id).state, KeyState::absent);
  reopen();
  add_key();
  EXPECT_TRUE(content("/vault/log") == std::string(accepted, 'X'));
  EXPECT_GT(accepted, 30U);
}

TEST_F(VolumeThreads, opens_race_with_unlinks_and_creates_of_one_name) {
  vault();
  const auto directory = resolve(*volume_, "/vault");
  std::atomic<u64> wrong{0}, opened{0}, unlinked{0};
  const u64 end = in_ms(800);
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i)
    threads.emplace_back([&] {
      while (before(end)) {
        auto handle = volume_->open_file(kUser, *directory, "name", {.write = true, .create = true},
                                         0600, "name");
        if (!handle) {
          ++wrong;
          continue;
        }
        ++opened;
        std::byte byte{};
        if (!volume_->append(*handle, bytes_of("y"))) ++wrong;
        if (auto read = volume_->read(*handle, 0, {&byte, 1}); !read || *read != 1) ++wrong;
        if (!volume_->close_handle(*handle)) ++wrong;
      }
    });
  threads.emplace_back([&] {
    while (before(end)) {
      const auto gone = volume_->unlink(*directory, "name");
      if (gone)
        ++unlinked;
      else if (gone.error().code != Errc::not_found)
        ++wrong;
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_GT(opened, 100U);
  EXPECT_GT(unlinked, 10U);
  // The offline check of TearDown finds no inode without a name and no orphan's blocks.
}

TEST_F(VolumeThreads, two_last_closes_at_once_leave_no_key_behind) {
  const crypto::KeyId id = vault();
  for (int round = 0; round < 150; ++round) {
    const HandleId a = open("/vault/x"), b = open("/vault/x");
    append(a, "z");
    remove(id);
    std::thread other([&] { close(a); });
    close(b);
    other.join();
    ASSERT_EQ(state(id), KeyState::absent) << "round " << round;
    add_key();
  }
  EXPECT_TRUE(content("/vault/x") == std::string(150, 'z'));
}

TEST_F(VolumeThreads, dirty_memory_stays_within_its_limit_and_writers_only_wait) {
  options_.dirty_bytes_max = 4 * kMiB;
  reopen();
  vault();
  std::atomic<bool> stop{false};
  std::atomic<u64> most{0};
  std::thread watcher([&] {
    while (!stop) {
      const u64 now = volume_->facts().dirty_bytes;
      if (now > most) most = now;
    }
  });
  std::vector<std::thread> writers;
  for (const char* path : {"/vault/a", "/b", "/vault/c"})
    writers.emplace_back([this, path] {
      const std::string piece(300000, path[1]);
      const HandleId handle = open(path);
      for (int i = 0; i < 60; ++i) append(handle, piece);
      close(handle);
    });
  for (std::thread& writer : writers) writer.join();
  stop = true;
  watcher.join();
  EXPECT_LE(most, 4 * kMiB);
  EXPECT_GT(most, kMiB);
  EXPECT_TRUE(content("/vault/a") == std::string(18000000, 'v'));
  EXPECT_TRUE(content("/b") == std::string(18000000, 'b'));
}

}  // namespace
}  // namespace latchkey::tests
