// Goal: what is taken back from the kernel and what is gone around: nothing of a file that is
// closed stays while its key's removal commits, whoever comes first, and only pages that a parked
// request has locked are left out. Method: a libfuse session whose kernel is this test: it feeds
// requests in and sees what is written out, so a removal is put between any two steps.

#include "mount/kernel_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fuse.h>
#include <sys/uio.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"

namespace latchkey::mount {
namespace {

struct Taken {
  u64 node = 0;
  i64 offset = 0, length = 0;
  bool operator==(const Taken&) const = default;
};

class FakeSession {
 public:
  FakeSession() {
    std::string name = "test";
    std::array<char*, 2> argv{name.data(), nullptr};
    fuse_args args = FUSE_ARGS_INIT(1, argv.data());
    fuse_lowlevel_ops ops{};
    ops.read = [](fuse_req_t req, fuse_ino_t, size_t, off_t, fuse_file_info*) {
      static_cast<FakeSession*>(fuse_req_userdata(req))->read_ = req;
    };
    session_ = fuse_session_new(&args, &ops, sizeof ops, this);
    fuse_opt_free_args(&args);
    LK_CHECK(session_ != nullptr);
    fuse_custom_io io{};
    io.writev = [](int, iovec* pieces, int count, void* self) {
      return static_cast<FakeSession*>(self)->written(pieces, count);
    };
    io.read = [](int, void*, size_t, void*) -> ssize_t { return -1; };
    LK_CHECK(fuse_session_custom_io(session_, &io, ::open("/dev/null", O_RDWR | O_CLOEXEC)) == 0);
    fuse_init_in init{};
    init.major = FUSE_KERNEL_VERSION;
    init.minor = FUSE_KERNEL_MINOR_VERSION;
    send(FUSE_INIT, 0, &init, sizeof init);
  }
  ~FakeSession() { fuse_session_destroy(session_); }
  FakeSession(const FakeSession&) = delete;
  FakeSession& operator=(const FakeSession&) = delete;

  fuse_session* get() const { return session_; }
  // A READ that nobody has answered yet.
  fuse_req_t read(u64 node) {
    fuse_read_in in{};
    in.size = 4096;
    send(FUSE_READ, node, &in, sizeof in);
    return read_;
  }

  std::vector<Taken> taken;
  std::vector<int> errors;  // of replies
  std::function<void()> at_taken = [] {};

 private:
  void send(u32 opcode, u64 node, const void* body, std::size_t size) {
    fuse_in_header header{};
    header.len = static_cast<u32>(sizeof header + size);
    header.opcode = opcode;
    header.unique = ++unique_;
    header.nodeid = node;
    std::vector<char> bytes(header.len);
    std::memcpy(bytes.data(), &header, sizeof header);
    std::memcpy(bytes.data() + sizeof header, body, size);
    fuse_buf buffer{};
    buffer.mem = bytes.data();
    buffer.size = bytes.size();
    fuse_session_process_buf(session_, &buffer);
  }
  ssize_t written(const iovec* pieces, int count) {
    fuse_out_header header{};
    std::memcpy(&header, pieces[0].iov_base, sizeof header);
    if (header.unique == 0 && header.error == FUSE_NOTIFY_INVAL_INODE) {
      LK_CHECK(count == 2);
      fuse_notify_inval_inode_out out{};
      std::memcpy(&out, pieces[1].iov_base, sizeof out);
      taken.push_back({out.ino, out.off, out.len});
      at_taken();
    } else {
      errors.push_back(header.error);
    }
    return header.len;
  }

