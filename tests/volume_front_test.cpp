// Goal: what a front, as a mount is one, asks of the volume and is asked by it: calls that do not
// wait, an open by inode, who made what, when to try again; and that a removal reaches the pages
// that only the front has, in every mode, and loses none but where it says which. Method: a fake
// kernel with mapped pages (tests/support/fake_kernel.h) in front of a volume on a SimDevice, which
// keeps storing and writing while the removal goes through its cache.

#include <atomic>
#include <thread>

#include "base/wait.h"
#include "tests/support/fake_kernel.h"
#include "tests/support/hook_device.h"
#include "tests/support/random.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::KeyState;
using keymgr::RemovalMode;

constexpr IoFlags kNoWait{.wait = false};

class CountingFront final : public Front {
 public:
  u64 drop_pages(const crypto::KeyId& /*key*/, Which which) override {
    (which == Which::all ? dropped_all : dropped_closed) += 1;
    return keeps;
  }
  void try_again(const crypto::KeyId& /*key*/) override { ++tries; }
  std::atomic<u32> dropped_all{0}, dropped_closed{0}, tries{0};
  std::atomic<u64> keeps{0};  // files of which it cannot drop all pages
};

class VolumeFront : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    options_.front = &front_;
    VolumeTest::SetUp();
    id_ = vault();
    front_.tries = 0;
  }
  Errc write_error(HandleId handle, std::string_view text) {
    return code_of(volume_->write(handle, 0, bytes_of(text), kNoWait));
  }
  Errc read_now(HandleId handle) {
    std::array<std::byte, 16> into;
    return code_of(volume_->read(handle, 0, into, kNoWait));
  }
  RemovalReport remove(RemovalMode mode) {
    auto report = volume_->remove_key(kUser, id_, mode);
    EXPECT_TRUE(report) << static_cast<int>(mode);
    return report ? *report : RemovalReport{};
  }

  CountingFront front_;
  crypto::KeyId id_;
};

TEST_F(VolumeFront, calls_that_do_not_wait_are_told_to_come_again_while_a_key_is_suspended) {
  const HandleId handle = open("/vault/file");
  append(handle, "before");
  remove(RemovalMode::suspend);
  EXPECT_EQ(write_error(handle, "later"), Errc::would_wait);
  EXPECT_EQ(read_now(handle), Errc::would_wait);
  EXPECT_EQ(posix_errno({Errc::would_wait}), EAGAIN);
  front_.tries = 0;
  add_key();
  EXPECT_EQ(front_.tries, 1U);
  EXPECT_EQ(write_error(handle, "BEFORE"), Errc{});
  EXPECT_EQ(content(handle), "BEFORE");
  remove(RemovalMode::suspend);
  front_.tries = 0;
  remove(RemovalMode::deny);
  EXPECT_EQ(front_.tries, 1U) << "the suspension ended";
  EXPECT_EQ(write_error(handle, "never"), Errc::no_key);
  EXPECT_EQ(read_now(handle), Errc::no_key);
  close(handle);
}

TEST_F(VolumeFront, each_removal_asks_for_the_fronts_pages_and_says_when_it_is_over) {
  for (const keymgr::RemovalRow& row : keymgr::removal_rows()) {
    SCOPED_TRACE(row.name);
    front_.dropped_all = front_.dropped_closed = front_.tries = 0;
    remove(row.mode);
    const bool some_stay = row.stays != keymgr::Stays::nothing;
    // Again after the commit where it prepared: files were closed meanwhile.
    EXPECT_EQ(front_.dropped_closed, !some_stay ? 0U : row.claim_first ? 1U : 2U);
    EXPECT_EQ(front_.dropped_all, some_stay ? 0U : row.mode == RemovalMode::sync ? 2U : 1U);
    EXPECT_EQ(front_.tries, 1U);
    add_key();
  }
}

