// Devices of the real kernel: who may open one, what is recognised on it, and what UringIo makes of
// short transfers, refused rings and small lock limits. Limits are changed in a forked child, which
// answers by its exit status.

#include "engine/file_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <functional>
#include <thread>

#include "engine/fd.h"
#include "engine/io_buffer.h"
#include "engine/uring_io.h"
#include "tests/support/temp_file.h"

namespace latchkey::tests {
namespace {

using engine::Device;
using engine::Fd;
using engine::foreign_signature;
using engine::IoBuffer;
using engine::kIoAlign;
using engine::open_device;
using engine::UringIo;

constexpr uid_t kNobody = 65534;

// The exit status of `body` in a child.
int in_child(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int status_of(const Result<std::unique_ptr<Device>>& opened) {
  return opened ? 0 : static_cast<int>(opened.error().code);
}

class FileDevice : public testing::Test {
 protected:
  std::string path() const { return folder_.file("device"); }
  void put(const std::string& bytes) const { std::ofstream(path()) << bytes; }
  Errc refusal(const engine::OpenDeviceOptions& options = {}) const {
    const auto opened = open_device(path(), options);
    EXPECT_FALSE(opened);
    return opened ? Errc::io : opened.error().code;
  }

  TempFolder folder_;
};

#define SKIP_WITHOUT_URING(io)                                     \
  do {                                                             \
    if (!(io) && (io).error().code == Errc::unavailable)           \
      GTEST_SKIP() << "io_uring: errno " << (io).error().os_errno; \
  } while (false)

TEST_F(FileDevice, create_size_makes_a_sparse_file_for_its_owner_alone) {
  const auto device = open_device(path(), {.create_size = kGiB});
  ASSERT_TRUE(device);
  struct stat status{};
  ASSERT_EQ(::stat(path().c_str(), &status), 0);
  EXPECT_EQ(static_cast<u64>(status.st_size), kGiB);
  EXPECT_LT(static_cast<u64>(status.st_blocks) * 512, kMiB);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  EXPECT_EQ((*device)->info().size_bytes, kGiB);
  EXPECT_EQ((*device)->info().kind, "file");
  EXPECT_EQ((*device)->info().path, path());
}

TEST_F(FileDevice, create_size_grows_a_file_and_never_cuts_it) {
  put("contents");
  EXPECT_EQ(open_device(path(), {.create_size = kMiB}).value()->info().size_bytes, kMiB);
  EXPECT_EQ(open_device(path(), {.create_size = kIoAlign}).value()->info().size_bytes, kMiB);
  std::string word(8, ' ');
  std::ifstream(path()).read(word.data(), 8);
  EXPECT_EQ(word, "contents");
}

TEST_F(FileDevice, a_missing_file_is_not_made_without_create_size) {
  EXPECT_EQ(refusal(), Errc::not_found);
  EXPECT_FALSE(std::filesystem::exists(path()));
  EXPECT_EQ(refusal({.read_only = true, .create_size = kMiB}), Errc::invalid);
}

TEST_F(FileDevice, a_file_that_cannot_be_so_large_is_not_left_behind) {
  EXPECT_EQ(refusal({.create_size = u64{1} << 62U}), Errc::too_big);
  EXPECT_FALSE(std::filesystem::exists(path()));
}

TEST_F(FileDevice, size_is_rounded_down_to_whole_blocks) {
  put(std::string(10'000, 'x'));
  EXPECT_EQ(open_device(path(), {}).value()->info().size_bytes, 8192U);
}

TEST_F(FileDevice, second_open_is_busy_in_this_process_and_in_another) {
  auto first = open_device(path(), {.create_size = kMiB});
  ASSERT_TRUE(first);
  EXPECT_EQ(refusal(), Errc::busy);
  EXPECT_EQ(refusal({.read_only = true}), Errc::busy);
  EXPECT_EQ(refusal({.force = true}), Errc::busy) << "a lock is not a signature";
  // A child that opens anew; its copy of the parent's descriptor is not the lock's owner.
  const auto open_there = [this] { return status_of(open_device(path(), {})); };
  EXPECT_EQ(in_child(open_there), static_cast<int>(Errc::busy));
  first->reset();
  EXPECT_EQ(in_child(open_there), 0);
  EXPECT_TRUE(open_device(path(), {}));
}

TEST_F(FileDevice, what_is_neither_file_nor_block_device_is_refused_unopened) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  EXPECT_EQ(refusal(), Errc::wrong_device);  // an open would wait for a reader
  EXPECT_EQ(open_device(folder_.path(), {}).error().code, Errc::wrong_device);
  EXPECT_EQ(open_device("/dev/null", {}).error().code, Errc::wrong_device);
  EXPECT_EQ(foreign_signature(folder_.path()).error().code, Errc::wrong_device);
  EXPECT_EQ(foreign_signature("/dev/null").error().code, Errc::wrong_device);
}

TEST_F(FileDevice, a_file_without_the_right_to_write_opens_read_only_alone) {
  put(std::string(8192, 'x'));
  ASSERT_EQ(::chmod(path().c_str(), 0444), 0);
  ASSERT_EQ(::chmod(folder_.path().c_str(), 0755), 0);
  const auto as_nobody = [this](bool read_only) {
    return in_child([&] {
      if (::getuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) return 100;
      return status_of(open_device(path(), {.read_only = read_only}));
    });
  };
  EXPECT_EQ(as_nobody(false), static_cast<int>(Errc::permission));
  EXPECT_EQ(as_nobody(true), 0);
}

TEST_F(FileDevice, a_read_only_device_reads_and_refuses_to_write) {
  put(std::string(8192, 'x'));
  const auto device = open_device(path(), {.read_only = true});
  ASSERT_TRUE(device);
  EXPECT_TRUE((*device)->info().read_only);
  EXPECT_FALSE((*device)->info().discard);
  auto io = (*device)->make_io({.buffer_bytes = kIoAlign});
  SKIP_WITHOUT_URING(io);
  ASSERT_TRUE(engine::read_sync(**io, kIoAlign, (*io)->buffer()));
  EXPECT_EQ((*io)->buffer()[0], std::byte{'x'});
  const auto written = engine::write_sync(**io, 0, (*io)->buffer());
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, Errc::read_only);
}

// The kernel takes a closed ring apart in its own time; the device must not wait for that.
TEST_F(FileDevice, a_closed_device_can_be_opened_at_once) {
  for (u64 turn = 0; turn < 20; ++turn) {
    const auto device = open_device(path(), {.create_size = kMiB});
    ASSERT_TRUE(device) << "turn " << turn << ": " << device.error().what;
    auto io = (*device)->make_io({.buffer_bytes = kIoAlign, .single_thread = turn % 2 == 0});
    SKIP_WITHOUT_URING(io);
    ASSERT_TRUE(engine::write_sync(**io, 0, (*io)->buffer()));
    if (turn % 4 == 0) std::thread([&] { io->reset(); }).join();
  }
}

TEST_F(FileDevice, a_file_cut_short_under_us_is_eio_where_it_ends) {
  for (const u64 left : {5 * kIoAlign, 5 * kIoAlign + 904}) {
    const auto device = open_device(path(), {.create_size = kMiB});
    ASSERT_TRUE(device);
    auto io = (*device)->make_io({.buffer_bytes = kMiB});
    SKIP_WITHOUT_URING(io);
    ASSERT_EQ(::truncate(path().c_str(), static_cast<off_t>(left)), 0);
    EXPECT_TRUE(engine::read_sync(**io, 0, (*io)->buffer().first(5 * kIoAlign)));
    const auto cut = engine::read_sync(**io, 0, (*io)->buffer());
    ASSERT_FALSE(cut) << left;
    EXPECT_EQ(cut.error().os_errno, EIO);
  }
}

// RLIMIT_FSIZE makes the kernel answer a write with a part of it; the rest then fails with EFBIG.
TEST_F(FileDevice, a_short_write_is_continued) {
  EXPECT_EQ(in_child([this] {
              (void)std::signal(SIGXFSZ, SIG_IGN);
              auto device = open_device(path(), {.create_size = kMiB});
              if (!device) return 1;
              auto io = (*device)->make_io({.buffer_bytes = 64 * kKiB});
              if (!io) return io.error().code == Errc::unavailable ? 0 : 2;
              std::memset((*io)->buffer().data(), 'w', (*io)->buffer().size());
              const rlimit limit{40 * kKiB, 40 * kKiB};
              if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 3;
              const auto written = engine::write_sync(**io, 0, (*io)->buffer());
              if (written || written.error().os_errno != EFBIG) return 4;
              if (!engine::read_sync(**io, 0, (*io)->buffer())) return 5;
              const auto count = std::ranges::count((*io)->buffer(), std::byte{'w'});
              return count == static_cast<std::ptrdiff_t>(40 * kKiB) ? 0 : 6;
            }),
            0);
}

int refuse_io_uring(u32 os_errno) {
  std::array<sock_filter, 4> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),  // seccomp_data.nr
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | os_errno),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog filter{program.size(), program.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
  return ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

TEST_F(FileDevice, a_refused_io_uring_setup_tells_its_errno) {
  for (const int os_errno : {EPERM, ENOSYS, EACCES, ENOMEM}) {
    EXPECT_EQ(in_child([&] {
                auto device = open_device(path(), {.create_size = kMiB});
                if (!device) return 1;
                if (refuse_io_uring(static_cast<u32>(os_errno)) != 0) return 2;
                for (const bool single_thread : {false, true}) {
                  const auto io = (*device)->make_io({.single_thread = single_thread});
                  // A lock limit that is used up is the caller's to raise; the rest is not.
                  const Errc code = os_errno == ENOMEM ? Errc::no_memory : Errc::unavailable;
                  if (io || io.error().code != code) return 3;
                  if (io.error().os_errno != os_errno) return 4;
                }
                return 0;
              }),
              0)
        << "errno " << os_errno;
  }
}

TEST_F(FileDevice, a_small_lock_limit_leaves_the_buffer_unregistered_and_working) {
  EXPECT_EQ(in_child([this] {
              const rlimit limit{64 * kKiB, 64 * kKiB};
              const Fd fd(::open(path().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
              if (::ftruncate(fd.get(), 4 * kMiB) != 0) return 1;
              if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) return 2;
              if (::getuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0) return 3;
              auto io = UringIo::create({fd.get(), 4 * kMiB, false}, {.buffer_bytes = 4 * kMiB});
              if (!io) return io.error().code == Errc::unavailable ? 0 : 4;
              if ((*io)->status().buffer_registered) return 5;
              if ((*io)->status().buffer_errno != ENOMEM) return 6;
              if (!engine::write_sync(**io, 0, (*io)->buffer())) return 7;
              return engine::read_sync(**io, 0, (*io)->buffer()) ? 0 : 8;
            }),
            0);
}

TEST_F(FileDevice, a_buffer_within_the_limit_is_registered) {
  const Fd fd(::open(path().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const auto io = UringIo::create({fd.get(), 0, false}, {.buffer_bytes = 64 * kKiB});
  SKIP_WITHOUT_URING(io);
  ASSERT_TRUE(io);
  EXPECT_TRUE((*io)->status().buffer_registered || (*io)->status().buffer_errno == ENOMEM);
  EXPECT_TRUE((*io)->status().file_registered);
}

TEST_F(FileDevice, signatures_of_others_are_named_and_bytes_without_one_are_not) {
  put("");
  EXPECT_EQ(foreign_signature(path()).value(), "");
  put(std::string(kMiB, 'x'));
  EXPECT_EQ(foreign_signature(path()).value(), "");
  EXPECT_EQ(foreign_signature(folder_.file("missing")).error().code, Errc::not_found);

  std::string luks(4 * kMiB, '\0');
  luks.replace(0, 8, std::string("LUKS\xba\xbe\0\1", 8));
  put(luks);
  EXPECT_EQ(foreign_signature(path()).value(), "crypto_LUKS encrypted volume");

  std::string swap(kMiB, '\0');
  swap.replace(4086, 10, "SWAPSPACE2");
  swap[1024] = 1;                       // version
  swap[1028] = static_cast<char>(255);  // last page
  put(swap);
  EXPECT_EQ(foreign_signature(path()).value(), "swap area");

  std::string table(kMiB, '\0');
  table.replace(510, 2, "\x55\xaa");
  table[446 + 4] = static_cast<char>(0x83);  // a Linux partition from sector 8, 1024 sectors
  table[446 + 8] = 8;
  table[446 + 13] = 4;
  put(table);
  EXPECT_EQ(foreign_signature(path()).value(), "dos partition table");
}

}  // namespace
}  // namespace latchkey::tests
