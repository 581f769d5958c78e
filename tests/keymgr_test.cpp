// Keyring, claims, leases and removal: every transition of the state machine in keyring.h. Threads,
// the gate and the slots have test programs of their own.

#include <gtest/gtest.h>

#include "base/hex.h"
#include "keymgr/keyring.h"
#include "tests/support/keyring_fixture.h"

namespace latchkey::keymgr {
namespace {

using tests::arena_holds;
using tests::Heap;
using tests::in_arena;
using tests::kA;
using tests::kB;
using tests::kC;
using tests::KeyringTest;
using tests::kOk;
using tests::kRoot;
using tests::raw_key;

TEST(RemovalRows, are_the_table_of_the_design) {
  ASSERT_EQ(removal_rows().size(), 8u);
  struct Expected {
    std::string_view name;
    bool refuse, claim_first;
    Writers writers;
    Dirty dirty;
    Stays stays;
    LaterIo later;
    bool may_lose;
  };
  using enum Dirty;
  const Expected table[] = {
      {"soft", false, true, Writers::keep, flush_busy_later, Stays::master, LaterIo::succeeds,
       false},
      {"sealed", false, false, Writers::keep, flush_busy_later, Stays::own_keys, LaterIo::succeeds,
       false},
      {"safe", true, false, Writers::hold, flush, Stays::nothing, LaterIo::no_key, false},
      {"sync", false, false, Writers::keep, flush, Stays::nothing, LaterIo::no_key, true},
      {"freeze", false, false, Writers::hold, flush, Stays::nothing, LaterIo::no_key, false},
      {"deny", false, false, Writers::stop, flush, Stays::nothing, LaterIo::no_key, false},
      {"hard", false, true, Writers::stop, drop, Stays::nothing, LaterIo::no_key, true},
      {"suspend", false, false, Writers::hold, flush, Stays::nothing, LaterIo::waits, false},
  };
  for (std::size_t i = 0; i < 8; ++i) {
    const RemovalRow& row = removal_rows()[i];
    const Expected& e = table[i];
    SCOPED_TRACE(e.name);
    EXPECT_EQ(row.name, e.name);
    EXPECT_EQ(static_cast<std::size_t>(row.mode), i);
    EXPECT_EQ(&removal_row(row.mode), &row);
    EXPECT_EQ(parse_removal_mode(e.name), row.mode);
    EXPECT_EQ(row.refuse_when_busy, e.refuse);
    EXPECT_EQ(row.claim_first, e.claim_first);
    EXPECT_EQ(row.writers, e.writers);
    EXPECT_EQ(row.dirty, e.dirty);
    EXPECT_EQ(row.stays, e.stays);
    EXPECT_EQ(row.later_io, e.later);
    EXPECT_EQ(row.may_lose, e.may_lose);
  }
  EXPECT_FALSE(parse_removal_mode("Soft").has_value());
  EXPECT_FALSE(parse_removal_mode("").has_value());
}

TEST_F(KeyringTest, identifiers_are_those_of_the_kernel) {
  // fscrypt-facts A7: the first was seen from a real kernel, the second is xfstests' own.
  struct Case {
    int first, size;
    std::string_view id;
  };
  const Case cases[] = {{0, 64, "8699c2c53707405da5aba5ae4d8583c0"},
                        {1, 64, "69b2f6edeee720cce0577937eb8a6751"},
                        {0, 32, "37d7d76a59400083289c185526730d34"}};
  for (const auto& [first, size, text] : cases) {
    Heap raw(size);
    for (int i = 0; i < size; ++i) raw[i] = std::byte(first + i);
    const auto identified = Keyring::identify(in_arena(raw));
    const auto added = ring_.add(kA, in_arena(raw));
    ASSERT_TRUE(identified && added);
    EXPECT_EQ(to_hex(identified->bytes), text);
    EXPECT_EQ(*added, *identified);
  }
  EXPECT_EQ(ring_.list().size(), 3u);
}

TEST_F(KeyringTest, sizes_outside_32_to_64_are_invalid_and_wiped_all_the_same) {
  for (const std::size_t size : {1, 16, 31, 32, 33, 64, 65, 128}) {
    SCOPED_TRACE(size);
    const Heap raw = raw_key(77 + size, size);
    SecretBytes secret = in_arena(raw);
    if (size >= 16) {
      EXPECT_TRUE(arena_holds(raw));
    }
    const auto result = ring_.add(kA, std::move(secret));
    const bool good = size >= 32 && size <= 64;
    EXPECT_EQ(result.has_value(), good);
    if (!good) {
      EXPECT_EQ(result.error().code, Errc::invalid);
    }
    EXPECT_TRUE(secret.empty());
    if (size >= 16) {
      EXPECT_FALSE(arena_holds(raw));
    }
  }
  EXPECT_EQ(ring_.add(kA, SecretBytes()).error().code, Errc::invalid);
  EXPECT_EQ(Keyring::identify(SecretBytes()).error().code, Errc::invalid);
}

TEST_F(KeyringTest, absent_key) {
  expect_status(kA, KeyState::absent, 0, false);
  Lease lease_1;
  EXPECT_EQ(lease(lease_1), Errc::no_key);
  EXPECT_EQ(refused(kA), Errc::no_key);
  EXPECT_EQ(refused(kRoot), Errc::no_key);
  EXPECT_EQ(refused(kRoot, true), Errc::no_key);
  EXPECT_EQ(refused(kA, true), Errc::permission);  // looked at first, as the kernel does (V03 4)
  EXPECT_EQ(KeyUse::begin(lease_1).error().code, Errc::no_key);
  EXPECT_EQ(GatePass::enter(lease_1).error().code, Errc::no_key);
  EXPECT_TRUE(ring_.list().empty());
}

// C01 to C06 and C10 of kernel-keys: claims by uid, and two adds are one claim.
TEST_F(KeyringTest, claims_are_a_set_of_uids) {
  EXPECT_EQ(add(kA), id_);
  EXPECT_EQ(add(kA), id_);
  expect_status(kA, KeyState::present, 1, true);
  expect_status(kB, KeyState::present, 1, false);
  add(kB);
  expect_status(kC, KeyState::present, 2, false);
  EXPECT_EQ(refused(kC), Errc::no_key);
  EXPECT_EQ(refused(kRoot), Errc::no_key);  // root without a claim is just another uid
  EXPECT_TRUE(remove(kA).others_remain);
  expect_status(kA, KeyState::present, 1, false);
  expect_status(kB, KeyState::present, 1, true);
  EXPECT_EQ(refused(kA), Errc::no_key);
  EXPECT_EQ(remove(kB).state, KeyState::absent);
  expect_status(kB, KeyState::absent, 0, false);
  EXPECT_EQ(refused(kB), Errc::no_key);
}

TEST_F(KeyringTest, removing_one_claim_of_several_prepares_nothing) {
  add(kA);
  add(kB);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  const auto start = ring_.begin_removal(id_, kA, false, RemovalMode::hard);
  ASSERT_TRUE(start.has_value());
  EXPECT_TRUE(start->claim_only);
  EXPECT_FALSE(start->removal.has_value());
  EXPECT_TRUE(KeyUse::begin(open).has_value());
  EXPECT_TRUE(GatePass::enter(open).has_value());
  Lease another;
  EXPECT_EQ(lease(another), kOk);
  EXPECT_FALSE(ring_.release(another));
  EXPECT_FALSE(ring_.release(open));
}

TEST_F(KeyringTest, all_users_is_roots_and_drops_every_claim) {
  add(kA);
  add(kB);
  EXPECT_EQ(refused(kA, true), Errc::permission);
  const auto committed = remove(kRoot, true);
  EXPECT_FALSE(committed.others_remain);
  EXPECT_EQ(committed.state, KeyState::absent);
  expect_status(kA, KeyState::absent, 0, false);
}

TEST_F(KeyringTest, soft_keeps_the_secret_until_the_last_lease) {
  add(kA);
  Lease one, two;
  ASSERT_EQ(lease(one), kOk);
  ASSERT_EQ(lease(two), kOk);
  EXPECT_EQ(ring_.status(id_, kA).leases, 2u);
  const auto committed = remove(kA);
  EXPECT_EQ(committed.state, KeyState::incompletely_removed);
  EXPECT_FALSE(committed.others_remain);
  expect_status(kA, KeyState::incompletely_removed, 0, false);
  EXPECT_EQ(name_of(state()), "incompletely-removed");
  EXPECT_EQ(ring_.list().size(), 1u);

  Lease late;
  EXPECT_EQ(lease(late), Errc::no_key);
  EXPECT_TRUE(KeyUse::begin(one).has_value());
  EXPECT_TRUE(GatePass::enter(one).has_value());
  EXPECT_FALSE(one.cut_off());

  EXPECT_FALSE(ring_.release(one));
  EXPECT_EQ(state(), KeyState::incompletely_removed);
  EXPECT_TRUE(KeyUse::begin(two).has_value());
  EXPECT_TRUE(ring_.release(two));
  EXPECT_EQ(state(), KeyState::absent);
  EXPECT_TRUE(ring_.list().empty());
  EXPECT_EQ(KeyUse::begin(two).error().code, Errc::no_key);
}

TEST_F(KeyringTest, soft_without_a_lease_is_absent_at_once) {
  add(kA);
  Lease gone;
  ASSERT_EQ(lease(gone), kOk);
  EXPECT_FALSE(ring_.release(gone));  // no removal under way: nothing is wiped
  EXPECT_EQ(state(), KeyState::present);
  EXPECT_EQ(remove(kA).state, KeyState::absent);
}

TEST_F(KeyringTest, an_add_makes_an_incompletely_removed_key_present_and_leases_never_notice) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  remove(kA);
  add(kB);  // B04: another user's add does the same
  expect_status(kA, KeyState::present, 1, false);
  EXPECT_FALSE(open.cut_off());
  EXPECT_TRUE(KeyUse::begin(open).has_value());
  Lease late;
  EXPECT_EQ(lease(late), kOk);
  EXPECT_EQ(ring_.status(id_, kA).leases, 2u);
  EXPECT_EQ(refused(kA), Errc::no_key);
  EXPECT_FALSE(ring_.release(open));
  EXPECT_FALSE(ring_.release(late));
  expect_status(kB, KeyState::present, 1, true);
}

TEST_F(KeyringTest, hard_cuts_off_every_lease_for_good) {
  add(kA);
  Lease old;
  ASSERT_EQ(lease(old), kOk);
  EXPECT_EQ(remove(kA, false, RemovalMode::hard).state, KeyState::absent);
  EXPECT_TRUE(old.held());
  EXPECT_TRUE(old.cut_off());
  EXPECT_EQ(KeyUse::begin(old).error().code, Errc::no_key);
  EXPECT_EQ(GatePass::enter(old).error().code, Errc::no_key);
  expect_status(kA, KeyState::absent, 0, false);
  EXPECT_EQ(ring_.status(id_, kA).leases, 0u);

  add(kA);
  Lease fresh;
  ASSERT_EQ(lease(fresh), kOk);
  EXPECT_EQ(ring_.status(id_, kA).leases, 1u);
  EXPECT_EQ(KeyUse::begin(old).error().code, Errc::no_key);
  EXPECT_EQ(GatePass::enter(old).error().code, Errc::no_key);
  EXPECT_TRUE(KeyUse::begin(fresh).has_value());
  EXPECT_FALSE(ring_.release(old));
  EXPECT_EQ(ring_.status(id_, kA).leases, 1u);
  ASSERT_EQ(lease(old), kOk);  // its owner leases again
  EXPECT_TRUE(KeyUse::begin(old).has_value());
  ring_.release(old);
  ring_.release(fresh);
}

TEST_F(KeyringTest, releasing_cut_off_leases_never_finishes_the_removal_of_their_successor) {
  add(kA);
  Lease old;
  ASSERT_EQ(lease(old), kOk);
  remove(kA, false, RemovalMode::hard);
  add(kA);
  Lease fresh;
  ASSERT_EQ(lease(fresh), kOk);
  EXPECT_EQ(remove(kA).state, KeyState::incompletely_removed);
  EXPECT_FALSE(ring_.release(old));
  EXPECT_EQ(state(), KeyState::incompletely_removed);
  EXPECT_TRUE(ring_.release(fresh));
}

TEST_F(KeyringTest, while_a_removal_prepares_the_key_counts_as_present_and_the_door_is_closed) {
  for (const RemovalMode mode : {RemovalMode::soft, RemovalMode::hard}) {
    SCOPED_TRACE(removal_row(mode).name);
    add(kA);
    Lease open, late;
    ASSERT_EQ(lease(open), kOk);
    {
      Removal removal = begin(kA, false, mode);
      EXPECT_EQ(removal.key_id(), id_);
      EXPECT_EQ(removal.row().mode, mode);
      EXPECT_FALSE(removal.overtaken());
      expect_status(kA, KeyState::present, 1, true);
      EXPECT_EQ(lease(late), Errc::no_key);
      EXPECT_TRUE(KeyUse::begin(open).has_value());  // the flush needs it
      EXPECT_EQ(GatePass::enter(open).has_value(), mode == RemovalMode::soft);
      if (mode == RemovalMode::soft) removal.rollback();
    }  // the destructor rolls back
    EXPECT_EQ(lease(late), kOk);
    EXPECT_TRUE(GatePass::enter(open).has_value());
    expect_status(kA, KeyState::present, 1, true);
    EXPECT_FALSE(ring_.release(open));
    EXPECT_FALSE(ring_.release(late));
  }
}

TEST_F(KeyringTest, an_add_by_the_caller_overtakes_its_removal) {
  for (const RemovalMode mode : {RemovalMode::soft, RemovalMode::hard}) {
    SCOPED_TRACE(removal_row(mode).name);
    add(kA);
    Lease open, late;
    ASSERT_EQ(lease(open), kOk);
    Removal removal = begin(kA, false, mode);
    add(kA);
    EXPECT_TRUE(removal.overtaken());
    EXPECT_EQ(lease(late), kOk);  // at once, not only when the removal has noticed
    EXPECT_TRUE(GatePass::enter(open).has_value());
    const auto committed = removal.commit();
    ASSERT_FALSE(committed.has_value());
    EXPECT_EQ(committed.error().code, Errc::canceled);
    EXPECT_FALSE(removal.overtaken());
    removal.rollback();  // it has ended: nothing to do
    expect_status(kA, KeyState::present, 1, true);
    EXPECT_TRUE(KeyUse::begin(open).has_value());
    ring_.release(open);
    ring_.release(late);
  }
}

TEST_F(KeyringTest, root_overtakes_its_removal_of_all_claims) {
  add(kA);
  Removal removal = begin(kRoot, true);
  add(kRoot);
  EXPECT_EQ(removal.commit().error().code, Errc::canceled);
  expect_status(kRoot, KeyState::present, 2, true);
}

TEST_F(KeyringTest, an_add_by_another_user_leaves_the_callers_claim_dropped_and_the_key_present) {
  for (const RemovalMode mode : {RemovalMode::soft, RemovalMode::hard}) {
    SCOPED_TRACE(removal_row(mode).name);
    add(kA);
    Lease open, late;
    ASSERT_EQ(lease(open), kOk);
    Removal removal = begin(kA, false, mode);
    add(kB);
    EXPECT_FALSE(removal.overtaken());
    EXPECT_EQ(lease(late), kOk);  // B's claim settles how the removal ends
    expect_status(kA, KeyState::present, 2, true);
    const auto committed = removal.commit();
    ASSERT_TRUE(committed.has_value());
    EXPECT_TRUE(committed->others_remain);
    EXPECT_EQ(committed->state, KeyState::present);
    expect_status(kA, KeyState::present, 1, false);
    EXPECT_TRUE(KeyUse::begin(open).has_value());
    EXPECT_TRUE(GatePass::enter(open).has_value());
    ring_.release(open);
    ring_.release(late);
    EXPECT_EQ(remove(kB).state, KeyState::absent);
  }
}

TEST_F(KeyringTest, all_users_drops_claims_made_while_it_prepared) {
  add(kA);
  Removal removal = begin(kRoot, true);
  add(kB);
  Lease late;
  EXPECT_EQ(lease(late), Errc::no_key);
  const auto committed = removal.commit();
  ASSERT_TRUE(committed.has_value());
  EXPECT_FALSE(committed->others_remain);
  expect_status(kB, KeyState::absent, 0, false);
}

TEST_F(KeyringTest, the_last_lease_may_go_while_a_retry_prepares) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  remove(kA);
  Removal retry = begin(kA);
  EXPECT_TRUE(ring_.release(open));
  EXPECT_EQ(state(), KeyState::absent);
  const auto committed = retry.commit();
  ASSERT_TRUE(committed.has_value());
  EXPECT_EQ(committed->state, KeyState::absent);
  add(kA);
  EXPECT_EQ(state(), KeyState::present);
}