TEST_F(VolumeFront, what_it_could_not_drop_is_in_the_report) {
  EXPECT_EQ(remove(RemovalMode::deny).files_cached, 0U);
  add_key();
  front_.keeps = 3;
  for (const RemovalMode mode : {RemovalMode::soft, RemovalMode::deny, RemovalMode::hard}) {
    EXPECT_EQ(remove(mode).files_cached, 3U);
    add_key();
  }
}

TEST_F(VolumeFront, opens_a_regular_file_by_inode_and_nothing_else) {
  put("/vault/file", "text");
  const InodeId file = *resolve(*volume_, "/vault/file");
  const auto opened = volume_->open({1000, 100, 4711}, file, {.read = true, .write = true}, "file");
  ASSERT_TRUE(opened);
  EXPECT_EQ(content(*opened), "text");
  const KeyReport report = volume_->key_status(kUser, id_);
  ASSERT_EQ(report.holders.size(), 1U);
  EXPECT_EQ(report.holders[0].pid, 4711U);
  EXPECT_EQ(report.holders[0].path, "file");
  EXPECT_EQ(code_of(volume_->open(kUser, *resolve(*volume_, "/vault"), {}, "")), Errc::is_dir);
  EXPECT_EQ(code_of(volume_->open(kUser, file, {.create = true}, "")), Errc::invalid);
  EXPECT_EQ(code_of(volume_->open(kUser, {kRootInode.subvolume, 9999}, {}, "")), Errc::not_found);
  const auto link = volume_->symlink(kUser, kRootInode, "link", "file");
  ASSERT_TRUE(link);
  EXPECT_EQ(code_of(volume_->open(kUser, *link, {}, "")), Errc::is_symlink);
  remove(RemovalMode::soft);
  EXPECT_EQ(code_of(volume_->open(kUser, file, {}, "")), Errc::no_key) << "the same door";
  EXPECT_EQ(content(*opened), "text");
  close(*opened);
}

TEST_F(VolumeFront, what_is_made_has_the_callers_group_or_that_of_a_setgid_directory) {
  const Caller caller{1000, 100, 0};
  const InodeId root = kRootInode;
  const InodeId plain = *volume_->mkdir(caller, root, "plain", 0755);
  EXPECT_EQ(volume_->stat(plain)->gid, 100U);
  EXPECT_EQ(volume_->stat(*volume_->mkdir({1000}, plain, "as-uid", 0755))->gid, 1000U);
  const InodeId shared = *volume_->mkdir({1000, 200, 0}, root, "shared", 02775);
  const InodeId below = *volume_->mkdir(caller, shared, "below", 0755);
  EXPECT_EQ(volume_->stat(below)->gid, 200U);
  EXPECT_EQ(volume_->stat(below)->mode, 02755U);
  const auto node = volume_->make_node(caller, below, "file", {FileKind::regular, 0644});
  EXPECT_EQ(volume_->stat(*node)->gid, 200U);
  EXPECT_EQ(volume_->stat(*node)->mode, 0644U);
}

// --- pages that only the front has ---------------------------------------------------------------

constexpr u64 kMillisecond = 1'000'000;
constexpr u64 kPages = 24;  // of a file
constexpr u32 kMapped = 0, kWritten = 1, kClosed = 2, kFiles = 3;

