// Goal: what one thread does at the worst moment of another one loses nothing that was acknowledged
// and leaves nothing of a key behind: a close under an operation, a removal under a listing, a
// flush or a waiting writer. Method: the moment is an op of the device, at which a hook does the
// other thread's part; no timing decides.

#include <chrono>
#include <future>
#include <thread>

#include "base/wait.h"
#include "tests/support/hook_device.h"
#include "tests/support/volume_fixture.h"
#include "volume/lock_limit.h"
#include "volume/map_records.h"
#include "volume/page_memory.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using engine::Op;
using engine::OpKind;
using keymgr::KeyState;
using keymgr::RemovalMode;

class VolumeRaces : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    options_.dirty_bytes_max = kMiB;
    VolumeTest::SetUp();
    open_hooked();
  }
  void TearDown() override {
    hooked_.hook = nullptr;
    VolumeTest::TearDown();
  }
  void open_hooked() {
    if (volume_) {
      EXPECT_TRUE(volume_->close());
    }
    volume_.reset();
    auto opened = Volume::open(hooked_, options_, system_env());
    ASSERT_TRUE(opened) << opened.error().what;
    volume_ = std::move(*opened);
  }
  // Once, before the next op of this kind.
  void at_next(OpKind kind, std::function<void()> call) { hooked_.at_next(kind, std::move(call)); }
  // Dirty pages of /filler, so that the next write of so much finds no room and flushes it.
  void fill_memory(u64 bytes = kMiB - 8 * kPageBytes) { put("/filler", std::string(bytes, 'f')); }

  HookDevice hooked_{device_};
};

// --- a handle that is closed under an operation ---

TEST_F(VolumeRaces, write_that_outlives_the_close_of_its_handle_is_kept) {
  const HandleId handle = open("/file");
  append(handle, "first ");
  ASSERT_TRUE(volume_->fsync(handle));
  fill_memory();
  const std::string text(100000, 'x');
  at_next(OpKind::write, [&] { close(handle); });
  const auto wrote = volume_->append(handle, bytes_of(text));
  ASSERT_TRUE(wrote) << wrote.error().what;
  EXPECT_TRUE(content("/file") == "first " + text);
}

TEST_F(VolumeRaces, operation_that_outlives_the_close_of_its_handle_leaves_no_lease) {
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/file");
  append(handle, "first ");
  ASSERT_TRUE(volume_->fsync(handle));
  fill_memory();
  // Of more than one piece: each takes the lease that it needs.
  const std::string text(700000, 'x');
  at_next(OpKind::write, [&] { close(handle); });
  ASSERT_TRUE(volume_->append(handle, bytes_of(text)));
  EXPECT_TRUE(content("/vault/file") == "first " + text);
  EXPECT_EQ(remove(id).state, KeyState::absent);
}

TEST_F(VolumeRaces, last_operation_of_a_closed_handle_lets_the_key_go) {
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/file");
  append(handle, "first ");
  ASSERT_TRUE(volume_->fsync(handle));
  fill_memory();
  at_next(OpKind::write, [&] {
    EXPECT_EQ(remove(id).state, KeyState::incompletely_removed);
    close(handle);
    EXPECT_EQ(state(id), KeyState::incompletely_removed);
  });
  ASSERT_TRUE(volume_->append(handle, bytes_of(std::string(100000, 'x'))));
  EXPECT_EQ(state(id), KeyState::absent);
  crash(1);
  add_key();
  EXPECT_TRUE(content("/vault/file") == "first " + std::string(100000, 'x'));
}

// --- a removal under a read ---

// While it lives waits are looked at: who waits for a lock asks for it again and again.
class SeenWaits final : public Scheduler {
 public:
  SeenWaits() { install_scheduler(this); }
  ~SeenWaits() override { install_scheduler(nullptr); }

  std::atomic<std::thread::id> of{};  // whose waits count
  void await_one() const {
    while (count_ == 0) std::this_thread::yield();
  }

  bool wait_on(std::atomic<u32>&, u32, u64 timeout_ns) override {
    if (of == std::this_thread::get_id()) ++count_;
    std::this_thread::yield();
    return timeout_ns == kForever;
  }
  void wake(std::atomic<u32>&, u32) override {}
  u64 start_thread(std::function<void()>) override { LK_CHECK_MSG(false, "no thread of its own"); }
  void join_thread(u64) override { LK_CHECK_MSG(false, "no thread of its own"); }

 private:
  std::atomic<u64> count_{0};
};

