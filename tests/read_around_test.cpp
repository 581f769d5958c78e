// Goal: small reads near each other cost one read of the device for many, and no window is older
// than an extent that can be looked up (engine/read_around.h, A1). Method: the object by itself, in
// the orders that matter and by threads at once; a store, whose inserts must end windows; and files
// of a volume, whose device counts what it is asked for and is damaged.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>

#include "base/thread.h"
#include "engine/read_around.h"
#include "tests/support/hook_device.h"
#include "tests/support/store_fixture.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using engine::BlockRun;
using engine::ReadAround;

constexpr u64 kWindow = ReadAround::kWindowBlocks;
constexpr u64 kBlocks = 100 * kWindow + 7;  // the last window is not whole

std::vector<std::byte> filled(u8 with) {
  return std::vector<std::byte>(ReadAround::kWindowBytes, std::byte{with});
}

class ReadAroundTest : public testing::Test {
 protected:
  // As a reader does. 0: out of nothing; else what it found.
  u8 read(BlockRun run) {
    const auto found = around_.find(run);
    if (found) {
      EXPECT_EQ(found->bytes.size(), run.count * engine::kBlockBytes);
      return static_cast<u8>(found->bytes.front());
    }
    loaded_ = around_.load(run);
    return 0;
  }
  // Two reads near by, so that the next one loads.
  void begin_near(u64 window) {
    read({window * kWindow, 1});
    EXPECT_FALSE(loaded_);
    read({window * kWindow + 1, 1});
    EXPECT_FALSE(loaded_);
  }
  void load(u64 window, u8 with) {
    begin_near(window);
    read({window * kWindow + 2, 1});
    ASSERT_TRUE(loaded_);
    loaded_->keep(filled(with));
    loaded_.reset();
  }

  ReadAround around_{kBlocks};
  std::optional<ReadAround::Load> loaded_;
};

TEST_F(ReadAroundTest, the_third_read_near_by_reads_the_window) {
  begin_near(10);
  read({10 * kWindow + 9, 3});
  ASSERT_TRUE(loaded_);
  EXPECT_EQ(loaded_->window(), (BlockRun{10 * kWindow, kWindow}));
  loaded_->keep(filled(5));
  EXPECT_EQ(read({10 * kWindow, 1}), 5);
  EXPECT_EQ(read({11 * kWindow - 16, 16}), 5);
  EXPECT_EQ(read({11 * kWindow, 1}), 0);  // the next window is near at once
  ASSERT_TRUE(loaded_);
  EXPECT_EQ(loaded_->window().block, 11 * kWindow);
}

TEST_F(ReadAroundTest, what_is_found_is_what_lies_there) {
  begin_near(3);
  read({3 * kWindow + 2, 1});
  ASSERT_TRUE(loaded_);
  auto bytes = filled(0);
  for (u64 block = 0; block < kWindow; ++block)
    std::memset(&bytes[block * engine::kBlockBytes], static_cast<int>(block + 1),
                engine::kBlockBytes);
  loaded_->keep(bytes);
  for (u64 block = 0; block < kWindow; ++block)
    EXPECT_EQ(read({3 * kWindow + block, 1}), block + 1);
}

TEST_F(ReadAroundTest, reads_far_from_each_other_read_no_window) {
  for (u64 turn = 0; turn < 3; ++turn)
    for (u64 window = 0; window < 100; window += 2) {
      EXPECT_EQ(read({window * kWindow + turn, 1}), 0);
      EXPECT_FALSE(loaded_) << window;
    }
}

TEST_F(ReadAroundTest, much_at_once_a_border_and_the_devices_end_are_left_alone) {
  for (u64 i = 0; i < 8; ++i) {
    read({20 * kWindow, ReadAround::kSmallBlocks + 1});
    EXPECT_FALSE(loaded_);
    read({21 * kWindow - 1, 2});
    EXPECT_FALSE(loaded_);
    read({100 * kWindow + i % 7, 1});
    EXPECT_FALSE(loaded_);
  }
}

TEST_F(ReadAroundTest, an_insert_ends_the_windows_that_it_touches) {
  for (u64 window = 0; window < 4; ++window) load(window * 10, static_cast<u8>(window + 1));
  around_.forget({10 * kWindow - 1, 2});
  around_.forget({31 * kWindow, 40});
  EXPECT_EQ(read({0, 1}), 1);
  EXPECT_EQ(read({10 * kWindow, 1}), 0);
  EXPECT_EQ(read({20 * kWindow, 1}), 3);
  EXPECT_EQ(read({30 * kWindow, 1}), 4);
}

