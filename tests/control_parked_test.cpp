// Goal: while a removal holds writers and a device does not answer it, the socket answers who asks
// about the key, takes another removal of it and an add, and all of them end. Method: a volume
// whose device stands still inside of the removal's flush, with a kernel in front that calls
// without waiting; the verbs as clients of the control server.

#include <chrono>
#include <future>

#include "tests/support/control_fixture.h"
#include "tests/support/fake_kernel.h"
#include "tests/support/hook_device.h"

namespace latchkey::tests {
namespace {

using keymgr::KeyState;
using keymgr::RemovalMode;
using mount::Answer;
using mount::Verb;
using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;

class ControlParked : public ControlTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "clients of several uids need root";
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    options_.front = &kernel_;
    ControlTest::SetUp();
    server_.reset();
    id_ = vault();
    put("/vault/file", "text");
    ASSERT_TRUE(volume_->close());
    auto opened = volume::Volume::open(hook_, options_, system_env());
    ASSERT_TRUE(opened);
    volume_ = std::move(*opened);
    kernel_.mount(volume_.get());
    add_key();
    file_ = kernel_.add_file(*volume::resolve(*volume_, "/vault/file"));
    kernel_.open(file_);
    ASSERT_EQ(kernel_.write(file_, 0), Errc{}) << "something to flush";
    serve();
  }
  void TearDown() override {
    if (!volume_) return;
    server_.reset();
    kernel_.release(file_);
    ControlTest::TearDown();
  }

  std::future<Answer> removing(RemovalMode mode) {
    return std::async(std::launch::async,
                      [this, mode] { return ask_as(kAda, removal_of(id_, {.mode = mode})); });
  }
  // A removal whose flush the device keeps until goes_on().
  std::future<Answer> removing_slowly(RemovalMode mode) {
    std::promise<void> inside;
    hook_.at_next(engine::OpKind::write, [&] {
      inside.set_value();
      going_on_.get_future().wait();
    });
    auto removal = removing(mode);
    EXPECT_EQ(inside.get_future().wait_for(20s), std::future_status::ready);
    return removal;
  }
  void goes_on() { going_on_.set_value(); }

  HookDevice hook_{device_};
  FakeKernel kernel_;
  crypto::KeyId id_;
  u32 file_ = 0;
  std::promise<void> going_on_;
};

TEST_F(ControlParked, who_asks_is_answered_and_another_removal_ends_with_the_first) {
  auto freeze = removing_slowly(RemovalMode::freeze);
  EXPECT_EQ(kernel_.write(file_, 1), Errc::would_wait) << "a writer is parked";
  auto deny = removing(RemovalMode::deny);
  for (int i = 0; i < 5; ++i) {
    const volume::KeyReport report = status_as(kAda, id_);
    EXPECT_EQ(report.state, KeyState::present) << "its door is closed, its claim not yet gone";
    EXPECT_EQ(report.holders.size(), 1U);
    EXPECT_EQ(ask_as(kBob, about(Verb::key_list)).done.error, std::nullopt);
    EXPECT_EQ(add_as(kBob, 8).done.error, std::nullopt) << "of another key";
  }
  EXPECT_EQ(freeze.wait_for(0ms), std::future_status::timeout) << "the device stands still";
  goes_on();
  EXPECT_EQ(freeze.get().removal.state, KeyState::absent);
  const Answer second = deny.get();
  EXPECT_EQ(second.done.error, Errc::no_key) << second.done.sentence;
  EXPECT_EQ(kernel_.write(file_, 1), Errc::no_key);
  EXPECT_EQ(status_as(kAda, id_).state, KeyState::absent);
}

TEST_F(ControlParked, an_add_is_answered_at_once_and_ends_it) {
  auto freeze = removing_slowly(RemovalMode::freeze);
  EXPECT_EQ(kernel_.write(file_, 1), Errc::would_wait);
  const u64 tries = kernel_.tries();
  EXPECT_EQ(add_as(kAda, 7).done.error, std::nullopt);
  EXPECT_EQ(status_as(kAda, id_).state, KeyState::present);
  EXPECT_GT(kernel_.tries(), tries) << "who is parked is told";
  EXPECT_EQ(freeze.wait_for(0ms), std::future_status::timeout);
  goes_on();
  EXPECT_EQ(freeze.get().done.error, Errc::canceled);
  EXPECT_EQ(kernel_.write(file_, 1), Errc{});
  EXPECT_EQ(status_as(kAda, id_).state, KeyState::present);
}

// Its writers wait without an end, and no device is slow.
TEST_F(ControlParked, a_suspension_is_asked_about_and_ended_by_each_mode_that_leaves_nothing) {
  for (const RemovalMode mode :
       {RemovalMode::sync, RemovalMode::freeze, RemovalMode::deny, RemovalMode::hard}) {
    SCOPED_TRACE(static_cast<int>(mode));
    ASSERT_EQ(removing(RemovalMode::suspend).get().done.error, std::nullopt);
    EXPECT_EQ(kernel_.write(file_, 1), Errc::would_wait);
    const volume::KeyReport report = status_as(kAda, id_);
    EXPECT_EQ(report.state, KeyState::absent);
    EXPECT_TRUE(report.holders.empty()) << "nobody holds up what is gone";
    const u64 tries = kernel_.tries();
    const Answer removed = removing(mode).get();
    EXPECT_EQ(removed.done.error, std::nullopt) << removed.done.sentence;
    EXPECT_GT(kernel_.tries(), tries) << "who is parked is told";
    EXPECT_EQ(kernel_.write(file_, 1), Errc::no_key);
    EXPECT_EQ(add_as(kAda, 7).done.error, std::nullopt);
    EXPECT_EQ(kernel_.write(file_, 1), Errc{}) << "its handle is as it was";
  }
}

}  // namespace
}  // namespace latchkey::tests