// The first piece of the read is a hole, which takes no key: of the device it asks for a node of
// the map, with the lease locked. The removal waits for nothing else, and when it waits the read
// goes on. A writer that waits keeps readers out: the second piece, a hole too, comes to the lease
// behind the removal. The dirty page is in the third.
TEST_F(VolumeRaces, a_read_that_a_hard_removal_overtakes_gives_no_zeros) {
  const crypto::KeyId id = vault();
  HandleId handle = open("/vault/file");
  write_map_of_many_nodes(handle);
  close(handle);
  open_hooked();
  add_key();
  handle = open("/vault/file");
  const u64 hole = kReadRingBytes * 100, page = hole + 2 * kReadRingBytes;
  ASSERT_TRUE(volume_->write(handle, page, bytes_of(std::string(kPageBytes, 'b'))));
  SeenWaits waits;
  std::future<RemovalReport> removal;
  at_next(OpKind::read, [&] {
    removal = std::async(std::launch::async, [&] {
      waits.of = std::this_thread::get_id();
      return remove(id, RemovalMode::hard);
    });
    waits.await_one();
  });
  std::vector<std::byte> bytes(page + kPageBytes - hole);
  const auto read = volume_->read(handle, hole, bytes);
  ASSERT_TRUE(removal.valid()) << "the map's node was in memory";
  EXPECT_EQ(removal.get().bytes_lost, kPageBytes);
  EXPECT_EQ(code_of(read), Errc::io) << "what is gone is not zeros";
}