  fuse_session* session_ = nullptr;
  fuse_req_t read_ = nullptr;
  u64 unique_ = 0;
};

constexpr u64 kNode = 300;

class KernelPagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    key_.bytes.fill(std::byte{7});
    volume::Stat stat;
    stat.kind = volume::FileKind::regular;
    stat.key_id = key_;
    pages_.nodes().looked_up(kNode, stat);
    pages_.nodes().opened(kNode);
    pages_.start(session_.get(), [](Io&& io) { fuse_reply_err(io.req, ENOKEY); });
  }
  void TearDown() override { pages_.stop(); }
  u64 remove(volume::Front::Which which) { return pages_.drop_pages(key_, which); }
  void park(u64 offset, bool direct) { EXPECT_EQ(arrive(offset, direct), Parked::Place::parked); }
  Parked::Place arrive(u64 offset, bool direct) {
    file_.key = key_;
    Io io;
    io.req = session_.read(kNode);
    io.node = kNode;
    io.file = &file_;
    io.direct = direct;
    io.offset = offset;
    io.size = 4096;
    const Parked::Place place = pages_.parked().park(io, pages_.parked().tries());
    if (place == Parked::Place::serve) fuse_reply_err(io.req, ENOKEY);
    return place;
  }

  FakeSession session_;
  crypto::KeyId key_;
  OpenFile file_;
  KernelPages pages_{Parked::Limits{}};
};

const std::vector<Taken> kAllOnce{{kNode, 0, 0}};

TEST_F(KernelPagesTest, of_a_file_that_is_closed_while_a_removal_commits_are_taken_by_it) {
  bool closed = false;
  pages_.release(
      kNode,
      [&] {
        remove(volume::Front::Which::closed);  // it commits when nobody has asked yet
        return false;
      },
      [&] { closed = true; });
  EXPECT_TRUE(closed);
  EXPECT_EQ(session_.taken, kAllOnce);
}

TEST_F(KernelPagesTest, go_before_the_close_that_takes_the_key_along) {
  CondVar changed;
  Mutex mutex;
  bool closed = false, closed_when_taken = false;
  session_.at_taken = [&] {
    Lock lock(mutex);
    closed_when_taken = closed;
  };
  pages_.release(
      kNode, [] { return true; },
      [&] {
        Lock lock(mutex);
        closed = true;
        changed.notify_all();
      });
  {
    Lock lock(mutex);
    while (!closed) changed.wait(mutex);
  }
  EXPECT_FALSE(closed_when_taken);
  EXPECT_EQ(session_.taken, kAllOnce);
}

TEST_F(KernelPagesTest, of_open_files_stay_where_only_closed_ones_are_wanted) {
  remove(volume::Front::Which::closed);
  EXPECT_TRUE(session_.taken.empty());
  remove(volume::Front::Which::all);
  EXPECT_EQ(session_.taken, kAllOnce);
}

TEST_F(KernelPagesTest, under_a_parked_read_are_gone_around) {
  park(8192, false);
  remove(volume::Front::Which::all);
  EXPECT_EQ(session_.taken, (std::vector<Taken>{{kNode, 0, 8192}, {kNode, 12288, 0}}));
}

// A read that comes while they are taken is served, and its page taken again: at some time enough
// is enough, and that is told.
TEST_F(KernelPagesTest, that_come_back_as_fast_as_they_go_are_given_up_and_tried_once_more) {
  constexpr std::size_t kPasses = 1000;
  std::atomic<bool> reads{true};
  std::atomic<std::size_t> taken{0};
  session_.at_taken = [&] {
    ++taken;
    if (reads) {
      EXPECT_EQ(arrive(8192, false), Parked::Place::serve);
    }
    if (taken == kPasses) reads = false;
  };
  EXPECT_EQ(remove(volume::Front::Which::all), 1U);
  for (int i = 0; i < 2000 && taken <= kPasses; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  pages_.stop();
  ASSERT_EQ(session_.taken.size(), kPasses + 1);
  EXPECT_EQ(session_.taken.front(), kAllOnce.front());
  EXPECT_EQ(session_.taken[1], (Taken{kNode, 8192, 4096})) << "only what came back";
  EXPECT_EQ(session_.taken.back(), kAllOnce.front());
}

TEST_F(KernelPagesTest, in_the_range_of_a_direct_read_are_taken_though_it_waits) {
  park(8192, true);
  park(0, true);
  remove(volume::Front::Which::all);
  EXPECT_EQ(session_.taken, kAllOnce);
  pages_.stop();
  EXPECT_EQ(session_.errors, (std::vector<int>{0, -ENOKEY, -ENOKEY})) << "after that of the init";
}

}  // namespace
}  // namespace latchkey::mount
