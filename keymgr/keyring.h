#pragma once
// Master keys in memory: claims by uid, leases of unlocked inodes, the gate that writers pass, and
// the place where the secret is wiped. No data, no disk: an inode is an owner word that nobody here
// reads.
//
//   absent --add--> present --last claim removed--> incompletely removed --last lease--> absent
//                      ^------------------ add ----------------'
//
// Incompletely removed is soft (the secret stays) or sealed (it is gone, and leases stay that never
// use it again: who has one holds keys of his own, own_keys.h). An add brings the secret back.
//
// Invariants (under the key's mutex)
//   I1  the secret is there    <=>  state != absent and it is not sealed
//   I2  claims is not empty     =>  state == present
//   I3  state == incompletely removed  =>  leases > 0 or a removal is between commit and finish
//   I4  leases rises only while state == present and the door is open
//   I5  the secret is wiped in wipe_secret() only, by the thread that made the key absent or sealed
//       it, when no KeyUse is held: a batch in hand finishes first
//
// Lock order: Keyring::mutex_ -> MasterKey::mutex_. No I/O, no derivation under either.
// Sources: fs/crypto/keyring.c (states, two kinds of reference), FS_IOC_*_ENCRYPTION_KEY (errors).

#include <array>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "base/secret.h"
#include "crypto/hkdf.h"
#include "crypto/ids.h"
#include "crypto/names.h"
#include "crypto/values.h"
#include "crypto/xts.h"
#include "keymgr/gate.h"
#include "keymgr/removal_mode.h"
#include "keymgr/suspensions.h"

namespace latchkey::keymgr {

enum class KeyState : u8 { absent, present, incompletely_removed };
std::string_view name_of(KeyState state);  // "incompletely-removed": ecosystem words

struct KeyStatus {
  KeyState state = KeyState::absent;
  u32 claims = 0;
  bool claimed_by_caller = false;
  bool claimed_before = false;  // the caller lost his claim to a removal; until the key is absent
  bool sealed = false;          // incompletely removed, and the secret is gone
  u64 leases = 0;
};

struct KeyringOptions {
  u32 max_claims_per_uid = 200;   // on different keys; root has no limit
  bool anyone_may_retry = false;  // a removal without claims left, as fscrypt lets them
  u32 waiters_max = 1024;         // of suspended keys
  bool short_keys = false;        // 16 bytes will do, as for fscrypt; what is below 32 is no use:
                                  // lease() answers no_key
};

// Reads that fill what is in front of the volume, while a removal empties that.
enum class PageIns : u8 { go_on, wait, no_key };

class Gate;
class MasterKey;

// The right of one inode to use its key. Lives inside the inode's unlocked part; does not move. Not
// thread-safe by itself: the inode's lock serialises lease() and release().
class Lease {
 public:
  Lease() = default;
  ~Lease();  // must have been released
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  bool held() const { return key_ != nullptr; }
  // Of a held one: derived from the key that it is of.
  crypto::KeyId key_id() const;
  // The secret behind it is gone, or its wipe has begun, and not because it was sealed: KeyUse and
  // GatePass answer no_key for good, also when the key is added again. Release it and lease anew.
  bool cut_off() const;
  // Whether a read may fill what is in front of the volume: not without a lease, nor once a removal
  // that prepares has stopped it (Removal::stop_page_ins()). `served`: one that the emptying of
  // that waits for.
  PageIns page_ins(bool served) const;
  // A KeyUse of either is one of the other: the same key, not wiped and added again in between.
  bool same_key(const Lease& other) const { return key_ == other.key_; }

 private:
  friend class Keyring;
  friend class MasterKey;
  friend class KeyUse;
  friend class GatePass;
  std::shared_ptr<MasterKey> key_;
  u64 owner_ = 0;
  u64 serial_ = 0;  // rises with each lease of the key: what cursors compare
  Lease* previous_ = nullptr;
  Lease* next_ = nullptr;
};

// While it lives the secret is not wiped: one batch of derivations. Short; no waiting inside. Its
// end burns the stack and the registers.
class KeyUse {
 public:
  // no_key: the lease is not held, or its key's secret is gone (hard removal).
  static Result<KeyUse> begin(const Lease& lease);
  KeyUse(KeyUse&& other) noexcept;
  KeyUse& operator=(KeyUse&&) = delete;
  ~KeyUse();