TEST_F(ReadAroundTest, an_insert_ends_a_window_on_its_way) {
  begin_near(10);
  read({10 * kWindow + 2, 1});
  ASSERT_TRUE(loaded_);
  around_.forget({10 * kWindow + 30, 1});
  loaded_->keep(filled(5));
  EXPECT_EQ(read({10 * kWindow, 1}), 0);
}

// The one that comes first is not the one that is good.
TEST_F(ReadAroundTest, a_load_that_ended_is_not_taken_for_the_next_one) {
  begin_near(10);
  read({10 * kWindow + 2, 1});
  ASSERT_TRUE(loaded_);
  ReadAround::Load older = std::move(*loaded_);
  around_.forget({10 * kWindow, 1});
  read({10 * kWindow + 2, 1});
  ASSERT_TRUE(loaded_);
  older.keep(filled(5));
  EXPECT_EQ(around_.find({10 * kWindow, 1}), std::nullopt);
  loaded_->keep(filled(6));
  EXPECT_EQ(read({10 * kWindow, 1}), 6);
}

TEST_F(ReadAroundTest, one_load_of_a_window_at_a_time_and_one_given_up_is_forgotten) {
  begin_near(10);
  read({10 * kWindow + 2, 1});
  ASSERT_TRUE(loaded_);
  EXPECT_FALSE(around_.load({10 * kWindow + 3, 1}));
  loaded_.reset();
  EXPECT_TRUE(around_.load({10 * kWindow + 3, 1}));
}

TEST_F(ReadAroundTest, what_cannot_be_read_is_not_asked_for_again) {
  begin_near(10);
  read({10 * kWindow + 2, 1});
  ASSERT_TRUE(loaded_);
  loaded_->refuse();
  loaded_.reset();
  EXPECT_FALSE(around_.load({10 * kWindow + 3, 1}));
}

TEST_F(ReadAroundTest, memory_is_bounded_and_outlives_its_window) {
  load(0, 1);
  const auto held = around_.find({0, 1});
  ASSERT_TRUE(held);
  for (u64 window = 10; window < 90; window += 10) load(window, 9);
  EXPECT_EQ(read({0, 1}), 0);
  EXPECT_EQ(held->bytes.front(), std::byte{1});
}

// Blocks that count how often they were written: what is found has what was inserted before.
TEST(ReadAroundThreads, nothing_older_than_an_insert_is_found) {
  constexpr u64 kUsed = 12 * kWindow;
  ReadAround around(kUsed);
  std::vector<std::atomic<u32>> device(kUsed), inserted(kUsed);
  std::atomic<u64> found_some{0};
  std::atomic<bool> done{false};
  const auto reader = [&](u64 seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> bytes(ReadAround::kWindowBytes);
    while (!done) {
      const u64 block = random() % kUsed;
      const u32 least = inserted[block];
      if (const auto found = around.find({block, 1})) {
        u32 version = 0;
        std::memcpy(&version, found->bytes.data(), sizeof version);
        ASSERT_GE(version, least) << "block " << block;
        ++found_some;
      } else if (auto load = around.load({block, 1})) {
        for (u64 i = 0; i < kWindow; ++i) {
          const u32 version = device[load->window().block + i];
          std::memcpy(&bytes[i * engine::kBlockBytes], &version, sizeof version);
        }
        load->keep(bytes);
      }
    }
  };
  std::vector<Thread> threads;
  threads.reserve(3);
  for (u64 seed = 0; seed < 3; ++seed) threads.emplace_back([&, seed] { reader(seed); });
  std::mt19937_64 random(99);
  for (u32 version = 1; version < 20'000 || found_some < 1000; ++version) {
    const u64 block = random() % kUsed;
    device[block] = version;
    around.forget({block, 1});
    inserted[block] = version;
    if (version % 8 == 0) std::this_thread::yield();
  }
  done = true;
  for (Thread& thread : threads) thread.join();
}

class ReadAroundStore : public StoreTest {};

TEST_F(ReadAroundStore, an_extent_that_is_inserted_ends_its_window) {
  make(64 * kMiB, 4096);
  std::vector<BlockRun> runs;
  ASSERT_TRUE(add_extents(1, runs));
  const u64 window = runs[0].block / kWindow;
  ReadAround& around = store_->read_around();
  const BlockRun in_it{window * kWindow, 1};
  EXPECT_FALSE(around.load(in_it));
  EXPECT_FALSE(around.load(in_it));
  auto load = around.load(in_it);
  ASSERT_TRUE(load);
  load->keep(filled(1));
  ASSERT_TRUE(around.find(in_it));
  while (runs.back().end() % kWindow == 0 || runs.back().block / kWindow != window)
    ASSERT_TRUE(add_extents(1, runs));
  ASSERT_TRUE(add_extents(1, runs));
  EXPECT_FALSE(around.find(in_it));
}

