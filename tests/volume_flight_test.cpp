// Goal: a page is closed to writers while it is sealed and not while its write is in flight; a
// range is under one writeout at a time, for which truncate and the last close of an unlinked file
// wait (design D5). Method: the writeout stands still at its first write, or where its nonce is
// drawn, while other threads do their part; what must be able to finish is waited for, what must
// not is looked at after a while.

#include <chrono>
#include <functional>
#include <future>

#include "tests/support/hook_device.h"
#include "tests/support/volume_fixture.h"
#include "volume/page_memory.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using engine::OpKind;

// The kernel's, and a call where the next nonce is drawn: between the taking of pages and their
// sealing.
class NonceEnv final : public Env {
 public:
  u64 monotonic_ns() override { return system_env().monotonic_ns(); }
  u64 realtime_ns() override { return system_env().realtime_ns(); }
  void random(MutableBytes bytes) override {
    system_env().random(bytes);
    if (at_draw) std::exchange(at_draw, nullptr)();
  }
  std::function<void()> at_draw;
};

class VolumeFlight : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    auto opened = Volume::open(hooked_, options_, env_);
    ASSERT_TRUE(opened) << opened.error().what;
    volume_ = std::move(*opened);
    vault();
    ASSERT_TRUE(volume_->sync());
  }
  void TearDown() override {
    hooked_.hook = nullptr;
    VolumeTest::TearDown();
  }
  void write(HandleId handle, u64 page, char letter) {
    const std::string text(kPageBytes, letter);
    auto wrote = volume_->write(handle, page * kPageBytes, bytes_of(text));
    EXPECT_TRUE(wrote) << wrote.error().what;
  }
  static std::string pages(std::string_view letters) {
    std::string text;
    for (const char letter : letters) text.append(kPageBytes, letter);
    return text;
  }
  // In a thread of its own.
  struct Other {
    std::future<void> future;
    void start(std::function<void()> call) {
      future = std::async(std::launch::async, std::move(call));
    }
    bool ends() { return future.wait_for(std::chrono::seconds(20)) == std::future_status::ready; }
    bool stands() {
      return future.wait_for(std::chrono::milliseconds(60)) == std::future_status::timeout;
    }
  };
  // What content() reads is in memory as long as it is dirty: this is what a crash leaves.
  std::string durable(std::string_view path) {
    crash(1);
    add_key();
    return content(path);
  }
  // Stops the flush of /vault/x, two pages `a`, at its first write.
  void at_flight(std::function<void()> call) { hooked_.at_next(OpKind::write, std::move(call)); }

  HookDevice hooked_{device_};
  NonceEnv env_;
};

TEST_F(VolumeFlight, a_page_in_flight_takes_writes_and_is_dirty_again) {
  const HandleId handle = open("/vault/x");
  write(handle, 0, 'a');
  write(handle, 1, 'a');
  bool in_time = false;
  Other writer;
  at_flight([&] {
    writer.start([&] { write(handle, 1, 'b'); });
    in_time = writer.ends();
    EXPECT_EQ(content(handle), pages("ab"));
  });
  EXPECT_TRUE(volume_->fsync(handle));
  EXPECT_TRUE(in_time) << "the writer waited for the I/O";
  EXPECT_EQ(content(handle), pages("ab"));
  EXPECT_EQ(volume_->facts().dirty_bytes, kPageBytes) << "written again is dirty again";
  EXPECT_EQ(durable("/vault/x"), pages("aa"));
}

TEST_F(VolumeFlight, what_was_written_in_flight_goes_down_with_the_next_flush) {
  const HandleId handle = open("/vault/x");
  write(handle, 0, 'a');
  at_flight([&] { write(handle, 0, 'b'); });
  EXPECT_TRUE(volume_->fsync(handle));
  EXPECT_TRUE(volume_->fsync(handle));
  EXPECT_EQ(volume_->facts().dirty_bytes, 0U);
  EXPECT_EQ(durable("/vault/x"), pages("b"));
}

TEST_F(VolumeFlight, a_page_that_is_being_sealed_is_closed_to_writers_and_no_other_one) {
  const HandleId handle = open("/vault/x");
  write(handle, 0, 'a');
  write(handle, 1, 'a');
  const HandleId elsewhere = open("/vault/y");
  bool closed = false, others_open = false;
  Other writer, free;
  env_.at_draw = [&] {
    writer.start([&] { write(handle, 1, 'b'); });
    closed = writer.stands();
    free.start([&] { write(elsewhere, 0, 'c'); });
    others_open = free.ends();
  };
  EXPECT_TRUE(volume_->fsync(handle));
  EXPECT_TRUE(writer.ends());
  EXPECT_TRUE(closed) << "a writer changed what was being sealed";
  EXPECT_TRUE(others_open);
  EXPECT_EQ(content(handle), pages("ab"));
  EXPECT_EQ(durable("/vault/x"), pages("aa"));
}