  void extent_key(const crypto::Nonce& nonce, crypto::XtsKey& key) const;
  // As many nonces as keys: eight at once cost as much as two.
  void extent_keys(std::span<const crypto::Nonce> nonces, std::span<crypto::XtsKey> keys) const;
  // Not expanded: crypto::kXtsKeyBytes in the arena.
  void raw_extent_key(const crypto::Nonce& nonce, MutableBytes key) const;
  void name_key(const crypto::Nonce& directory_nonce, crypto::NameKey& key) const;
  void value_key(const crypto::Nonce& inode_nonce, crypto::ValueKey& key) const;
  const crypto::HkdfState& state() const;

 private:
  KeyUse() = default;
  std::shared_ptr<MasterKey> key_;
};

// What a writer waits for that met a held gate: until the removal goes on or goes back. It has no
// lock of the inode meanwhile that a flush or an add takes.
class HeldGate {
 public:
  void wait();

 private:
  friend class GatePass;
  std::shared_ptr<MasterKey> key_;
};

// A writer inside its key's gate: between the check that it may write and the mark that its page is
// dirty. Held for a copy into the cache, never across a wait for space, memory or a commit (T3).
class GatePass {
 public:
  // Waits while the gate is held (Writers::hold); no_key when it is stopped or the lease is gone.
  static Result<GatePass> enter(const Lease& lease);
  // Does not wait: busy, and `held` is what to wait for.
  static Result<GatePass> try_enter(const Lease& lease, HeldGate& held);
  // By the gate for what was acknowledged in front of the volume, which stays open while a removal
  // prepares until it has all of that. Never waits; no_key when it is stopped.
  static Result<GatePass> enter_from_front(const Lease& lease);
  GatePass(GatePass&& other) noexcept;
  GatePass& operator=(GatePass&&) = delete;
  ~GatePass();

 private:
  GatePass() = default;
  std::shared_ptr<MasterKey> key_;
  Gate* gate_ = nullptr;  // one of the key's
};

struct RemovalStart;

// A removal between its beginning and its end. While it lives, the door is closed (lease() answers
// no_key), the gate is as the row says, the claim counts and a second removal of that key waits.
// The volume flushes in between. Ends by commit() or rollback(); the destructor rolls back.
class Removal {
 public:
  Removal(Removal&& other) noexcept;
  Removal& operator=(Removal&&) = delete;
  ~Removal();

  const RemovalRow& row() const;
  crypto::KeyId key_id() const;
  // Its number among the removals of the key: no other one's OwnKeys have it, and later ones' are
  // higher.
  u64 number() const { return number_; }
  // Those whose claims it ends, and former ones.
  std::set<u32> claimers() const;
  // The caller's own add has overtaken it: commit() would answer canceled.
  bool overtaken() const;
  // While it prepares, where something is in front of the volume: nothing fills that any more; then
  // nothing comes down from it any more. Both until the removal ends or an add settles how it will.
  void stop_page_ins();
  void stop_from_front();
  // Owner words of leases after `cursor` in list order, at most `count_max`; advances the cursor;
  // empty at the end. Leases taken back meanwhile may be missing or listed.
  std::vector<u64> owners(u64& cursor, u32 count_max) const;

  // Drops the claims and makes the state what the row says: under Stays::master incompletely
  // removed (absent and wiped if no lease is out); under Stays::own_keys the same, but wiped; else
  // absent and wiped, and every lease of the key is cut off. Cannot fail but for
  // canceled, and for claims that other users added meanwhile (others_remain: only the caller's is
  // dropped).
  // Waits for writers in the gate and for KeyUses: the caller holds none, and no lock that one of
  // them takes inside. owners() goes on working after the commit.
  struct Committed {
    bool others_remain = false;
    KeyState state = KeyState::absent;
  };
  Result<Committed> commit();
  void rollback();  // door, gate and claim as before

