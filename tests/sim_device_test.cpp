// The simulated device keeps its fault budget (tests/support/sim_device.h): what a crash may take
// it does take under some seed, what it may not it never takes, and the same seed does the same
// again.

#include "tests/support/sim_device.h"

#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "engine/io_buffer.h"

namespace latchkey::tests {
namespace {

using engine::Io;
using engine::IoBuffer;
using engine::kIoAlign;
using engine::Op;
using engine::OpKind;

constexpr u64 kSeeds = 300;

class SimDeviceTest : public testing::Test {
 protected:
  void make(const SimConfig& config) {
    io_.reset();
    device_ = std::make_unique<SimDevice>(config);
    io_ = device_->make_io({.buffer_bytes = kMiB}).value();
  }
  void SetUp() override { make({.size_bytes = 4 * kMiB, .seed = 3}); }

  i64 run(Op op) {
    op.done = [](Op&) {};
    io_->submit(op);
    EXPECT_EQ(io_->tick(1).value(), 1U);
    return op.result;
  }
  MutableBytes filled(u8 value, u64 size) {
    const MutableBytes data = io_->buffer().first(size);
    std::memset(data.data(), value, size);
    return data;
  }
  i64 write(u64 offset, u8 value, u64 size = kIoAlign) {
    return run({.kind = OpKind::write, .offset = offset, .data = filled(value, size)});
  }
  i64 flush() { return run({.kind = OpKind::flush}); }
  u8 at(const SimImage& image, u64 offset) const {
    std::byte value{};
    image.read(offset, {&value, 1});
    return static_cast<u8>(value);
  }
  u8 seen(u64 offset) const { return at(device_->snapshot(), offset); }

