#pragma once
// Master keys in memory: claims by uid, leases of unlocked inodes, the gate that writers pass, and
// the place where the secret is wiped. No data, no disk: an inode is an owner word that nobody here
// reads.
//
//   absent --add--> present --last claim removed--> incompletely removed --last lease--> absent
//                      ^------------------ add ----------------'
//
// Invariants (under the key's mutex)
//   I1  the secret is there    <=>  state != absent
//   I2  claims is not empty     =>  state == present
//   I3  state == incompletely removed  =>  leases > 0 or a removal is between commit and finish
//   I4  leases rises only while state == present and the door is open
//   I5  the secret is wiped in wipe_secret() only, by the thread that made the key absent, when no
//       KeyUse is held: a batch in hand finishes first
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
#include "keymgr/removal_mode.h"

namespace latchkey::keymgr {

enum class KeyState : u8 { absent, present, incompletely_removed };
std::string_view name_of(KeyState state);  // "incompletely-removed": ecosystem words

struct KeyStatus {
  KeyState state = KeyState::absent;
  u32 claims = 0;
  bool claimed_by_caller = false;
  u64 leases = 0;
};

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
  // The secret behind it is gone, or its wipe has begun: KeyUse and GatePass answer no_key for
  // good, also when the key is added again. Release it and lease anew.
  bool cut_off() const;
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
  void name_key(const crypto::Nonce& directory_nonce, crypto::NameKey& key) const;
  void value_key(const crypto::Nonce& inode_nonce, crypto::ValueKey& key) const;
  const crypto::HkdfState& state() const;

 private:
  KeyUse() = default;
  std::shared_ptr<MasterKey> key_;
};

// A writer inside its key's gate: between the check that it may write and the mark that its page is
// dirty. Held for a copy into the cache, never across a wait for space, memory or a commit (T3).
class GatePass {
 public:
  // Waits while the gate is held (Writers::hold); no_key when it is stopped or the lease is gone.
  static Result<GatePass> enter(const Lease& lease);
  GatePass(GatePass&& other) noexcept;
  GatePass& operator=(GatePass&&) = delete;
  ~GatePass();

 private:
  GatePass() = default;
  std::shared_ptr<MasterKey> key_;
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
  // The caller's own add has overtaken it: commit() would answer canceled.
  bool overtaken() const;
  // Owner words of leases after `cursor` in list order, at most `count_max`; advances the cursor;
  // empty at the end. Leases taken back meanwhile may be missing or listed.
  std::vector<u64> owners(u64& cursor, u32 count_max) const;

  // Drops the claims and makes the state what the row says: under Stays::master incompletely
  // removed (absent and wiped if no lease is out), else absent and wiped, and every lease of the
  // key is cut off: held() turns false for the purposes of KeyUse and GatePass. Cannot fail but for
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
  bool ended_ = false;
};

struct RemovalStart {
  bool claim_only = false;         // other users' claims remain: the caller's is gone, nothing else
  std::optional<Removal> removal;  // else: go on with it
};

class Keyring {
 public:
  Keyring() = default;
  ~Keyring();  // remove_everything()
  Keyring(const Keyring&) = delete;
  Keyring& operator=(const Keyring&) = delete;

  // `secret` (32 to 64 bytes in the arena) is consumed: the caller's copy is wiped in every case.
  // Adds uid's claim; idempotent. Errors: invalid (size), no_memory. Present again from
  // incompletely removed; cut-off inodes take new leases themselves.
  Result<crypto::KeyId> add(u32 uid, SecretBytes&& secret);
  // The identifier of a secret, which is wiped.
  static Result<crypto::KeyId> identify(SecretBytes&& secret);

  KeyStatus status(const crypto::KeyId& id, u32 uid) const;
  std::vector<crypto::KeyId> list() const;  // of keys that are not absent

  // no_key unless the key is present and no removal's door is closed. `owner` is the caller's word.
  Result<void> lease(const crypto::KeyId& id, u64 owner, Lease& lease);
  // True when this was the last lease of a key that was being removed: it is absent now, wiped.
  bool release(Lease& lease);

  // no_key: absent, or the caller has no claim (while present). permission: all_users without uid
  // 0. unsupported: a row that is left for later. In state incompletely removed any caller may go
  // on.
  Result<RemovalStart> begin_removal(const crypto::KeyId& id, u32 uid, bool all_users,
                                     RemovalMode mode);

  // The volume closes: every key turns absent and is wiped, every lease is cut off. No removal is
  // under way.
  void remove_everything() LK_EXCLUDES(mutex_);

 private:
  std::shared_ptr<MasterKey> find(const crypto::KeyId& id) const LK_EXCLUDES(mutex_);
  mutable Mutex mutex_;
  std::unordered_map<crypto::KeyId, std::shared_ptr<MasterKey>, crypto::IdHash> keys_
      LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::keymgr
