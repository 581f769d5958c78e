// Goal: nobody waits for the dirty limit, for space, for a commit or for another key inside of a
// key's gate or a transaction (design T3): whoever does is stopped, also when nothing would have
// kept him waiting. Method: each call that may wait, inside of each section and after it.

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "base/no_wait.h"
#include "tests/support/keyring_fixture.h"
#include "tests/support/sim_device.h"
#include "tests/support/store_fixture.h"
#include "volume/page_memory.h"

namespace latchkey::tests {
namespace {

using keymgr::GatePass;
using keymgr::KeyUse;
using keymgr::RemovalMode;

class NoWait : public StoreTest {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    make(16 * kMiB, 4096);
    id_ = *ring_.add(kA, in_arena(Heap(64, std::byte{1})));
    other_ = *ring_.add(kA, in_arena(Heap(64, std::byte{2})));
    ASSERT_TRUE(ring_.lease(id_, 1, lease_));
    ASSERT_TRUE(ring_.lease(other_, 2, other_lease_));
  }
  void TearDown() override {
    ring_.release(lease_);
    ring_.release(other_lease_);
  }
  struct Call {
    const char* what;
    std::function<void()> run;
  };
  std::vector<Call> waits() {
    return {
        {"the dirty limit", [this] { memory_.wait_room(0, 1); }},
        {"space", [this] { (void)store_->reserve({0, 1, 10}); }},
        {"a commit", [this] { (void)store_->commit(); }},
        {"a durable transaction", [this] { (void)store_->wait_durable(1); }},
        {"a transaction", [this] { (void)store_->begin({}); }},
        {"another key's gate", [this] { (void)GatePass::enter(other_lease_); }},
        {"another key's removal",
         [this] { (void)ring_.begin_removal(other_, kA, false, RemovalMode::soft); }},
    };
  }
  void expect_each_stops() {
    for (const Call& call : waits()) {
      SCOPED_TRACE(call.what);
      EXPECT_DEATH(call.run(), "a wait inside of a key's gate or a transaction");
    }
  }

  volume::PageMemory memory_{16};
  keymgr::Keyring ring_;
  crypto::KeyId id_, other_;
  keymgr::Lease lease_, other_lease_;
};

using NoWaitDeathTest = NoWait;

TEST_F(NoWaitDeathTest, in_the_gate_of_a_key) {
  const auto pass = GatePass::enter(lease_);
  ASSERT_TRUE(pass);
  expect_each_stops();
}

TEST_F(NoWaitDeathTest, in_a_use_of_a_key) {
  const auto use = KeyUse::begin(lease_);
  ASSERT_TRUE(use);
  expect_each_stops();
}

TEST_F(NoWaitDeathTest, with_a_view_or_a_transaction) {
  {
    const engine::View view = store_->view();
    expect_each_stops();
  }
  const auto transaction = store_->begin({});
  ASSERT_TRUE(transaction);
  expect_each_stops();
}

TEST_F(NoWait, outside_of_all_everybody_may_wait) {
  {
    auto pass = GatePass::enter(lease_);
    const GatePass moved = std::move(*pass);
    EXPECT_EQ(no_wait_depth, 1U);
    auto use = KeyUse::begin(lease_);
    const KeyUse moved_use = std::move(*use);
    const engine::View view = store_->view();
    EXPECT_EQ(no_wait_depth, 3U);
  }
  {
    auto transaction = store_->begin({});
    const engine::Transaction moved = std::move(*transaction);
    EXPECT_EQ(no_wait_depth, 1U);
  }
  EXPECT_EQ(no_wait_depth, 0U);
  for (const Call& call : waits()) call.run();
  EXPECT_EQ(no_wait_depth, 0U);
}

}  // namespace
}  // namespace latchkey::tests