TEST_F(KeyringTest, a_retry_that_rolls_back_leaves_the_key_incompletely_removed) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  remove(kA);
  begin(kA, false, RemovalMode::hard).rollback();
  EXPECT_EQ(state(), KeyState::incompletely_removed);
  EXPECT_TRUE(GatePass::enter(open).has_value());
  EXPECT_TRUE(ring_.release(open));
}

TEST_F(KeyringTest, owners_are_listed_in_batches_and_survive_releases_between_them) {
  add(kA);
  std::vector<Lease> leases(100);
  for (u64 i = 0; i < leases.size(); ++i) ASSERT_EQ(lease(leases[i], 1000 + i), kOk);
  Removal removal = begin(kA);
  u64 cursor = 0, other_cursor = 0;
  EXPECT_EQ(removal.owners(cursor, 3), (std::vector<u64>{1000, 1001, 1002}));
  ring_.release(leases[0]);   // already listed
  ring_.release(leases[3]);   // next to be listed
  ring_.release(leases[50]);  // later
  EXPECT_EQ(removal.owners(cursor, 2), (std::vector<u64>{1004, 1005}));
  // A second walk of its own does not disturb the first.
  EXPECT_EQ(removal.owners(other_cursor, 2), (std::vector<u64>{1001, 1002}));
  EXPECT_EQ(removal.owners(cursor, 1), (std::vector<u64>{1006}));
  ASSERT_TRUE(removal.commit().has_value());  // the list outlives the commit
  std::vector<u64> rest;
  for (;;) {
    const auto batch = removal.owners(cursor, 7);
    if (batch.empty()) break;
    rest.insert(rest.end(), batch.begin(), batch.end());
  }
  std::vector<u64> expected;
  for (u64 i = 7; i < 100; ++i)
    if (i != 50) expected.push_back(1000 + i);
  EXPECT_EQ(rest, expected);
  EXPECT_TRUE(removal.owners(cursor, 7).empty());
  u64 wiped = 0;
  for (Lease& l : leases)
    if (l.held()) wiped += ring_.release(l);
  EXPECT_EQ(wiped, 1u);
}