 private:
  friend class Keyring;
  Removal() = default;
  std::shared_ptr<MasterKey> key_;
  const RemovalRow* row_ = nullptr;
  u64 number_ = 0;
  bool ended_ = false;
};

struct RemovalStart {
  bool claim_only = false;         // other users' claims remain: the caller's is gone, nothing else
  bool another = false;            // is under way, and this call was not to wait for it
  std::optional<Removal> removal;  // else: go on with it
};

// What the caller has looked at, under a lock that he keeps during begin_removal(): so that look
// and door are one step. With it begin_removal() does not wait for another removal.
enum class Inside : u8 { not_looked, nobody, somebody };

class Keyring {
 public:
  explicit Keyring(const KeyringOptions& options = {});
  ~Keyring();  // remove_everything()
  Keyring(const Keyring&) = delete;
  Keyring& operator=(const Keyring&) = delete;

  // `secret` (32 to 64 bytes in the arena) is consumed: the caller's copy is wiped in every case.
  // Adds uid's claim; idempotent. Errors: invalid (size), no_memory, quota (too many claims).
  // Present again from incompletely removed; cut-off inodes take new leases themselves. `unsealed`:
  // the number of the seal that it ended, whose OwnKeys are to go.
  Result<crypto::KeyId> add(u32 uid, SecretBytes&& secret, std::optional<u64>* unsealed = nullptr);
  // The identifier of a secret, which is wiped.
  static Result<crypto::KeyId> identify(SecretBytes&& secret);

  KeyStatus status(const crypto::KeyId& id, u32 uid) const;
  std::vector<crypto::KeyId> list() const;  // of keys that are not absent

  // no_key unless the key is present and no removal's door is closed. `owner` is the caller's word.
  Result<void> lease(const crypto::KeyId& id, u64 owner, Lease& lease);
  // True when this was the last lease of a key that was being removed: it is absent now, wiped.
  bool release(Lease& lease);

  // no_key: absent, or the caller has no claim; in state incompletely removed one who had a claim,
  // and root, may go on (all, if the options say so). permission: all_users without uid 0. busy:
  // the row refuses, because somebody is inside; nothing changed, and nobody was turned away.
  Result<RemovalStart> begin_removal(const crypto::KeyId& id, u32 uid, bool all_users,
                                     RemovalMode mode, Inside inside = Inside::not_looked);
  // What begin_removal() would begin with, now: claim_only or not, or its error. Changes nothing.
  Result<bool> would_remove_claim_only(const crypto::KeyId& id, u32 uid, bool all_users) const;
  // Waits until no removal of the key prepares.
  void wait_for_removal(const crypto::KeyId& id) const;
  // Waits while the key is incompletely removed, and `timeout_ns` at most; may return early.
  // Answers its state.
  KeyState wait_while_leaving(const crypto::KeyId& id, u64 timeout_ns) const;
  // As Removal::owners(), of a key in any state but absent.
  std::vector<u64> owners(const crypto::KeyId& id, u64& cursor, u32 count_max) const;
  // An add ends the suspension of its key; all else is the caller's.
  Suspensions& suspensions() { return suspensions_; }

  // The volume closes: every key turns absent and is wiped, every lease is cut off. No removal is
  // under way.
  void remove_everything() LK_EXCLUDES(mutex_);

 private:
  std::shared_ptr<MasterKey> find(const crypto::KeyId& id) const LK_EXCLUDES(mutex_);
  Result<void> may_claim(const crypto::KeyId& id, u32 uid) const LK_REQUIRES(mutex_);
  const KeyringOptions options_;
  Suspensions suspensions_;
  mutable Mutex mutex_;
  std::unordered_map<crypto::KeyId, std::shared_ptr<MasterKey>, crypto::IdHash> keys_
      LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::keymgr
