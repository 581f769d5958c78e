#pragma once
// A keyring with one key to add, and its verbs with the uninteresting parts checked.

#include <gtest/gtest.h>

#include <utility>

#include "keymgr/keyring.h"
#include "tests/support/keys.h"

namespace latchkey::tests {

inline constexpr u32 kRoot = 0, kA = 1001, kB = 1002, kC = 1003;
inline constexpr Errc kOk{};

class KeyringTest : public testing::Test {
 protected:
  crypto::KeyId add(u32 uid) {
    const auto id = ring_.add(uid, in_arena(raw_));
    EXPECT_TRUE(id.has_value());
    return *id;
  }
  keymgr::KeyState state() const { return ring_.status(id_, kA).state; }
  void expect_status(u32 uid, keymgr::KeyState state, u32 claims, bool own) {
    const keymgr::KeyStatus status = ring_.status(id_, uid);
    EXPECT_EQ(status.state, state);
    EXPECT_EQ(status.claims, claims);
    EXPECT_EQ(status.claimed_by_caller, own);
  }
  Errc lease(keymgr::Lease& lease, u64 owner = 1) {
    const auto result = ring_.lease(id_, owner, lease);
    return result ? Errc{} : result.error().code;
  }
  // The error of a removal that must not begin.
  Errc refused(u32 uid, bool all_users = false,
               keymgr::RemovalMode mode = keymgr::RemovalMode::soft) {
    const auto start = ring_.begin_removal(id_, uid, all_users, mode);
    EXPECT_FALSE(start.has_value());
    return start ? Errc{} : start.error().code;
  }
  keymgr::Removal begin(u32 uid, bool all_users = false,
                        keymgr::RemovalMode mode = keymgr::RemovalMode::soft) {
    auto start = ring_.begin_removal(id_, uid, all_users, mode);
    LK_CHECK(start.has_value() && start->removal.has_value());
    return std::move(*start->removal);
  }
  // A whole removal with nothing to flush.
  keymgr::Removal::Committed remove(u32 uid, bool all_users = false,
                                    keymgr::RemovalMode mode = keymgr::RemovalMode::soft) {
    auto start = ring_.begin_removal(id_, uid, all_users, mode);
    LK_CHECK(start.has_value());
    if (start->claim_only) return {.others_remain = true, .state = keymgr::KeyState::present};
    const auto committed = start->removal->commit();
    LK_CHECK(committed.has_value());
    return *committed;
  }

  const Heap raw_ = raw_key(1);
  const tests::KeyNeedles needles_ = tests::needles_of(raw_);
  const crypto::KeyId id_ = needles_.id;
  keymgr::Keyring ring_;
};

}  // namespace latchkey::tests