// The clone waits for a writer of its target, and that for the device, with the target's lease
// locked: there the removal waits, too, when the source's page is gone.
TEST_F(VolumeRaces, a_clone_that_a_hard_removal_overtakes_is_none) {
  const crypto::KeyId id = vault();
  put("/vault/source", "");
  put("/vault/target", std::string(100, 't'));
  ASSERT_TRUE(volume_->sync());
  open_hooked();
  add_key();
  const HandleId source = open("/vault/source"), target = open("/vault/target");
  append(source, "dirty");
  SeenWaits waits;
  std::future<RemovalReport> removal;
  std::future<Errc> cloned;
  at_next(OpKind::read, [&] {
    cloned = std::async(std::launch::async,
                        [&] { return code_of(volume_->clone_range(source, 0, target, 0, 0)); });
    EXPECT_EQ(cloned.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
    removal = std::async(std::launch::async, [&] {
      waits.of = std::this_thread::get_id();
      return remove(id, RemovalMode::hard);
    });
    waits.await_one();
  });
  (void)volume_->write(target, 10, bytes_of("x"));
  ASSERT_TRUE(removal.valid()) << "the target's block was in memory";
  EXPECT_EQ(cloned.get(), Errc::io);
  EXPECT_GE(removal.get().files_lost, 1U);
}

// --- a removal under a listing ---

Heap name_schedule(const Heap& raw, const crypto::Nonce& nonce) {
  auto state = Secret<crypto::HkdfState>::create();
  auto key = Secret<crypto::NameKey>::create();
  LK_CHECK(state.has_value() && key.has_value());
  SecretBytes secret = in_arena(raw);
  crypto::hkdf_extract(secret.bytes(), **state);
  crypto::derive_name_key(**state, nonce, **key);
  return Heap((*key)->encrypt.begin(), (*key)->encrypt.end());
}

// What the device has to be asked for is not waited for with a key in hand.
TEST_F(VolumeRaces, removal_under_a_listing_leaves_no_name_key) {
  vault();
  for (int i = 0; i < 400; ++i) put("/vault/" + std::to_string(i) + std::string(100, 'n'), "");
  const auto directory = resolve(*volume_, "/vault");
  ASSERT_TRUE(directory);
  open_hooked();
  const auto store = engine::Store::open(device_, {.read_only = true}, system_env());
  ASSERT_TRUE(store);
  const auto attributes = get_inode((*store)->view(), *directory);
  ASSERT_TRUE(attributes);
  const Heap needle = name_schedule(Heap(64, std::byte{7}), attributes->nonce);
  bool removed = true;  // at the read of that number; in the end there are no more
  int read = 0;
  for (; removed; ++read) {
    SCOPED_TRACE(testing::Message() << "read " << read);
    open_hooked();
    const crypto::KeyId id = add_key();
    removed = false;
    hooked_.hook = [&, left = read](const Op& op) mutable {
      if (op.kind != OpKind::read || left-- != 0) return;
      EXPECT_EQ(remove(id, RemovalMode::hard).state, KeyState::absent);
      EXPECT_FALSE(arena_holds(needle));
      removed = true;
    };
    const auto entries = volume_->read_directory(*directory);
    hooked_.hook = nullptr;
    ASSERT_TRUE(entries);
    EXPECT_EQ(entries->size(), 400U);
    EXPECT_FALSE(arena_holds(needle));
  }
  EXPECT_GE(read, 4);
}

// --- a hard removal under a flush ---

// What was sealed before the wipe lands: only what was not is lost.
TEST_F(VolumeRaces, batch_that_was_sealed_before_the_wipe_lands) {
  options_.dirty_bytes_max = 16 * kMiB;
  open_hooked();
  const crypto::KeyId id = vault();
  ASSERT_TRUE(volume_->sync());
  const HandleId handle = open("/vault/file");
  std::string text(8 * kMiB, 'x');
  append(handle, text);
  std::future<RemovalReport> removal;
  at_next(OpKind::write, [&] {
    removal = std::async(std::launch::async, [&] { return remove(id, RemovalMode::hard); });
    while (state(id) != KeyState::absent) std::this_thread::yield();
  });
  EXPECT_EQ(code_of(volume_->fsync(handle)), Errc::no_key);
  const RemovalReport report = removal.get();
  EXPECT_EQ(report.files_lost, 1U);
  EXPECT_LT(report.bytes_lost, text.size());
  add_key();
  const std::string found = content("/vault/file");
  EXPECT_EQ(found.size(), text.size() - report.bytes_lost);
  EXPECT_TRUE(text.starts_with(found));
  EXPECT_EQ(code_of(volume_->close_handle(handle)), Errc::io);
}

// --- writers that wait while a key goes ---

// Calls `between` once, when a removal's phase ends with a look at the clock: hard has wiped then
// and dropped nothing yet.
class MeddlingEnv final : public Env {
 public:
  u64 monotonic_ns() override {
    if (armed.load() && std::this_thread::get_id() == thread && ++asked == 4) between();
    return system_env().monotonic_ns();
  }
  u64 realtime_ns() override { return system_env().realtime_ns(); }
  void random(MutableBytes bytes) override { system_env().random(bytes); }

  void arm(std::function<void()> call) {
    between = std::move(call);
    thread = std::this_thread::get_id();
    asked = 0;
    armed = true;
  }

 private:
  std::function<void()> between;
  std::thread::id thread;
  int asked = 0;
  std::atomic<bool> armed{false};
};

// Pages that a removal is about to drop are no reason to refuse a writer of another file.
TEST_F(VolumeRaces, hard_removal_is_no_error_of_other_files) {
  ASSERT_TRUE(volume_->close());
  MeddlingEnv env;
  volume_ = std::move(*Volume::open(device_, options_, env));
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/file"), plain = open("/plain");
  append(handle, std::string(200 * kPageBytes, 'x'));
  const std::string text(100 * kPageBytes, 'p');
  std::future<Result<u64>> writer;
  env.arm([&] {
    writer =
        std::async(std::launch::async, [&] { return volume_->write(plain, 0, bytes_of(text)); });
    (void)writer.wait_for(std::chrono::milliseconds(100));
  });
  EXPECT_EQ(remove(id, RemovalMode::hard).bytes_lost, 200 * kPageBytes);
  const auto wrote = writer.get();
  EXPECT_TRUE(wrote) << wrote.error().what;
  EXPECT_TRUE(content(plain) == text);
  close(plain);
  EXPECT_FALSE(volume_->close_handle(handle));  // io, or no_key of the writer's flush
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  expect_clean();
}

// Writers who wait for room hear of a device that takes nothing; not of one that did so once.
TEST_F(VolumeRaces, trouble_of_the_past_is_no_error_of_a_later_write) {
  options_.inline_writeback = false;
  open_hooked();
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/file"), plain = open("/plain");
  ASSERT_TRUE(volume_->sync());
  device_.inject({.kind = OpKind::write, .sticky = true});
  while (volume_->append(handle, bytes_of(std::string(100000, 'x')))) {
  }
  remove(id, RemovalMode::hard);
  device_.clear_faults();
  // The next flush is slow: the writer has to wait for it.
  at_next(OpKind::write, [] { std::this_thread::sleep_for(std::chrono::milliseconds(100)); });
  const std::string text(3 * kMiB, 'p');
  const auto wrote = volume_->write(plain, 0, bytes_of(text));
  EXPECT_TRUE(wrote) << wrote.error().what;
  EXPECT_TRUE(content(plain) == text);
  close(plain);
  (void)volume_->close_handle(handle);
}

// --- what was lost stays told --------------------------------------------------------------------

TEST_F(VolumeRaces, writer_that_waited_through_the_loss_of_its_file_is_told) {
  options_.inline_writeback = false;
  options_.writeback_workers = 1;
  open_hooked();
  const crypto::KeyId id = vault();
  const HandleId handle = open("/vault/file");
  append(handle, "kept");
  ASSERT_TRUE(volume_->sync());
  std::promise<void> held, go_on;
  at_next(OpKind::write, [&] {
    held.set_value();
    go_on.get_future().wait();
  });
  put("/filler", std::string(150 * kPageBytes, 'f'));  // half of the memory: the worker flushes it
  held.get_future().wait();
  append(handle, std::string(5000, 'x'));
  auto writer = std::async(std::launch::async, [&] {
    return volume_->write(handle, 0, bytes_of(std::string(110 * kPageBytes, 'y')));
  });
  // It waits for room.
  EXPECT_EQ(writer.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  EXPECT_EQ(remove(id, RemovalMode::hard).files_lost, 1U);
  add_key();
  const HandleId fresh = open("/vault/file");
  go_on.set_value();
  EXPECT_EQ(code_of(writer.get()), Errc::io);
  EXPECT_TRUE(content(fresh) == "kept");
  close(fresh);
  EXPECT_EQ(code_of(volume_->close_handle(handle)), Errc::io);
}

// Its files are more than are flushed at a time; the one that is lost comes last.
TEST_F(VolumeRaces, a_sync_that_a_hard_removal_overtakes_is_told) {
  const crypto::KeyId id = vault();
  for (int i = 0; i < 65; ++i) put("/plain" + std::to_string(i), "x");
  const HandleId handle = open("/vault/file");
  append(handle, "dirty");
  at_next(OpKind::write, [&] { EXPECT_EQ(remove(id, RemovalMode::hard).files_lost, 1U); });
  EXPECT_EQ(code_of(volume_->sync()), Errc::io);
  EXPECT_TRUE(volume_->sync()) << "it is told once";
  EXPECT_EQ(code_of(volume_->close_handle(handle)), Errc::io);
}

// --- a flush ends ---

// Pages that come while it runs are the next one's.
TEST_F(VolumeRaces, fsync_does_not_wait_for_who_goes_on_writing) {
  options_.dirty_bytes_max = 48 * kMiB;
  open_hooked();
  const HandleId handle = open("/file");
  const std::string piece(kMiB, 'p');
  constexpr u64 kPiecesMax = 40;
  for (int i = 0; i < 4; ++i) append(handle, piece);
  u64 pieces = 4;
  hooked_.hook = [&](const Op& op) {
    if (op.kind != OpKind::write || pieces == kPiecesMax) return;
    append(handle, piece);
    ++pieces;
  };
  EXPECT_TRUE(volume_->fsync(handle));
  hooked_.hook = nullptr;
  EXPECT_LT(pieces, kPiecesMax) << "it flushed all that came";
  EXPECT_TRUE(content(handle) == std::string(pieces * kMiB, 'p'));
  close(handle);
}

// --- an error changes nothing ---

TEST_F(VolumeRaces, truncate_that_cannot_read_the_map_loses_no_data) {
  HandleId handle = open("/file");
  write_map_of_many_nodes(handle);
  close(handle);
  open_hooked();
  put("/other", "reads the bitmap");
  ASSERT_TRUE(volume_->sync());
  handle = open("/file");
  const std::string page(kPageBytes, 'd');
  ASSERT_TRUE(volume_->write(handle, 3001 * kPageBytes, bytes_of(page)));
  // It may have come so far as what is in memory of the map's end.
  device_.inject({.kind = OpKind::read, .sticky = true});
  EXPECT_EQ(code_of(volume_->truncate(handle, 0)), Errc::io);
  device_.clear_faults();
  EXPECT_GT(volume_->stat(handle)->size, 3002 * kPageBytes);
  std::string back(kPageBytes, ' ');
  EXPECT_TRUE(volume_->read(handle, 3001 * kPageBytes, std::as_writable_bytes(std::span(back))));
  EXPECT_TRUE(back == page);
  EXPECT_TRUE(volume_->truncate(handle, 0));
  EXPECT_TRUE(volume_->fsync(handle));
  EXPECT_EQ(content(handle), "");
  close(handle);
}

TEST_F(VolumeRaces, truncate_that_cannot_flush_keeps_the_tail_of_its_page) {
  vault();
  ASSERT_TRUE(volume_->sync());
  const HandleId handle = open("/vault/file");
  const std::string text(3 * kPageBytes, 't');
  append(handle, text);
  ASSERT_TRUE(volume_->fsync(handle));
  for (const u64 size : {u64{100}, kPageBytes + 100, 3 * kPageBytes - 1}) {
    device_.inject({.kind = OpKind::write, .sticky = true});
    EXPECT_EQ(code_of(volume_->truncate(handle, size)), Errc::io);
    device_.clear_faults();
    EXPECT_TRUE(content(handle) == text) << size;
  }
  EXPECT_TRUE(volume_->fsync(handle));  // nothing was dirty; the truncates have told
  EXPECT_TRUE(volume_->truncate(handle, 100));
  EXPECT_TRUE(volume_->truncate(handle, 200));
  EXPECT_EQ(content(handle), std::string(100, 't') + std::string(100, '\0'));
  close(handle);
}

}  // namespace
}  // namespace latchkey::tests