class VolumeFrontPages : public VolumeTest {
 protected:
  void SetUp() override {
    options_.writeback_workers = 1;
    options_.dirty_bytes_max = kMiB;
    options_.commit_interval_ms = 0;
    options_.front = &kernel_;
    VolumeTest::SetUp();
    begin();
  }
  void TearDown() override {
    kernel_.while_dropping = {};
    for (u32 file = 0; file < kFiles; ++file)
      if (open_[file]) release(file);
    VolumeTest::TearDown();
  }
  void begin() {
    kernel_.mount(volume_.get());
    id_ = vault();
    for (u32 file = 0; file < kFiles; ++file) {
      put("/vault/" + std::to_string(file), std::string(kPages * FakeKernel::kPageBytes, '0'));
      kernel_.add_file(*resolve(*volume_, "/vault/" + std::to_string(file)));
      open_file(file);
    }
    EXPECT_TRUE(volume_->sync());
    for (u64 page = 0; page < kPages; ++page) EXPECT_EQ(kernel_.look(kClosed, page), Errc{});
    release(kClosed);
    EXPECT_EQ(kernel_.cached_pages(kClosed), kPages) << "a close leaves the kernel its pages";
  }
  void open_file(u32 file) {
    kernel_.open(file);
    open_[file] = true;
  }
  FakeKernel::Released release(u32 file) {
    open_[file] = false;
    return kernel_.release(file);
  }
  // Dirty in the kernel alone, in the volume alone, and in both.
  void dirty_some() {
    for (u64 page = 0; page < kPages; page += 2)
      EXPECT_EQ(kernel_.store(kMapped, page), Errc{}) << page;
    for (u64 page = 0; page < kPages; page += 3)
      EXPECT_EQ(kernel_.write(kMapped, page), Errc{}) << page;
    for (u64 page = 0; page < kPages; page += 6)
      EXPECT_EQ(kernel_.store(kMapped, page), Errc{}) << page;
    EXPECT_EQ(kernel_.write(kWritten, 0), Errc{});
  }
  Result<void> remove(const RemovalRequest& request) {
    return volume_->remove_key(kUser, id_, request, report_);
  }
  // What the report says is lost is what the volume does not have.
  void expect_counted_exactly() {
    u64 bytes = 0, files = 0;
    for (u32 file = 0; file < kFiles; ++file) {
      SCOPED_TRACE(file);
      const u64 lost = kernel_.lost_pages(file).size() * FakeKernel::kPageBytes;
      bytes += lost;
      files += lost != 0 ? 1 : 0;
      const InodeId inode = *resolve(*volume_, "/vault/" + std::to_string(file));
      u64 told = 0;
      for (const LostFile& row : report_.lost) told += row.inode == inode ? row.bytes : 0;
      EXPECT_EQ(told, lost);
    }
    EXPECT_EQ(report_.bytes_lost, bytes);
    EXPECT_EQ(report_.files_lost, files);
    EXPECT_EQ(report_.lost.size(), files);
  }

  FakeKernel kernel_;
  crypto::KeyId id_;
  RemovalReport report_;
  std::array<bool, kFiles> open_{};
};

