// The Io contract, one suite for every implementation: UringIo over files on a disk and on tmpfs,
// direct, buffered, and tied to one thread; SimIo with its shuffled completions. What it promises
// (engine/io.h) is tried by counting done() and comparing what reads bring back.

#include "engine/io.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/file_device.h"
#include "engine/io_buffer.h"
#include "tests/support/sim_device.h"
#include "tests/support/temp_file.h"

namespace latchkey::tests {
namespace {

using engine::Device;
using engine::Io;
using engine::IoBuffer;
using engine::IoOptions;
using engine::kIoAlign;
using engine::Op;
using engine::OpKind;

constexpr u64 kDeviceBytes = 16 * kMiB;

enum class Backend : u8 { uring_disk, uring_memory, uring_buffered, uring_one_thread, simulated };

IoBuffer make_buffer(u64 size) { return IoBuffer::create(size).value(); }

void fill(MutableBytes bytes, u64 seed) {
  std::mt19937_64 random(seed);
  for (std::size_t at = 0; at + 8 <= bytes.size(); at += 8) {
    const u64 value = random();
    std::memcpy(bytes.data() + at, &value, 8);
  }
}

bool same(Bytes a, Bytes b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

class IoContract : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (GetParam() == Backend::simulated) {
      device_ = std::make_unique<SimDevice>(SimConfig{.size_bytes = kDeviceBytes, .seed = 7});
    } else {
      const bool memory = GetParam() == Backend::uring_memory;
      const std::string parent = memory ? TempFolder::memory_folder() : TempFolder::disk_folder();
      if (!std::filesystem::is_directory(parent)) GTEST_SKIP() << "no folder " << parent;
      folder_ = std::make_unique<TempFolder>(parent);
      auto opened = engine::open_device(
          folder_->file("device"),
          {.create_size = kDeviceBytes, .buffered = GetParam() == Backend::uring_buffered});
      ASSERT_TRUE(opened) << opened.error().what;
      device_ = std::move(*opened);
    }
    auto io = device_->make_io(options());
    if (!io && io.error().code == Errc::unavailable) {
      GTEST_SKIP() << io.error().what << ", errno " << io.error().os_errno;
    }
    ASSERT_TRUE(io) << io.error().what;
    io_ = std::move(*io);
  }

  static IoOptions options() {
    return {.queue_depth = 8,
            .buffer_bytes = kMiB,
            .single_thread = GetParam() == Backend::uring_one_thread};
  }

  void drain() {
    while (io_->pending() != 0) ASSERT_TRUE(io_->tick(io_->pending()));
  }
  i64 run(Op op) {
    op.done = [](Op&) {};
    io_->submit(op);
    drain();
    return op.result;
  }

  std::unique_ptr<TempFolder> folder_;  // before the device: closed first, then removed
  std::unique_ptr<Device> device_;
  std::unique_ptr<Io> io_;
};

TEST_P(IoContract, device_says_what_it_is) {
  EXPECT_EQ(device_->info().size_bytes, kDeviceBytes);
  EXPECT_FALSE(device_->info().read_only);
  EXPECT_EQ(device_->info().kind, GetParam() == Backend::simulated ? "simulated" : "file");
  if (GetParam() == Backend::uring_buffered) {
    EXPECT_FALSE(device_->info().direct);
  }
}

TEST_P(IoContract, buffer_is_aligned_and_of_the_size_asked_for) {
  EXPECT_EQ(io_->buffer().size(), kMiB);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(io_->buffer().data()) % kIoAlign, 0U);
}