TEST_F(KeyringTest, a_lease_taken_after_a_walk_ended_is_listed_by_its_cursor) {
  add(kA);
  Lease one, two;
  ASSERT_EQ(lease(one, 1), kOk);
  Removal removal = begin(kA);
  u64 cursor = 0;
  EXPECT_EQ(removal.owners(cursor, 8).size(), 1u);
  EXPECT_TRUE(removal.owners(cursor, 8).empty());
  add(kB);  // opens the door again
  ASSERT_EQ(lease(two, 2), kOk);
  EXPECT_EQ(removal.owners(cursor, 8), (std::vector<u64>{2}));
  removal.rollback();
  ring_.release(one);
  ring_.release(two);
}

TEST_F(KeyringTest, keys_do_not_know_each_other) {
  add(kA);
  const auto other = ring_.add(kA, in_arena(raw_key(2)));
  ASSERT_TRUE(other.has_value());
  EXPECT_EQ(ring_.list().size(), 2u);
  EXPECT_TRUE(std::ranges::is_sorted(ring_.list()));
  remove(kA, false, RemovalMode::hard);
  EXPECT_EQ(ring_.status(*other, kA).state, KeyState::present);
  EXPECT_EQ(ring_.list(), std::vector<crypto::KeyId>{*other});
}