// Programs that go on until they are refused.
class Programs {
 public:
  Programs(FakeKernel& kernel, u64 seed) : kernel_(kernel) {
    threads_.emplace_back([this, seed] { run(seed, true); });
    threads_.emplace_back([this, seed] { run(seed + 1, false); });
  }
  ~Programs() { stop(); }
  void stop() {
    stop_ = true;
    kernel_.stop_waiting();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  std::atomic<u64> done{0}, waited{0}, refused{0}, other{0};

 private:
  void run(u64 seed, bool stores) {
    SplitMix64 random(seed);
    while (!stop_) {
      const u64 seen = kernel_.tries();
      const u64 page = random() % kPages;
      // Both files are mapped, and what is written to the one is mapped, too.
      const u32 file = random() % 2 == 0 ? kMapped : kWritten;
      const Errc met = stores ? kernel_.store(file, page) : kernel_.write(file, page);
      ++(met == Errc{}             ? done
         : met == Errc::would_wait ? waited
         : met == Errc::no_key     ? refused
                                   : other);
      if (met == Errc::would_wait) kernel_.wait_for_tries(seen);
      if (met == Errc::no_key) pause_for(kMillisecond / 10);
    }
  }
  FakeKernel& kernel_;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

class VolumeFrontMode : public VolumeFrontPages,
                        public ::testing::WithParamInterface<RemovalMode> {};

TEST_P(VolumeFrontMode, loses_no_page_of_the_front_but_where_it_says_which) {
  const keymgr::RemovalRow& row = keymgr::removal_row(GetParam());
  const bool some_stay = row.stays != keymgr::Stays::nothing;
  dirty_some();
  if (row.refuse_when_busy) {
    release(kMapped);
    release(kWritten);
  }
  ASSERT_TRUE(remove({.mode = GetParam()}));
  EXPECT_EQ(kernel_.cached_pages(kClosed), 0U);
  if (some_stay) {
    EXPECT_NE(kernel_.cached_pages(kMapped), 0U) << "who is inside goes on";
    EXPECT_EQ(kernel_.drops(), std::vector(row.claim_first ? 1 : 2, Front::Which::closed));
    EXPECT_EQ(kernel_.store(kMapped, 1), Errc{});
    EXPECT_EQ(kernel_.write(kMapped, 2), Errc{});
    EXPECT_TRUE(release(kMapped).leaving);
    EXPECT_EQ(kernel_.cached_pages(kMapped), 0U);
    EXPECT_TRUE(release(kWritten).leaving);
    EXPECT_EQ(state(id_), KeyState::absent);
  } else {
    EXPECT_EQ(kernel_.cached_pages(kMapped), 0U);
    EXPECT_EQ(kernel_.drops().back(), Front::Which::all);
    EXPECT_EQ(state(id_), KeyState::absent);
    const bool waits = row.later_io == keymgr::LaterIo::waits;
    if (open_[kMapped]) {
      EXPECT_EQ(kernel_.store(kMapped, 0), waits ? Errc::would_wait : Errc::no_key);
    }
    for (const u32 file : {kMapped, kWritten})
      if (open_[file]) release(file);
  }
  add_key();
  // Of the first file: 12 pages are dirty in the kernel, and 4 more in the volume.
  EXPECT_EQ(report_.bytes_lost, GetParam() == RemovalMode::hard ? 17 * FakeKernel::kPageBytes : 0U);
  expect_counted_exactly();
}

TEST_P(VolumeFrontMode, loses_nothing_silently_while_programs_go_on) {
  const keymgr::RemovalRow& row = keymgr::removal_row(GetParam());
  for (u64 round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    for (const u32 file : {kMapped, kWritten})
      if (!open_[file]) open_file(file);
    dirty_some();
    if (row.refuse_when_busy) {
      release(kMapped);
      release(kWritten);
    }
    Programs programs(kernel_, round);
    kernel_.while_dropping = [&](u64 dropped) {
      if (dropped == 0 || dropped % 7 == 0) pause_for(kMillisecond / 4);
    };
    if (round % 3 != 0) pause_for(round * kMillisecond / 4);
    const auto removed = remove({.mode = GetParam()});
    EXPECT_TRUE(removed) << removed.error().what;
    pause_for(kMillisecond);
    const bool waits = row.later_io == keymgr::LaterIo::waits;
    for (int i = 0; waits && i < 10000 && programs.waited == 0; ++i) pause_for(kMillisecond);
    EXPECT_TRUE(!waits || programs.waited != 0);
    programs.stop();
    kernel_.while_dropping = {};
    if (row.later_io == keymgr::LaterIo::succeeds) {
      EXPECT_EQ(programs.waited + programs.refused + programs.other, 0U);
    }
    for (const u32 file : {kMapped, kWritten})
      if (open_[file]) release(file);
    EXPECT_EQ(state(id_), KeyState::absent);
    add_key();
    if (!row.may_lose) {
      EXPECT_EQ(report_.bytes_lost, 0U);
    }
    expect_counted_exactly();
  }
}

// Those that flush before they commit.
class VolumeFrontRollback : public VolumeFrontPages,
                            public ::testing::WithParamInterface<RemovalMode> {};

TEST_P(VolumeFrontRollback, goes_back_with_all_that_was_written_back) {
  const keymgr::RemovalRow& row = keymgr::removal_row(GetParam());
  dirty_some();
  put("/vault/dirty", "so that each of them has something to flush");
  if (row.refuse_when_busy) {
    release(kMapped);
    release(kWritten);
  }
  device_.inject({.kind = engine::OpKind::write, .sticky = true});
  const u64 tries = kernel_.tries();
  EXPECT_EQ(code_of(remove({.mode = GetParam()})), Errc::io);
  EXPECT_GT(kernel_.tries(), tries);
  EXPECT_EQ(report_.bytes_lost, 0U);
  EXPECT_EQ(state(id_), KeyState::present);
  device_.clear_faults();
  for (const u32 file : {kMapped, kWritten}) {
    if (!open_[file]) open_file(file);
    EXPECT_EQ(kernel_.store(file, 3), Errc{}) << "pages come in again";
    EXPECT_EQ(kernel_.write(file, 4), Errc{}) << "writers go on";
    EXPECT_EQ(kernel_.write_back(file, 3), Errc{}) << "and what is written back";
  }
  for (const u32 file : {kMapped, kWritten}) release(file);
  expect_counted_exactly();
}

std::string name_of_mode(const ::testing::TestParamInfo<RemovalMode>& chosen) {
  return std::string(keymgr::removal_row(chosen.param).name);
}

INSTANTIATE_TEST_SUITE_P(modes, VolumeFrontMode,
                         ::testing::Values(RemovalMode::soft, RemovalMode::sealed,
                                           RemovalMode::safe, RemovalMode::sync,
                                           RemovalMode::freeze, RemovalMode::deny,
                                           RemovalMode::hard, RemovalMode::suspend),
                         name_of_mode);
INSTANTIATE_TEST_SUITE_P(modes, VolumeFrontRollback,
                         ::testing::Values(RemovalMode::sealed, RemovalMode::safe,
                                           RemovalMode::sync, RemovalMode::freeze,
                                           RemovalMode::deny, RemovalMode::suspend),
                         name_of_mode);

// What each call is told while the removal is inside of the front.
struct Answers {
  Errc look, write, write_back, served_read, served_write;
};

class VolumeFrontAnswers : public VolumeFrontPages {
 protected:
  Answers ask() {
    std::array<std::byte, 16> some{};
    Answers answers{};
    const HandleId handle = kernel_.handle(kWritten);
    answers.look = code_of(volume_->read(handle, 0, some, kNoWait));
    answers.write = code_of(volume_->write(handle, 0, some, kNoWait));
    answers.write_back =
        code_of(volume_->write(handle, 0, some, {.wait = false, .written_back = true}));
    const IoFlags served{.wait = false, .serve = true};
    answers.served_read = code_of(volume_->read(handle, 0, some, served));
    answers.served_write = code_of(volume_->write(handle, 0, some, served));
    return answers;
  }
  // Before the first page goes; then after the removal.
  std::pair<Answers, Answers> ask_in(RemovalMode mode) {
    std::optional<Answers> inside;
    kernel_.while_dropping = [&](u64 dropped) {
      if (dropped == 0 && !inside) inside = ask();
    };
    EXPECT_TRUE(remove({.mode = mode}));
    EXPECT_TRUE(inside);
    return {inside.value_or(Answers{}), ask()};
  }
  static void expect(const Answers& now, const Answers& wanted) {
    EXPECT_EQ(now.look, wanted.look);
    EXPECT_EQ(now.write, wanted.write);
    EXPECT_EQ(now.write_back, wanted.write_back);
    EXPECT_EQ(now.served_read, wanted.served_read);
    EXPECT_EQ(now.served_write, wanted.served_write);
  }
};

constexpr Errc kDone{}, kNoKey = Errc::no_key, kWait = Errc::would_wait;

TEST_F(VolumeFrontAnswers, freeze_holds_writers_and_takes_what_is_written_back) {
  const auto [inside, after] = ask_in(RemovalMode::freeze);
  expect(inside, {kNoKey, kWait, kDone, kDone, kDone});
  expect(after, {kNoKey, kNoKey, kNoKey, kNoKey, kNoKey});
}

TEST_F(VolumeFrontAnswers, deny_refuses_writers_and_takes_what_is_written_back) {
  const auto [inside, after] = ask_in(RemovalMode::deny);
  expect(inside, {kNoKey, kNoKey, kDone, kDone, kDone});
  expect(after, {kNoKey, kNoKey, kNoKey, kNoKey, kNoKey});
}

TEST_F(VolumeFrontAnswers, suspend_lets_all_wait_but_what_is_written_back) {
  const auto [inside, after] = ask_in(RemovalMode::suspend);
  expect(inside, {kWait, kWait, kDone, kDone, kDone});
  expect(after, {kWait, kWait, kNoKey, kWait, kWait});
}

TEST_F(VolumeFrontAnswers, sync_keeps_writers_until_the_wipe) {
  const auto [inside, after] = ask_in(RemovalMode::sync);
  expect(inside, {kNoKey, kDone, kDone, kDone, kDone});
  expect(after, {kNoKey, kNoKey, kNoKey, kNoKey, kNoKey});
}

TEST_F(VolumeFrontAnswers, hard_takes_nothing_and_counts_it) {
  const auto [inside, after] = ask_in(RemovalMode::hard);
  expect(inside, {kNoKey, kNoKey, kNoKey, kNoKey, kNoKey});
  EXPECT_EQ(report_.bytes_lost, FakeKernel::kPageBytes) << "the one page that was written back";
  ASSERT_EQ(report_.lost.size(), 1U);
  EXPECT_EQ(report_.lost[0].path, "file");
}

// A write-back that the front has let fly before it dropped the page comes when all are dropped.
class VolumeFrontStray : public VolumeFrontAnswers {
 protected:
  // What a page that is written back gets while the removal flushes.
  Errc stray_in(RemovalMode mode) {
    for (u32 file = 0; file < kFiles; ++file)
      if (open_[file]) release(file);
    EXPECT_TRUE(volume_->close());
    auto opened = volume::Volume::open(hook_, options_, system_env());
    EXPECT_TRUE(opened);
    volume_ = std::move(*opened);
    kernel_.mount(volume_.get());
    add_key();
    open_file(kWritten);
    EXPECT_EQ(kernel_.write(kWritten, 0), Errc{});
    const HandleId handle = kernel_.handle(kWritten);
    const std::vector<std::byte> page(FakeKernel::kPageBytes, std::byte{1});
    Errc met = Errc::canceled;
    hook_.at_next(engine::OpKind::write, [&] {
      std::thread([&] {
        met = code_of(volume_->write(handle, FakeKernel::kPageBytes, page,
                                     {.wait = false, .written_back = true}));
      }).join();
    });
    EXPECT_TRUE(remove({.mode = mode}));
    return met;
  }
  HookDevice hook_{device_};
};

TEST_F(VolumeFrontStray, is_refused_and_counted_once_the_front_has_given_its_pages) {
  for (const RemovalMode mode : {RemovalMode::freeze, RemovalMode::deny, RemovalMode::suspend}) {
    SCOPED_TRACE(static_cast<int>(mode));
    EXPECT_EQ(stray_in(mode), Errc::no_key);
    EXPECT_EQ(report_.bytes_lost, FakeKernel::kPageBytes);
    EXPECT_EQ(report_.files_lost, 1U);
    release(kWritten);
  }
}

TEST_F(VolumeFrontStray, is_taken_and_counted_as_lost_where_writers_go_on_until_the_wipe) {
  EXPECT_EQ(stray_in(RemovalMode::sync), Errc{});
  EXPECT_EQ(report_.bytes_lost, FakeKernel::kPageBytes);
}

TEST_F(VolumeFrontPages, an_add_of_the_removers_ends_it_inside_of_the_front) {
  dirty_some();
  Errc wrote{}, looked{}, written_back{};
  kernel_.while_dropping = [&](u64 dropped) {
    if (dropped != 1) return;
    add_key();
    wrote = kernel_.write(kWritten, 5);
    looked = kernel_.look(kWritten, 6);
    written_back = kernel_.store(kWritten, 5);
  };
  const u64 tries = kernel_.tries();
  EXPECT_EQ(code_of(remove({.mode = RemovalMode::freeze})), Errc::canceled);
  EXPECT_EQ(wrote, Errc{});
  EXPECT_EQ(looked, Errc{});
  EXPECT_EQ(written_back, Errc{});
  EXPECT_GE(kernel_.tries(), tries + 2) << "by the add, and at the removal's end";
  EXPECT_EQ(kernel_.write_back(kWritten, 5), Errc{});
  kernel_.while_dropping = {};
  for (const u32 file : {kMapped, kWritten}) release(file);
  expect_counted_exactly();
}

// Nobody waits inside of the volume who would see that the time is up.
TEST_F(VolumeFrontPages, a_worker_keeps_the_deadline_of_a_suspension) {
  EXPECT_TRUE(remove({.mode = RemovalMode::suspend, .deadline_ns = 50 * kMillisecond}));
  const u64 tries = kernel_.tries();
  EXPECT_EQ(kernel_.write(kMapped, 0), Errc::would_wait);
  std::atomic<bool> late{false};
  std::thread watch([&] {
    for (int i = 0; i < 1000 && !late; ++i) pause_for(10 * kMillisecond);
    if (!late) kernel_.stop_waiting();
  });
  kernel_.wait_for_tries(tries);
  late = true;
  watch.join();
  EXPECT_EQ(kernel_.tries(), tries + 1);
  EXPECT_EQ(kernel_.write(kMapped, 0), Errc::no_key);
  EXPECT_EQ(kernel_.look(kMapped, 0), Errc::no_key);
}

TEST_F(VolumeFrontPages, a_deadline_of_a_suspension_needs_a_worker) {
  kernel_.mount(nullptr);
  for (u32 file = 0; file < kFiles; ++file) open_[file] = false;
  options_.inline_writeback = true;
  reopen();
  add_key();
  EXPECT_EQ(code_of(remove({.mode = RemovalMode::suspend, .deadline_ns = 1})), Errc::invalid);
  EXPECT_TRUE(remove({.mode = RemovalMode::suspend}));
}

// The one worker is inside of the removal: who writes back more than may be dirty makes room.
TEST_F(VolumeFrontPages, a_deadline_takes_more_of_the_front_than_may_be_dirty) {
  constexpr u64 kMany = 3 * kMiB / FakeKernel::kPageBytes;
  ASSERT_TRUE(volume_->truncate(kernel_.handle(kMapped), kMany * FakeKernel::kPageBytes));
  for (u64 page = 0; page < kMany; ++page) ASSERT_EQ(kernel_.store(kMapped, page), Errc{});
  EXPECT_TRUE(remove(
      {.mode = RemovalMode::soft, .deadline_ns = 20 * kMillisecond, .then = RemovalMode::freeze}));
  for (int i = 0; i < 3000 && state(id_) != KeyState::absent; ++i) pause_for(10 * kMillisecond);
  ASSERT_EQ(state(id_), KeyState::absent);
  EXPECT_EQ(kernel_.cached_pages(kMapped), 0U);
  for (const u32 file : {kMapped, kWritten}) release(file);
  add_key();
  EXPECT_TRUE(kernel_.lost_pages(kMapped).empty());
}

TEST_F(VolumeFrontPages, what_is_written_back_goes_where_it_says_and_keeps_privileges) {
  put("/vault/append", "0123456789");
  const InodeId inode = *resolve(*volume_, "/vault/append");
  EXPECT_TRUE(volume_->set_mode(inode, 04755));
  const auto handle = volume_->open(kUser, inode, {.write = true, .append = true}, "append");
  ASSERT_TRUE(handle);
  EXPECT_TRUE(volume_->write(*handle, 2, bytes_of("ab"), {.wait = false, .written_back = true}));
  EXPECT_EQ(content("/vault/append"), "01ab456789");
  EXPECT_EQ(volume_->stat(inode)->mode, 04755U);
  close(*handle);
}

}  // namespace
}  // namespace latchkey::tests
