// Goal: who may remove, retry and claim a key, and what sealed and safe do to its state (design 3,
// Claims). Method: each rule by name on a keyring of its own.

#include "tests/support/keyring_fixture.h"

namespace latchkey::keymgr {
namespace {

using tests::arena_holds;
using tests::in_arena;
using tests::kA;
using tests::kB;
using tests::kC;
using tests::kOk;
using tests::kRoot;
using tests::raw_key;
using KeyringClaims = tests::KeyringTest;

// B02 says that anyone may; design 3 leaves it to those who had a claim, and root.
TEST_F(KeyringClaims, former_claimers_and_root_may_go_on_with_an_incomplete_removal) {
  add(kA);
  add(kB);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  EXPECT_TRUE(remove(kA).others_remain);
  EXPECT_EQ(refused(kA), Errc::no_key) << "while it is present a claim is needed";
  EXPECT_EQ(remove(kB).state, KeyState::incompletely_removed);
  EXPECT_EQ(refused(kC), Errc::no_key);
  EXPECT_EQ(refused(kC, true), Errc::permission);
  EXPECT_TRUE(ring_.status(id_, kA).claimed_before);
  EXPECT_FALSE(ring_.status(id_, kC).claimed_before);
  EXPECT_EQ(remove(kB).state, KeyState::incompletely_removed);
  EXPECT_EQ(remove(kRoot).state, KeyState::incompletely_removed);
  EXPECT_EQ(remove(kRoot, true).state, KeyState::incompletely_removed);
  EXPECT_TRUE(KeyUse::begin(open).has_value());
  EXPECT_EQ(remove(kA, false, RemovalMode::hard).state, KeyState::absent);
  EXPECT_TRUE(open.cut_off());
  EXPECT_FALSE(ring_.release(open));
  EXPECT_FALSE(ring_.status(id_, kA).claimed_before) << "forgotten with the key";
}

TEST_F(KeyringClaims, anyone_may_go_on_where_the_kernel_is_to_be_followed) {
  Keyring ring({.anyone_may_retry = true});
  ASSERT_TRUE(ring.add(kA, in_arena(raw_)).has_value());
  Lease open;
  ASSERT_TRUE(ring.lease(id_, 1, open).has_value());
  for (const u32 uid : {kA, kC}) {
    auto start = ring.begin_removal(id_, uid, false, RemovalMode::soft);
    ASSERT_TRUE(start.has_value());
    EXPECT_EQ(start->removal->commit()->state, KeyState::incompletely_removed);
  }
  EXPECT_TRUE(ring.release(open));
}

TEST_F(KeyringClaims, claims_of_one_user_are_bounded_and_a_removal_gives_one_back) {
  Keyring ring({.max_claims_per_uid = 2});
  const auto add_to = [&](u32 uid, u8 key) {
    const auto added = ring.add(uid, in_arena(raw_key(key)));
    return added ? Errc{} : added.error().code;
  };
  EXPECT_EQ(add_to(kA, 1), kOk);
  EXPECT_EQ(add_to(kA, 2), kOk);
  EXPECT_EQ(add_to(kA, 3), Errc::quota);
  EXPECT_EQ(add_to(kA, 1), kOk) << "the claim is there";
  EXPECT_EQ(add_to(kB, 3), kOk);
  EXPECT_EQ(add_to(kA, 3), Errc::quota) << "though the key is present";
  for (u8 key = 1; key < 9; ++key) EXPECT_EQ(add_to(kRoot, key), kOk);
  ASSERT_TRUE(ring.begin_removal(id_, kA, false, RemovalMode::soft).has_value());
  EXPECT_EQ(add_to(kA, 3), kOk);
}

TEST_F(KeyringClaims, sealed_wipes_at_once_and_an_add_brings_the_secret_back_to_those_inside) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  EXPECT_EQ(remove(kA, false, RemovalMode::sealed).state, KeyState::incompletely_removed);
  EXPECT_TRUE(ring_.status(id_, kA).sealed);
  EXPECT_FALSE(arena_holds(needles_.hkdf_inner));
  EXPECT_FALSE(open.cut_off());
  EXPECT_EQ(KeyUse::begin(open).error().code, Errc::no_key);
  EXPECT_TRUE(GatePass::enter(open).has_value()) << "writers go on";
  Lease late;
  EXPECT_EQ(lease(late), Errc::no_key);
  EXPECT_EQ(remove(kA, false, RemovalMode::soft).state, KeyState::incompletely_removed);
  std::optional<u64> unsealed;
  ASSERT_TRUE(ring_.add(kA, in_arena(raw_), &unsealed).has_value());
  EXPECT_EQ(unsealed, 1U);
  EXPECT_TRUE(KeyUse::begin(open).has_value());
  EXPECT_TRUE(arena_holds(needles_.hkdf_inner));
  EXPECT_EQ(remove(kA, false, RemovalMode::sealed).state, KeyState::incompletely_removed);
  EXPECT_EQ(remove(kA, false, RemovalMode::deny).state, KeyState::absent);
  EXPECT_TRUE(open.cut_off());
  EXPECT_FALSE(ring_.release(open));
  add(kA);
  ASSERT_EQ(lease(open), kOk);
  EXPECT_EQ(remove(kA, false, RemovalMode::sealed).state, KeyState::incompletely_removed);
  EXPECT_TRUE(ring_.release(open)) << "the last one out";
  EXPECT_EQ(state(), KeyState::absent);
}

TEST_F(KeyringClaims, safe_refuses_in_the_step_that_would_close_the_door) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  const auto begin_safe = [&](Inside inside) {
    return ring_.begin_removal(id_, kA, false, RemovalMode::safe, inside);
  };
  EXPECT_EQ(begin_safe(Inside::somebody).error().code, Errc::busy);
  Lease late;
  EXPECT_EQ(lease(late), kOk) << "nobody was turned away";
  add(kB);
  const auto claim = begin_safe(Inside::somebody);
  ASSERT_TRUE(claim.has_value());
  EXPECT_TRUE(claim->claim_only) << "who is inside does not matter to a claim";
  const auto first = ring_.begin_removal(id_, kB, false, RemovalMode::soft);
  ASSERT_TRUE(first.has_value());
  const auto second = ring_.begin_removal(id_, kB, false, RemovalMode::safe, Inside::nobody);
  ASSERT_TRUE(second.has_value());
  EXPECT_TRUE(second->another) << "it does not wait under the caller's lock";
  ring_.release(open);
  ring_.release(late);
}

}  // namespace
}  // namespace latchkey::keymgr