TEST_F(KeyringTest, derivations_are_those_of_crypto) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  {
    const auto use = KeyUse::begin(open);
    ASSERT_TRUE(use.has_value());
    auto key = Secret<crypto::XtsKey>::create();
    auto names = Secret<crypto::NameKey>::create();
    ASSERT_TRUE(key && names);
    use->extent_key(tests::nonce_of(5), **key);
    EXPECT_TRUE(
        std::ranges::equal((*key)->encrypt, tests::schedule_of(raw_, tests::nonce_of(5)).encrypt));
    use->name_key(tests::nonce_of(6), **names);
    auto expected = Secret<crypto::NameKey>::create();
    ASSERT_TRUE(expected.has_value());
    crypto::derive_name_key(use->state(), tests::nonce_of(6), **expected);
    EXPECT_EQ((*names)->encrypt, (*expected)->encrypt);
  }
  ring_.release(open);
}

TEST_F(KeyringTest, closing_the_ring_wipes_everything_and_cuts_off_leases) {
  add(kA);
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  EXPECT_TRUE(arena_holds(needles_.hkdf_inner));
  ring_.remove_everything();
  EXPECT_FALSE(arena_holds(needles_.hkdf_inner));
  EXPECT_EQ(state(), KeyState::absent);
  EXPECT_TRUE(open.cut_off());
  EXPECT_FALSE(ring_.release(open));
}