class ReadAroundFiles : public VolumeTest {
 protected:
  static constexpr int kFiles = 64;
  static std::string path(int i) { return "/vault/" + std::to_string(i); }
  static std::string text(int i) { return std::string(4000, static_cast<char>('A' + i % 50)); }
  void make_files() {
    const crypto::KeyId id = vault();
    for (int i = 0; i < kFiles; ++i) put(path(i), text(i));
    ASSERT_TRUE(volume_->sync());
    const volume::HandleId file = open(path(20), {});
    const auto rows = volume_->map(file);
    ASSERT_TRUE(rows);
    at_ = (*rows)[0].device_offset;
    close(file);
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    auto opened = volume::Volume::open(hooked_, options_, system_env());
    ASSERT_TRUE(opened);
    volume_ = std::move(*opened);
    ASSERT_EQ(add_key(), id);
    hooked_.hook = [this](const engine::Op& op) {
      if (op.kind != engine::OpKind::read) return;
      blocks_ += op.data.size() == engine::kBlockBytes ? 1 : 0;
      windows_ += op.data.size() == ReadAround::kWindowBytes ? 1 : 0;
    };
  }

  HookDevice hooked_{device_};
  u64 at_ = 0;  // of file 20, on the device
  int blocks_ = 0, windows_ = 0;
};

TEST_F(ReadAroundFiles, small_files_come_together) {
  make_files();
  for (int i = 0; i < kFiles; ++i) ASSERT_EQ(content(path(i)), text(i));
  EXPECT_LE(blocks_, 6);  // before a window was near
  EXPECT_LE(windows_, 3);
  EXPECT_GE(windows_, 2);
}

TEST_F(ReadAroundFiles, a_damaged_neighbour_is_its_own_affair) {
  make_files();
  device_.flip_bit(at_ + 100, 3);
  for (int i = 0; i < kFiles; ++i) {
    if (i == 20) {
      const volume::HandleId file = open(path(i), {});
      EXPECT_EQ(read_error(file), Errc::damaged);
      close(file);
    } else {
      ASSERT_EQ(content(path(i)), text(i));
    }
  }
  EXPECT_LE(windows_, 3);
  device_.flip_bit(at_ + 100, 3);
}

TEST_F(ReadAroundFiles, a_neighbour_that_cannot_be_read_costs_one_window) {
  make_files();
  device_.bad_range(at_, 512);
  for (int i = 0; i < kFiles; ++i) {
    if (i == 20) {
      const volume::HandleId file = open(path(i), {});
      EXPECT_EQ(read_error(file), Errc::io);
      close(file);
    } else {
      ASSERT_EQ(content(path(i)), text(i));
    }
  }
  EXPECT_LE(windows_, 3);
  device_.clear_faults();
}

// Memory had it as it was; the device has had it otherwise since.
TEST_F(ReadAroundFiles, what_memory_has_wrong_is_read_from_the_device) {
  make_files();
  device_.flip_bit(at_ + 100, 3);
  for (int i = 0; i < 20; ++i) ASSERT_EQ(content(path(i)), text(i));
  device_.flip_bit(at_ + 100, 3);
  EXPECT_EQ(content(path(20)), text(20));
  EXPECT_GE(windows_, 1);
}

TEST_F(ReadAroundFiles, files_that_are_written_anew_are_read_as_they_are) {
  make_files();
  std::mt19937_64 random(5);
  std::map<int, std::string> now;
  for (int i = 0; i < kFiles; ++i) now[i] = text(i);
  for (int step = 0; step < 3000; ++step) {
    const int i = static_cast<int>(random() % kFiles);
    if (random() % 4 != 0) {
      ASSERT_EQ(content(path(i)), now[i]) << step;
      continue;
    }
    now[i] = std::string(4000, static_cast<char>('A' + random() % 50));
    put(path(i), now[i]);
    if (random() % 2 != 0) {
      ASSERT_TRUE(volume_->sync());
    }
  }
  EXPECT_GT(windows_, 10);
}

}  // namespace
}  // namespace latchkey::tests