  std::unique_ptr<SimDevice> device_;
  std::unique_ptr<Io> io_;
};

TEST_F(SimDeviceTest, flushed_writes_survive_every_crash_whole) {
  ASSERT_EQ(write(0, 1, kMiB), static_cast<i64>(kMiB));
  ASSERT_EQ(flush(), 0);
  ASSERT_EQ(write(2 * kMiB, 2, kMiB), static_cast<i64>(kMiB));
  for (u64 seed = 0; seed < kSeeds; ++seed) {
    const SimImage left = device_->crash_image(seed);
    for (u64 offset = 0; offset < kMiB; offset += 512) {
      ASSERT_EQ(at(left, offset), 1) << "seed " << seed;
    }
  }
}

TEST_F(SimDeviceTest, an_unflushed_write_is_dropped_kept_or_torn_by_sectors_and_nothing_else) {
  ASSERT_EQ(write(0, 1, 2 * kIoAlign), static_cast<i64>(2 * kIoAlign));
  ASSERT_EQ(flush(), 0);
  ASSERT_EQ(write(0, 2, 2 * kIoAlign), static_cast<i64>(2 * kIoAlign));
  EXPECT_EQ(device_->unflushed(), 1U);
  std::set<u64> shapes;
  for (u64 seed = 0; seed < kSeeds; ++seed) {
    const SimImage left = device_->crash_image(seed);
    u64 shape = 0;
    for (u64 sector = 0; sector < 16; ++sector) {
      const u8 first = at(left, sector * 512);
      ASSERT_TRUE(first == 1 || first == 2) << "seed " << seed;
      ASSERT_EQ(at(left, sector * 512 + 511), first) << "a sector is whole; seed " << seed;
      shape |= u64{first == 2} << sector;
    }
    shapes.insert(shape);
  }
  EXPECT_TRUE(shapes.contains(0)) << "dropped";
  EXPECT_TRUE(shapes.contains(0xffff)) << "kept";
  EXPECT_TRUE(shapes.contains(0x00ff)) << "torn between blocks";
  EXPECT_GT(shapes.size(), 30U) << "torn in many ways";
}

TEST_F(SimDeviceTest, unflushed_writes_go_in_any_combination_and_the_same_seed_repeats) {
  for (u64 i = 0; i < 3; ++i) ASSERT_GT(write(i * kIoAlign, 9), 0);
  std::set<u64> combinations;
  for (u64 seed = 0; seed < kSeeds; ++seed) {
    const SimImage left = device_->crash_image(seed);
    EXPECT_TRUE(left == device_->crash_image(seed)) << "seed " << seed;
    u64 combination = 0;
    for (u64 i = 0; i < 3; ++i) combination |= u64{at(left, i * kIoAlign) == 9} << i;
    combinations.insert(combination);
  }
  EXPECT_EQ(combinations.size(), 8U);
}

TEST_F(SimDeviceTest, a_crash_leaves_what_its_image_said_and_the_power_is_back) {
  ASSERT_GT(write(0, 5, kMiB), 0);
  device_->vanish();
  EXPECT_TRUE(device_->power_off());
  EXPECT_EQ(run({.kind = OpKind::read, .data = io_->buffer()}), -EIO);
  const SimImage expected = device_->crash_image(17);
  device_->crash(17);
  EXPECT_FALSE(device_->power_off());
  EXPECT_TRUE(device_->snapshot() == expected);
  EXPECT_TRUE(device_->durable() == expected);
  EXPECT_EQ(device_->unflushed(), 0U);
  EXPECT_EQ(run({.kind = OpKind::read, .data = io_->buffer()}), static_cast<i64>(kMiB));
}

// A flush covers writes that were done when it was submitted: a write in flight beside it is lost
// under some seed although both answered well.
TEST_F(SimDeviceTest, a_flush_does_not_cover_a_write_that_was_in_flight_beside_it) {
  u64 lost = 0;
  for (u64 seed = 1; seed <= 40; ++seed) {
    make({.size_bytes = kMiB, .seed = seed});
    Op write_op{.kind = OpKind::write, .data = filled(7, kIoAlign), .done = [](Op&) {}};
    Op flush_op{.kind = OpKind::flush, .done = [](Op&) {}};
    io_->submit(write_op);
    io_->submit(flush_op);
    ASSERT_EQ(io_->tick(2).value(), 2U);
    ASSERT_EQ(write_op.result, static_cast<i64>(kIoAlign));
    ASSERT_EQ(flush_op.result, 0);
    EXPECT_EQ(device_->unflushed(), 1U) << "seed " << seed;
    for (u64 crash = 0; crash < 10; ++crash) {
      lost += u64{at(device_->crash_image(crash), 0) != 7};
    }
  }
  EXPECT_GT(lost, 0U);
}

TEST_F(SimDeviceTest, completions_are_shuffled_by_the_seed_and_repeat_with_it) {
  const auto order_of = [](u64 seed) {
    SimDevice device({.size_bytes = kMiB, .seed = seed});
    auto io = device.make_io({.buffer_bytes = 64 * kKiB}).value();
    std::vector<u64> order;
    std::array<Op, 16> ops;
    for (u64 i = 0; i < ops.size(); ++i) {
      ops[i] = {
          .kind = OpKind::read,
          .offset = i * kIoAlign,
          .data = io->buffer().subspan(i * kIoAlign, kIoAlign),
          .done = [](Op& op) { static_cast<std::vector<u64>*>(op.owner)->push_back(op.offset); },
          .owner = &order};
      io->submit(ops[i]);
    }
    EXPECT_EQ(io->tick(16).value(), 16U);
    return order;
  };
  EXPECT_EQ(order_of(1), order_of(1));
  EXPECT_NE(order_of(1), order_of(2));
}

// The n-th write or flush is the last to take effect.
TEST_F(SimDeviceTest, the_power_goes_after_the_nth_write_or_flush) {
  for (u64 n = 0; n <= 5; ++n) {
    make({.size_bytes = kMiB, .seed = n + 1});
    device_->cut_after(n);
    u64 good = 0;
    for (u64 i = 0; i < 3; ++i) {
      good += u64{write(i * kIoAlign, 4) > 0};
      good += u64{flush() == 0};
    }
    EXPECT_EQ(good, n);
    EXPECT_EQ(device_->counters().writes + device_->counters().flushes, n);
    EXPECT_EQ(run({.kind = OpKind::read, .data = io_->buffer()}), -EIO);
    device_->crash(n);
    for (u64 i = 0; i < n / 2; ++i) EXPECT_EQ(seen(i * kIoAlign), 4) << "flushed before the cut";
  }
}

// -EIO at a power cut does not say that nothing was written.
TEST_F(SimDeviceTest, a_write_in_flight_when_the_power_goes_may_have_reached_the_medium) {
  std::set<u8> left;
  Op op{.kind = OpKind::write, .data = filled(6, kIoAlign), .done = [](Op&) {}};
  io_->submit(op);
  device_->vanish();
  ASSERT_EQ(io_->tick(1).value(), 1U);
  EXPECT_EQ(op.result, -EIO);
  for (u64 seed = 0; seed < kSeeds; ++seed) left.insert(at(device_->crash_image(seed), 0));
  EXPECT_EQ(left, (std::set<u8>{0, 6}));

  EXPECT_EQ(write(kIoAlign, 6), -EIO);  // submitted when the power was off already
  for (u64 seed = 0; seed < kSeeds; ++seed) {
    ASSERT_EQ(at(device_->crash_image(seed), kIoAlign), 0) << "seed " << seed;
  }
}

TEST_F(SimDeviceTest, ops_from_before_a_crash_fail_and_change_nothing) {
  Op op{.kind = OpKind::write, .data = filled(6, kIoAlign), .done = [](Op&) {}};
  io_->submit(op);
  device_->crash(1);
  ASSERT_EQ(io_->tick(1).value(), 1U);
  EXPECT_EQ(op.result, -EIO);
  EXPECT_EQ(seen(0), 0);
  EXPECT_EQ(device_->unflushed(), 0U);
}

TEST_F(SimDeviceTest, an_injected_fault_hits_the_op_it_names_once_or_for_good) {
  device_->inject({.kind = OpKind::write, .after = 1});
  device_->inject({.kind = OpKind::read, .after = 0, .os_errno = ENODATA, .sticky = true});
  EXPECT_GT(write(0, 1), 0);
  EXPECT_EQ(write(0, 1), -EIO);
  EXPECT_GT(write(0, 1), 0);
  EXPECT_EQ(run({.kind = OpKind::read, .data = io_->buffer()}), -ENODATA);
  EXPECT_EQ(run({.kind = OpKind::read, .data = io_->buffer()}), -ENODATA);
  device_->clear_faults();
  EXPECT_GT(run({.kind = OpKind::read, .data = io_->buffer()}), 0);
}

TEST_F(SimDeviceTest, a_failed_write_leaves_old_new_or_torn_contents) {
  std::set<u64> new_sectors;
  for (u64 seed = 1; seed <= 60; ++seed) {
    make({.size_bytes = kMiB, .seed = seed});
    device_->inject({.kind = OpKind::write});
    ASSERT_EQ(write(0, 8), -EIO);
    u64 count = 0;
    for (u64 sector = 0; sector < 8; ++sector) count += u64{seen(sector * 512) == 8};
    new_sectors.insert(count);
  }
  EXPECT_TRUE(new_sectors.contains(0));
  EXPECT_TRUE(new_sectors.contains(8));
  EXPECT_GT(new_sectors.size(), 3U);
}

// What the page cache does after a failed fsync: the data reads back, the next fsync answers 0, and
// a crash takes it all the same.
TEST_F(SimDeviceTest, a_failed_flush_loses_writes_that_no_later_flush_saves) {
  u64 lost = 0;
  for (u64 seed = 1; seed <= 60; ++seed) {
    make({.size_bytes = kMiB, .seed = seed});
    ASSERT_GT(write(0, 8), 0);
    device_->inject({.kind = OpKind::flush});
    ASSERT_EQ(flush(), -EIO);
    ASSERT_EQ(flush(), 0);
    EXPECT_EQ(seen(0), 8);
    lost += u64{at(device_->crash_image(1), 0) == 0};
  }
  EXPECT_GT(lost, 5U);
  EXPECT_LT(lost, 40U);
}

TEST_F(SimDeviceTest, a_full_thin_device_takes_overwrites_and_refuses_new_blocks) {
  device_->limit_pages(2);
  EXPECT_GT(write(0, 1, 2 * kIoAlign), 0);
  EXPECT_EQ(write(2 * kIoAlign, 1), -ENOSPC);
  EXPECT_GT(write(0, 2), 0);
  EXPECT_EQ(run({.kind = OpKind::discard, .discard_size = kIoAlign}), 0);
  EXPECT_GT(write(2 * kIoAlign, 1), 0);
}

TEST_F(SimDeviceTest, rot_changes_exactly_what_it_names_and_survives_a_crash) {
  ASSERT_GT(write(0, 1), 0);
  ASSERT_EQ(flush(), 0);
  const SimImage before = device_->snapshot();
  device_->flip_bit(700, 3);
  EXPECT_EQ(seen(700), 1 ^ 8);
  device_->flip_bit(700, 3);
  EXPECT_TRUE(device_->snapshot() == before);
  device_->rot(1000, 100, 5);
  for (u64 offset = 990; offset < 1110; ++offset) {
    EXPECT_EQ(seen(offset) != 1, offset >= 1000 && offset < 1100) << offset;
  }
  const SimImage rotten = device_->snapshot();
  device_->crash(1);
  EXPECT_TRUE(device_->snapshot() == rotten);
}

TEST_F(SimDeviceTest, reads_of_a_bad_range_fail_and_others_do_not) {
  device_->bad_range(kIoAlign, 1);
  EXPECT_EQ(run({.kind = OpKind::read, .data = io_->buffer()}), -EIO);
  EXPECT_GT(run({.kind = OpKind::read, .data = io_->buffer().first(kIoAlign)}), 0);
}

TEST_F(SimDeviceTest, images_are_forks_that_do_not_touch_each_other) {
  ASSERT_GT(write(0, 1), 0);
  const SimImage fork = device_->snapshot();
  ASSERT_GT(write(0, 2), 0);
  EXPECT_EQ(at(fork, 0), 1);
  SimDevice other({.size_bytes = 4 * kMiB});
  other.restore(fork);
  other.flip_bit(0, 0);
  EXPECT_EQ(at(fork, 0), 1);
  EXPECT_EQ(at(other.snapshot(), 0), 0);
  EXPECT_EQ(seen(0), 2);
  device_->restore(fork);
  EXPECT_EQ(seen(0), 1);
  EXPECT_EQ(device_->unflushed(), 0U);
}

TEST_F(SimDeviceTest, load_from_replaces_everything) {
  ASSERT_GT(write(kMiB, 1), 0);
  const std::vector<std::byte> bytes(5000, std::byte{3});
  device_->load_from(bytes);
  EXPECT_EQ(seen(4999), 3);
  EXPECT_EQ(seen(5000), 0);
  EXPECT_EQ(seen(kMiB), 0);
}

TEST_F(SimDeviceTest, a_device_of_64_gib_costs_what_is_written) {
  make({.size_bytes = 64 * kGiB});
  ASSERT_GT(write(64 * kGiB - kIoAlign, 1), 0);
  ASSERT_EQ(flush(), 0);
  EXPECT_EQ(device_->snapshot().pages_in_use(), 1U);
  EXPECT_EQ(run({.kind = OpKind::discard, .discard_size = 64 * kGiB}), 0);
  EXPECT_EQ(device_->snapshot().pages_in_use(), 0U);
}

TEST_F(SimDeviceTest, a_read_only_device_and_a_refused_ring_say_so) {
  device_->refuse_io(true);
  const auto refused = device_->make_io({});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::unavailable);
  EXPECT_EQ(refused.error().os_errno, EPERM);
  make({.size_bytes = kMiB, .read_only = true});
  EXPECT_EQ(write(0, 1), -EROFS);
  EXPECT_EQ(device_->unflushed(), 0U);
}

TEST_F(SimDeviceTest, counters_and_trace_tell_what_the_device_saw) {
  make({.size_bytes = kMiB, .trace = true});
  ASSERT_GT(write(kIoAlign, 1, 2 * kIoAlign), 0);
  ASSERT_EQ(flush(), 0);
  ASSERT_GT(run({.kind = OpKind::read, .data = io_->buffer().first(kIoAlign)}), 0);
  EXPECT_EQ(device_->counters().bytes_written, 2 * kIoAlign);
  EXPECT_EQ(device_->counters().bytes_read, kIoAlign);
  const auto trace = device_->take_trace();
  ASSERT_EQ(trace.size(), 3U);
  EXPECT_EQ(trace[0].kind, OpKind::write);
  EXPECT_EQ(trace[0].offset, kIoAlign);
  EXPECT_EQ(trace[0].size, 2 * kIoAlign);
  EXPECT_EQ(trace[1].kind, OpKind::flush);
  EXPECT_EQ(trace[2].kind, OpKind::read);
  EXPECT_TRUE(device_->take_trace().empty());
}

// Writers of several threads with a flush each; whatever was flushed is there after a crash.
TEST_F(SimDeviceTest, several_threads_share_a_device) {
  std::vector<std::thread> threads;
  for (u64 which = 0; which < 4; ++which) {
    threads.emplace_back([this, which] {
      auto io = device_->make_io({.buffer_bytes = kIoAlign}).value();
      for (u64 i = 0; i < 100; ++i) {
        std::memset(io->buffer().data(), static_cast<int>(which + 1), kIoAlign);
        EXPECT_TRUE(engine::write_sync(*io, (which * 100 + i) * kIoAlign, io->buffer()));
        EXPECT_TRUE(engine::flush_sync(*io));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  device_->crash(9);
  for (u64 block = 0; block < 400; ++block) EXPECT_EQ(seen(block * kIoAlign), block / 100 + 1);
}

TEST_F(SimDeviceTest, a_lost_write_is_acknowledged_and_never_there) {
  EXPECT_EQ(write(0, 1), i64{kIoAlign});
  device_->inject({.kind = OpKind::write, .mishap = SimMishap::lost});
  EXPECT_EQ(write(0, 2), i64{kIoAlign});
  EXPECT_EQ(seen(0), 1);
  EXPECT_EQ(device_->faults_met(), 1U);
  EXPECT_EQ(write(0, 3), i64{kIoAlign});
  EXPECT_EQ(seen(0), 3);
}

TEST_F(SimDeviceTest, a_misplaced_write_leaves_both_places_wrong) {
  EXPECT_EQ(write(kIoAlign, 1), i64{kIoAlign});
  device_->inject({.kind = OpKind::write, .mishap = SimMishap::misplaced});
  EXPECT_EQ(write(kIoAlign, 2), i64{kIoAlign});
  u64 there = 0;
  for (u64 offset = 0; offset < 4 * kMiB; offset += kIoAlign) there += seen(offset) == 2 ? 1 : 0;
  EXPECT_EQ(there, 1U);
  EXPECT_EQ(seen(kIoAlign), 1);  // under this seed it lands elsewhere
}

TEST_F(SimDeviceTest, a_stale_read_shows_what_was_there_before_the_last_flush) {
  EXPECT_EQ(write(0, 1), i64{kIoAlign});
  EXPECT_EQ(flush(), 0);
  EXPECT_EQ(write(0, 2), i64{kIoAlign});
  EXPECT_EQ(flush(), 0);
  device_->inject({.kind = OpKind::read, .mishap = SimMishap::stale});
  const auto read = [&] {
    EXPECT_EQ(run({.kind = OpKind::read, .data = filled(9, kIoAlign)}), i64{kIoAlign});
    return static_cast<u8>(io_->buffer()[0]);
  };
  EXPECT_EQ(read(), 1);
  EXPECT_EQ(read(), 2);
}

// A clock that goes where a sleeper wants it.
class TestClock final : public SimClock {
 public:
  u64 now_ns() override { return now_; }
  void sleep(std::atomic<u32>&, u32, u64 ns) override { now_ = std::max(now_, ns); }

 private:
  u64 now_ = 0;
};

TEST_F(SimDeviceTest, with_a_clock_each_op_takes_its_time) {
  TestClock clock;
  make({.size_bytes = 4 * kMiB,
        .seed = 3,
        .clock = &clock,
        .latency = {.least_ns = 1000, .most_ns = 2000, .flush_ns = 50'000}});
  EXPECT_EQ(write(0, 1), i64{kIoAlign});
  const u64 written = clock.now_ns();
  EXPECT_GE(written, 1000U);
  EXPECT_EQ(flush(), 0);
  EXPECT_GE(clock.now_ns(), written + 51'000);

  const u64 before = clock.now_ns();
  device_->inject({.kind = OpKind::write, .mishap = SimMishap::slow, .slow_ns = 1'000'000'000});
  EXPECT_EQ(write(0, 2), i64{kIoAlign});
  EXPECT_GE(clock.now_ns(), before + 1'000'000'000);

  // What is under way when the power goes answers at once.
  Op op{.kind = OpKind::write, .data = filled(3, kIoAlign), .done = [](Op&) {}};
  device_->inject({.kind = OpKind::write, .mishap = SimMishap::slow, .slow_ns = 1'000'000'000});
  io_->submit(op);
  EXPECT_EQ(io_->tick(0).value(), 0U);
  device_->vanish();
  const u64 gone = clock.now_ns();
  EXPECT_EQ(io_->tick(1).value(), 1U);
  EXPECT_EQ(op.result, -EIO);
  EXPECT_EQ(clock.now_ns(), gone);
}

}  // namespace
}  // namespace latchkey::tests