// The arena is scanned with plain loads; every needle is first seen where it must be.
class ArenaScan : public KeyringTest, public testing::WithParamInterface<RemovalMode> {};

TEST_P(ArenaScan, an_absent_key_leaves_no_byte) {
  EXPECT_FALSE(arena_holds(needles_.master) || arena_holds(needles_.hkdf_inner) ||
               arena_holds(needles_.hkdf_outer));
  {
    SecretBytes secret = in_arena(raw_);
    EXPECT_TRUE(arena_holds(needles_.master));
    ASSERT_TRUE(ring_.add(kA, std::move(secret)).has_value());
  }
  EXPECT_FALSE(arena_holds(needles_.master));
  EXPECT_TRUE(arena_holds(needles_.hkdf_inner));
  EXPECT_TRUE(arena_holds(needles_.hkdf_outer));

  const auto schedule = tests::schedule_of(raw_, tests::nonce_of(9));
  EXPECT_FALSE(arena_holds(schedule.encrypt) || arena_holds(schedule.tweak));
  Lease open;
  ASSERT_EQ(lease(open), kOk);
  auto key = Secret<crypto::XtsKey>::create();
  ASSERT_TRUE(key.has_value());
  KeyUse::begin(open)->extent_key(tests::nonce_of(9), **key);
  EXPECT_TRUE(arena_holds(schedule.encrypt));
  EXPECT_TRUE(arena_holds(schedule.tweak));
  key->reset();
  EXPECT_FALSE(arena_holds(schedule.encrypt) || arena_holds(schedule.tweak));

  EXPECT_TRUE(arena_holds(needles_.hkdf_inner));
  remove(kA, false, GetParam());
  const bool soft = GetParam() == RemovalMode::soft;
  EXPECT_EQ(arena_holds(needles_.hkdf_inner), soft);
  EXPECT_EQ(ring_.release(open), soft);
  EXPECT_EQ(state(), KeyState::absent);
  EXPECT_FALSE(arena_holds(needles_.hkdf_inner) || arena_holds(needles_.hkdf_outer));
}

TEST_P(ArenaScan, an_add_of_a_key_that_is_there_leaves_one_copy_that_dies_with_it) {
  add(kA);
  add(kB);
  ASSERT_TRUE(Keyring::identify(in_arena(raw_)).has_value());
  EXPECT_TRUE(arena_holds(needles_.hkdf_inner));
  remove(kA, false, GetParam());
  EXPECT_TRUE(arena_holds(needles_.hkdf_inner));
  remove(kB, false, GetParam());
  EXPECT_FALSE(arena_holds(needles_.hkdf_inner) || arena_holds(needles_.master));
}

INSTANTIATE_TEST_SUITE_P(Modes, ArenaScan, testing::Values(RemovalMode::soft, RemovalMode::hard),
                         [](const auto& mode) {
                           return std::string(removal_row(mode.param).name);
                         });

TEST(LeaseDeathTest, a_lease_that_dies_held_stops_the_process) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Keyring ring;
        const auto id = ring.add(kA, in_arena(raw_key(3)));
        Lease lost;
        (void)ring.lease(*id, 1, lost);
      },
      "without being released");
}

}  // namespace
}  // namespace latchkey::keymgr