TEST_P(IoContract, what_was_written_is_read_back_from_registered_and_from_other_memory) {
  const IoBuffer other = make_buffer(3 * kMiB);
  for (const u64 size : {kIoAlign, 128 * kKiB, kMiB}) {
    const MutableBytes registered = io_->buffer().first(size);
    const MutableBytes plain = other.bytes().first(size);
    fill(registered, size);
    ASSERT_TRUE(engine::write_sync(*io_, 2 * kMiB, registered));
    ASSERT_TRUE(engine::flush_sync(*io_));
    ASSERT_TRUE(engine::read_sync(*io_, 2 * kMiB, plain));
    EXPECT_TRUE(same(registered, plain));
    fill(plain, size + 1);
    ASSERT_TRUE(engine::write_sync(*io_, kDeviceBytes - size, plain));
    ASSERT_TRUE(engine::read_sync(*io_, kDeviceBytes - size, registered));
    EXPECT_TRUE(same(registered, plain));
  }
  // 3 MiB begins inside the registered memory nowhere and is still one op.
  fill(other.bytes(), 3);
  const IoBuffer back = make_buffer(3 * kMiB);
  ASSERT_TRUE(engine::write_sync(*io_, kIoAlign, other.bytes()));
  ASSERT_TRUE(engine::read_sync(*io_, kIoAlign, back.bytes()));
  EXPECT_TRUE(same(other.bytes(), back.bytes()));
}