TEST_F(VolumeFlight, truncate_waits_for_the_writeout_and_nothing_of_it_comes_back) {
  for (const u64 left : {u64{0}, kPageBytes, kPageBytes + 10}) {
    SCOPED_TRACE(left);
    const HandleId handle = open("/vault/x");
    write(handle, 0, 'a');
    write(handle, 1, 'a');
    write(handle, 2, 'a');
    bool waited = false;
    Other truncate;
    at_flight([&] {
      truncate.start([&] { EXPECT_TRUE(volume_->truncate(handle, left)); });
      waited = truncate.stands();
    });
    EXPECT_TRUE(volume_->fsync(handle));
    ASSERT_TRUE(truncate.ends());
    EXPECT_TRUE(waited) << "a range was under two changes at a time";
    EXPECT_EQ(content(handle), pages("aaa").substr(0, left));
    // Grown again there are zeros, in the tree, too.
    EXPECT_TRUE(volume_->truncate(handle, 3 * kPageBytes));
    const std::string grown = pages("aaa").substr(0, left) + std::string(3 * kPageBytes - left, 0);
    EXPECT_EQ(content(handle), grown);
    close(handle);
    ASSERT_TRUE(volume_->sync());
    EXPECT_EQ(content("/vault/x"), grown);
    EXPECT_TRUE(volume_->unlink(*resolve(*volume_, "/vault"), "x"));
  }
}

// V4. The page with the new end goes down first; whatever fails, the file is as it was.
TEST_F(VolumeFlight, a_truncate_that_fails_changes_nothing) {
  const HandleId handle = open("/vault/x");
  write(handle, 0, 'a');
  write(handle, 1, 'a');
  ASSERT_TRUE(volume_->fsync(handle));
  const u64 used = volume_->facts().space.blocks_used;
  device_.inject({.kind = OpKind::write});
  EXPECT_EQ(code_of(volume_->truncate(handle, kPageBytes + 10)), Errc::io);
  EXPECT_EQ(content(handle), pages("aa"));
  EXPECT_EQ(volume_->facts().dirty_bytes, 0U);
  EXPECT_EQ(volume_->facts().space.blocks_used, used);

  // A commit by somebody else fails while that page is on its way: the store stops.
  bool stopped = false;
  at_flight([&] {
    ASSERT_TRUE(make_directory(*volume_, kUser, "/vault/d"));
    device_.inject({.kind = OpKind::flush, .sticky = true});
    stopped = !volume_->sync();
  });
  EXPECT_EQ(code_of(volume_->truncate(handle, kPageBytes + 10)), Errc::io);
  EXPECT_TRUE(stopped);
  EXPECT_EQ(content(handle), pages("aa"));
  device_.clear_faults();
  EXPECT_EQ(durable("/vault/x"), pages("aa"));
  EXPECT_TRUE(volume_->truncate(open("/vault/x"), kPageBytes + 10));
  EXPECT_EQ(content("/vault/x"), pages("aa").substr(0, kPageBytes + 10));
}

// The name goes at once; the inode, when what is in flight of it has come down.
TEST_F(VolumeFlight, the_last_close_of_an_unlinked_file_waits_for_the_writeout) {
  const InodeId directory = *resolve(*volume_, "/vault");
  const u64 used = volume_->facts().space.blocks_used;
  const HandleId handle = open("/vault/x");
  for (u64 page = 0; page < 200; ++page) write(handle, page, 'a');
  bool unlinked = false, waited = false;
  Other unlink, close_it;
  at_flight([&] {
    unlink.start([&] { EXPECT_TRUE(volume_->unlink(directory, "x")); });
    unlinked = unlink.ends();
    close_it.start([&] { close(handle); });
    waited = close_it.stands();
  });
  EXPECT_TRUE(volume_->sync());
  ASSERT_TRUE(close_it.ends());
  EXPECT_TRUE(unlinked);
  EXPECT_TRUE(waited) << "pages in flight were dropped";
  EXPECT_EQ(open_error("/vault/x"), Errc::not_found);
  EXPECT_EQ(volume_->facts().dirty_bytes, 0U);
  EXPECT_TRUE(volume_->sync());
  EXPECT_LE(volume_->facts().space.blocks_used, used + 16) << "its blocks are still taken";
}

// At each write and each flush of a commit, other threads read what is on the device and in memory,
// look names up and make new ones, and dirty pages.
TEST_F(VolumeFlight, a_commit_keeps_no_reader_and_no_writer_waiting) {
  put("/vault/old", pages("abc"));
  EXPECT_TRUE(volume_->sync());
  const InodeId directory = *resolve(*volume_, "/vault");
  const HandleId handle = open("/vault/x");
  write(handle, 0, 'a');
  u32 stops = 0, flushes = 0, late = 0;
  bool committing = false;
  hooked_.hook = [&](const engine::Op& op) {
    committing = committing || op.kind == OpKind::flush;
    if (op.kind == OpKind::read || !committing) return;
    ++stops;
    flushes += op.kind == OpKind::flush ? 1 : 0;
    Other other;
    other.start([&] {
      EXPECT_EQ(content("/vault/old"), pages("abc"));
      EXPECT_TRUE(volume_->lookup(directory, "x"));
      EXPECT_TRUE(volume_->read_directory(directory));
      const std::string name = "new" + std::to_string(stops);
      EXPECT_TRUE(volume_->make_node(kUser, directory, name, {FileKind::regular, 0600, 0}));
      write(handle, stops, 'b');
    });
    if (!other.ends()) ++late;
  };
  EXPECT_TRUE(volume_->sync());
  hooked_.hook = nullptr;
  EXPECT_GE(flushes, 2U) << "what goes before the superblock, and the superblock";
  EXPECT_GT(stops, flushes);
  EXPECT_EQ(late, 0U) << "of " << stops << " stops";
  EXPECT_TRUE(volume_->sync());
  close(handle);
}

}  // namespace
}  // namespace latchkey::tests
