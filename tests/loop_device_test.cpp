// A loop device with 4 KiB sectors, as the demo makes it: both roads to its bytes count as one, it
// reads what it wrote, discards, and says when it is read-only. Needs root and losetup.

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "engine/fd.h"
#include "engine/file_device.h"
#include "tests/support/temp_file.h"

namespace latchkey::tests {
namespace {

using engine::foreign_signature;
using engine::kIoAlign;
using engine::Op;
using engine::open_device;
using engine::OpKind;

constexpr u64 kSize = 16 * kMiB;

// The first line a command prints; empty when it fails.
std::string output_of(const std::string& command) {
  std::FILE* pipe = ::popen((command + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return {};
  std::array<char, 256> line{};
  const bool read = std::fgets(line.data(), line.size(), pipe) != nullptr;
  const int status = ::pclose(pipe);
  if (!read || status != 0) return {};
  std::string text(line.data());
  text.erase(std::ranges::find(text, '\n'), text.end());
  return text;
}

class LoopDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "loop devices need root";
    image_ = folder_.file("image");
    ASSERT_TRUE(open_device(image_, {.create_size = kSize}));
    attach("");
    if (device_.empty()) GTEST_SKIP() << "losetup is missing or finds no loop device";
  }
  void TearDown() override { detach(); }

  void attach(const std::string& more) {
    device_ = output_of(
        fmt::format("losetup --find --show --sector-size 4096 --direct-io=on {} {}", more, image_));
  }
  void detach() {
    if (!device_.empty()) (void)output_of("losetup --detach " + device_);
    device_.clear();
  }
  static Errc refusal(const std::string& path, const engine::OpenDeviceOptions& options = {}) {
    const auto opened = open_device(path, options);
    EXPECT_FALSE(opened) << path;
    return opened ? Errc::io : opened.error().code;
  }

  TempFolder folder_;
  std::string image_;
  std::string device_;
};

TEST_F(LoopDevice, reads_what_it_wrote_and_discards) {
  const auto device = open_device(device_, {});
  ASSERT_TRUE(device) << device.error().what << " " << device.error().os_errno;
  EXPECT_EQ((*device)->info().kind, "loop device");
  EXPECT_EQ((*device)->info().size_bytes, kSize);
  EXPECT_TRUE((*device)->info().direct);
  auto io = (*device)->make_io({.buffer_bytes = kMiB});
  if (!io && io.error().code == Errc::unavailable) GTEST_SKIP() << "io_uring is refused";
  ASSERT_TRUE(io);
  const MutableBytes data = (*io)->buffer();
  std::memset(data.data(), 'l', data.size());
  ASSERT_TRUE(engine::write_sync(**io, kSize - kMiB, data));
  ASSERT_TRUE(engine::flush_sync(**io));
  std::memset(data.data(), 0, data.size());
  ASSERT_TRUE(engine::read_sync(**io, kSize - kMiB, data));
  EXPECT_EQ(std::ranges::count(data, std::byte{'l'}), static_cast<std::ptrdiff_t>(kMiB));

  if (!(*device)->info().discard) GTEST_SKIP() << "the file system below punches no holes";
  Op op{.kind = OpKind::discard, .offset = kSize - kMiB, .discard_size = kMiB / 2, .done = [](Op&) {
        }};
  (*io)->submit(op);
  ASSERT_EQ((*io)->tick(1).value(), 1U);
  EXPECT_EQ(op.result, 0);
  ASSERT_TRUE(engine::read_sync(**io, kSize - kMiB, data));
  EXPECT_EQ(std::ranges::count(data, std::byte{'l'}), static_cast<std::ptrdiff_t>(kMiB / 2));
}

TEST_F(LoopDevice, a_closed_device_can_be_opened_at_once) {
  for (u64 turn = 0; turn < 10; ++turn) {
    const auto device = open_device(device_, {});
    ASSERT_TRUE(device) << "turn " << turn << ": " << device.error().what;
    auto io = (*device)->make_io({.buffer_bytes = kIoAlign, .single_thread = turn % 2 == 0});
    if (!io && io.error().code == Errc::unavailable) GTEST_SKIP() << "io_uring is refused";
    ASSERT_TRUE(engine::write_sync(**io, 0, (*io)->buffer()));
    if (turn % 4 == 0) std::thread([&] { io->reset(); }).join();
  }
}

TEST_F(LoopDevice, who_is_closing_it_is_waited_for) {
  engine::Fd other(::open(device_.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  ASSERT_TRUE(other.valid());
  std::thread closes([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    other = {};
  });
  EXPECT_TRUE(open_device(device_, {}));
  closes.join();
}

TEST_F(LoopDevice, device_and_backing_file_exclude_each_other) {
  EXPECT_EQ(refusal(image_), Errc::busy) << "it backs a loop device";
  {
    const auto device = open_device(device_, {});
    ASSERT_TRUE(device);
    EXPECT_EQ(refusal(device_), Errc::busy);
    EXPECT_EQ(refusal(device_, {.read_only = true}), Errc::busy);
    EXPECT_EQ(refusal(device_, {.force = true}), Errc::busy);
    EXPECT_EQ(refusal(image_, {.force = true}), Errc::busy);
  }
  EXPECT_EQ(refusal(image_, {.force = true}), Errc::busy) << "it backs one all the same";
  {
    const engine::Fd file(::open(image_.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(::flock(file.get(), LOCK_EX | LOCK_NB), 0);
    EXPECT_EQ(refusal(device_), Errc::busy) << "its file is locked";
    EXPECT_EQ(refusal(device_, {.force = true}), Errc::busy);
  }
  detach();
  EXPECT_TRUE(open_device(image_, {}));
}

TEST_F(LoopDevice, a_mounted_device_is_busy_and_its_file_system_named) {
  if (output_of("mkfs.ext4 -q -F " + device_ + " && echo made") != "made") {
    GTEST_SKIP() << "no mkfs.ext4";
  }
  EXPECT_EQ(foreign_signature(device_).value(), "ext4 file system");
  const std::string mount_point = folder_.file("mnt");
  ASSERT_EQ(
      output_of(fmt::format("mkdir {0} && mount {1} {0} && echo mounted", mount_point, device_)),
      "mounted");
  EXPECT_EQ(refusal(device_), Errc::busy);
  {
    const auto taken = open_device(device_, {.force = true});
    ASSERT_TRUE(taken) << "force is for that";
    EXPECT_EQ(refusal(device_, {.force = true}), Errc::busy) << "once";
  }
  EXPECT_EQ(output_of("umount " + mount_point + " && echo unmounted"), "unmounted");
  EXPECT_TRUE(open_device(device_, {}));
}

TEST_F(LoopDevice, a_read_only_device_is_refused_for_writing_and_opened_for_reading) {
  detach();
  attach("--read-only");
  ASSERT_FALSE(device_.empty());
  EXPECT_EQ(refusal(device_), Errc::read_only);
  const auto device = open_device(device_, {.read_only = true});
  ASSERT_TRUE(device);
  EXPECT_TRUE((*device)->info().read_only);
}

TEST_F(LoopDevice, it_is_not_made_larger) {
  EXPECT_EQ(refusal(device_, {.create_size = 2 * kSize}), Errc::invalid);
  EXPECT_TRUE(open_device(device_, {.create_size = kSize}));
}

}  // namespace
}  // namespace latchkey::tests