TEST_P(IoContract, unwritten_parts_read_as_zeros) {
  fill(io_->buffer(), 1);
  ASSERT_TRUE(engine::read_sync(*io_, 0, io_->buffer()));
  EXPECT_TRUE(std::ranges::all_of(io_->buffer(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_P(IoContract, result_is_the_size_or_zero_for_flush_and_empty_transfers) {
  EXPECT_EQ(run({.kind = OpKind::write, .data = io_->buffer()}), static_cast<i64>(kMiB));
  EXPECT_EQ(run({.kind = OpKind::read, .data = io_->buffer()}), static_cast<i64>(kMiB));
  EXPECT_EQ(run({.kind = OpKind::flush}), 0);
  EXPECT_EQ(run({.kind = OpKind::read}), 0);
}

TEST_P(IoContract, a_thousand_ops_pass_a_queue_of_eight) {
  constexpr u64 kOps = 1000;
  const IoBuffer memory = make_buffer(kOps * kIoAlign);
  fill(memory.bytes(), 11);
  std::vector<Op> ops(kOps);
  u64 finished = 0;
  for (const OpKind kind : {OpKind::write, OpKind::read}) {
    const IoBuffer back = make_buffer(kOps * kIoAlign);
    finished = 0;
    for (u64 i = 0; i < kOps; ++i) {
      const MutableBytes all = kind == OpKind::write ? memory.bytes() : back.bytes();
      ops[i] = {.kind = kind,
                .offset = i * kIoAlign,
                .data = all.subspan(i * kIoAlign, kIoAlign),
                .done = [](Op& op) { ++*static_cast<u64*>(op.owner); },
                .owner = &finished};
      io_->submit(ops[i]);
    }
    EXPECT_EQ(finished, 0U) << "submit() never calls done()";
    EXPECT_EQ(io_->pending(), kOps);
    const auto ran = io_->tick(kOps);
    ASSERT_TRUE(ran);
    EXPECT_EQ(*ran, kOps);
    EXPECT_EQ(finished, kOps);
    EXPECT_EQ(io_->pending(), 0U);
    for (const Op& op : ops) ASSERT_EQ(op.result, static_cast<i64>(kIoAlign));
    if (kind == OpKind::read) {
      EXPECT_TRUE(same(memory.bytes(), back.bytes()));
    }
  }
}

TEST_P(IoContract, tick_runs_at_least_what_is_waited_for_and_returns_when_nothing_is_pending) {
  EXPECT_EQ(io_->tick(0).value(), 0U);
  EXPECT_EQ(io_->tick(5).value(), 0U);
  std::vector<Op> ops(6);
  for (u64 i = 0; i < ops.size(); ++i) {
    ops[i] = {.kind = OpKind::read,
              .offset = i * kIoAlign,
              .data = io_->buffer().subspan(i * kIoAlign, kIoAlign),
              .done = [](Op&) {}};
    io_->submit(ops[i]);
  }
  const u32 ran = io_->tick(2).value();
  EXPECT_GE(ran, 2U);
  EXPECT_EQ(io_->pending(), 6 - ran);
  EXPECT_EQ(io_->tick(100).value(), 6 - ran);
}

TEST_P(IoContract, tick_without_waiting_gets_there_too) {
  Op op{.kind = OpKind::write, .data = io_->buffer(), .done = [](Op&) {}};
  io_->submit(op);
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (io_->pending() != 0 && std::chrono::steady_clock::now() < limit) {
    ASSERT_TRUE(io_->tick(0));
  }
  EXPECT_EQ(io_->pending(), 0U);
  drain();
}

// Each done() submits the next: as recursion 200,000 of them would overflow the stack.
TEST_P(IoContract, ops_submitted_by_done_do_not_recurse) {
  struct Chain {
    Io* io;
    u64 left;
    u64 depth = 0;
    u64 depth_max = 0;
  } chain{io_.get(), GetParam() == Backend::simulated ? 200'000U : 2'000U};
  Op op{.kind = OpKind::read, .data = io_->buffer().first(kIoAlign), .owner = &chain};
  op.done = [](Op& self) {
    auto& mine = *static_cast<Chain*>(self.owner);
    mine.depth_max = std::max(mine.depth_max, ++mine.depth);
    if (self.result == static_cast<i64>(kIoAlign) && --mine.left != 0) mine.io->submit(self);
    --mine.depth;
  };
  io_->submit(op);
  drain();
  EXPECT_EQ(chain.left, 0U);
  EXPECT_EQ(chain.depth_max, 1U);
}

TEST_P(IoContract, an_op_may_be_freed_by_its_done) {
  u64 finished = 0;
  for (u64 i = 0; i < 100; ++i) {
    auto* op = new Op{.kind = i % 3 == 0 ? OpKind::flush : OpKind::read,
                      .data = io_->buffer().first(kIoAlign),
                      .owner = &finished};
    op->done = [](Op& self) {
      ++*static_cast<u64*>(self.owner);
      delete &self;
    };
    io_->submit(*op);
  }
  drain();
  EXPECT_EQ(finished, 100U);
}

TEST_P(IoContract, past_the_end_is_eio_and_leaves_the_device_as_it_was) {
  const MutableBytes two = io_->buffer().first(2 * kIoAlign);
  for (const OpKind kind : {OpKind::read, OpKind::write}) {
    EXPECT_EQ(run({.kind = kind, .offset = kDeviceBytes, .data = two}), -EIO);
    EXPECT_EQ(run({.kind = kind, .offset = kDeviceBytes - kIoAlign, .data = two}), -EIO);
    EXPECT_EQ(run({.kind = kind, .offset = ~u64{0} - kIoAlign + 1, .data = two}), -EIO);
  }
  EXPECT_EQ(run({.kind = OpKind::discard, .offset = kDeviceBytes, .discard_size = kIoAlign}), -EIO);
  EXPECT_EQ(run({.kind = OpKind::read, .offset = kDeviceBytes - 2 * kIoAlign, .data = two}),
            static_cast<i64>(two.size()));
  if (folder_) {
    EXPECT_EQ(std::filesystem::file_size(folder_->file("device")), kDeviceBytes);
  }
}

TEST_P(IoContract, a_failed_op_becomes_an_error_with_errno_and_place) {
  const auto failed = engine::read_sync(*io_, kDeviceBytes, io_->buffer());
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Errc::io);
  EXPECT_EQ(failed.error().os_errno, EIO);
  EXPECT_EQ(failed.error().at, kDeviceBytes);
}

TEST_P(IoContract, a_discarded_range_reads_as_zeros) {
  if (!device_->info().discard) GTEST_SKIP() << "the device has no discard";
  fill(io_->buffer(), 5);
  ASSERT_TRUE(engine::write_sync(*io_, 0, io_->buffer()));
  const std::byte first = io_->buffer()[0];
  EXPECT_EQ(run({.kind = OpKind::discard, .offset = kIoAlign, .discard_size = 8 * kIoAlign}), 0);
  ASSERT_TRUE(engine::read_sync(*io_, 0, io_->buffer()));
  EXPECT_EQ(io_->buffer()[0], first);
  EXPECT_TRUE(std::ranges::all_of(io_->buffer().subspan(kIoAlign, 8 * kIoAlign),
                                  [](std::byte b) { return b == std::byte{0}; }));
  EXPECT_FALSE(std::ranges::all_of(io_->buffer().subspan(9 * kIoAlign, kIoAlign),
                                   [](std::byte b) { return b == std::byte{0}; }));
}

TEST_P(IoContract, unaligned_ops_stop_the_process) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const MutableBytes data = io_->buffer();
  EXPECT_DEATH(run({.kind = OpKind::read, .offset = 512, .data = data}), "offset");
  EXPECT_DEATH(run({.kind = OpKind::read, .data = data.first(4095)}), "size");
  EXPECT_DEATH(run({.kind = OpKind::write, .data = data.subspan(8, kIoAlign)}), "memory");
  EXPECT_DEATH(run({.kind = OpKind::discard, .discard_size = 1}), "size");
}

TEST_P(IoContract, ticking_inside_done_stops_the_process) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Op op{.kind = OpKind::flush,
        .done = [](Op& self) { (void)static_cast<Io*>(self.owner)->tick(0); }};
  op.owner = io_.get();
  const auto tick_inside_done = [&] {
    io_->submit(op);
    drain();
  };
  EXPECT_DEATH(tick_inside_done(), "tick");
}

// Each thread has an Io and a half of the device; nothing of one shows in the other.
TEST_P(IoContract, two_ios_work_on_two_threads) {
  constexpr u64 kHalf = kDeviceBytes / 2;
  std::atomic<u32> failures{0};
  const auto work = [&](u64 which) {
    auto io = device_->make_io(options());
    if (!io) {
      ++failures;
      return;
    }
    const IoBuffer back = make_buffer(64 * kKiB);
    const MutableBytes data = (*io)->buffer().first(64 * kKiB);
    for (u64 round = 0; round < 50; ++round) {
      const u64 offset = which * kHalf + round * 64 * kKiB;
      fill(data, which * 1000 + round);
      const bool good = engine::write_sync(**io, offset, data).has_value() &&
                        (round % 10 != 0 || engine::flush_sync(**io).has_value()) &&
                        engine::read_sync(**io, offset, back.bytes()).has_value();
      if (!good || !same(data, back.bytes())) ++failures;
    }
  };
  std::thread first(work, 0);
  std::thread second(work, 1);
  first.join();
  second.join();
  EXPECT_EQ(failures, 0U);
}

// With single_thread too: the ring's thread is that of the first tick(), not the maker's.
TEST_P(IoContract, an_io_made_here_may_be_used_there) {
  bool good = false;
  std::thread other([&] {
    good = engine::write_sync(*io_, 0, io_->buffer()).has_value() &&
           engine::flush_sync(*io_).has_value();
  });
  other.join();
  EXPECT_TRUE(good);
}

TEST_P(IoContract, an_io_is_lent_from_thread_to_thread) {
  if (GetParam() == Backend::uring_one_thread) GTEST_SKIP() << "this one is tied to its thread";
  const IoBuffer back = make_buffer(kIoAlign);
  for (u64 turn = 0; turn < 20; ++turn) {
    bool good = false;
    std::thread borrower([&] {
      const MutableBytes data = io_->buffer().first(kIoAlign);
      fill(data, turn);
      good = engine::write_sync(*io_, turn * kIoAlign, data).has_value() &&
             engine::read_sync(*io_, turn * kIoAlign, back.bytes()).has_value() &&
             same(data, back.bytes());
    });
    borrower.join();
    ASSERT_TRUE(good) << "turn " << turn;
  }
}

std::string backend_name(const testing::TestParamInfo<Backend>& param) {
  switch (param.param) {
    case Backend::uring_disk:
      return "uring_disk";
    case Backend::uring_memory:
      return "uring_memory";
    case Backend::uring_buffered:
      return "uring_buffered";
    case Backend::uring_one_thread:
      return "uring_one_thread";
    case Backend::simulated:
      return "simulated";
  }
  return "";
}

INSTANTIATE_TEST_SUITE_P(Every, IoContract,
                         testing::Values(Backend::uring_disk, Backend::uring_memory,
                                         Backend::uring_buffered, Backend::uring_one_thread,
                                         Backend::simulated),
                         backend_name);

}  // namespace
}  // namespace latchkey::tests
