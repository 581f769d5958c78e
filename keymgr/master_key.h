#pragma once
// One master key from its first claim to the wipe of its secret, and until its last cut-off lease
// is given back: the state machine behind keyring.h, which lists its invariants I1 to I5. A key
// that was wiped never comes back: adding it again makes a fresh MasterKey, to which leases that
// were cut off do not belong.
//
//   I6  doomed_: the secret is about to be wiped for good; claims are gone, all gates are stopped,
//       and no add finds this key any more
//   I7  the door is closed only while a removal prepares, and by it; an add that settles how that
//       removal will end (the remover's own, or another user's during a removal of one claim) opens
//       it and the gates at once
//
//   I8  sealed_: the secret is wiped and an add brings it back; uses_ is stopped, gate_ is not, for
//       those inside go on with keys of their own
//
// Thread-safe. Lock: mutex_, taken after Keyring::mutex_. Waits on changed_, on the gates outside
// of mutex_; but a seal waits for uses_ under it, which end without any lock.

#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "base/secret.h"
#include "keymgr/gate.h"
#include "keymgr/keyring.h"

namespace latchkey::keymgr {

class MasterKey {
 public:
  // `too_short`: it can be claimed, and never leased.
  MasterKey(const crypto::KeyId& id, Secret<crypto::HkdfState>&& secret, u32 uid, bool too_short);
  ~MasterKey();  // it is absent by then
  MasterKey(const MasterKey&) = delete;
  MasterKey& operator=(const MasterKey&) = delete;

  const crypto::KeyId& id() const { return id_; }

  // False when this key is absent or about to be: the caller makes a fresh one. Takes `secret` only
  // if the key was sealed; says then which seal that ended.
  bool add(u32 uid, Secret<crypto::HkdfState>& secret, std::optional<u64>* unsealed)
      LK_EXCLUDES(mutex_);
  KeyStatus status(u32 uid) const LK_EXCLUDES(mutex_);

  static Result<void> lease(const std::shared_ptr<MasterKey>& key, u64 owner, Lease& lease);
  // True when the release wiped the key. The caller holds neither a KeyUse nor a GatePass of it.
  static bool release(Lease& lease);

  struct Caller {
    u32 uid = 0;
    bool all_users = false;
    bool anyone_may_retry = false;
  };
  enum class Begun : u8 { gone, no_claim, claim_only, another, refused, preparing };
  // Waits for another removal of this key unless somebody has looked inside. After `preparing` the
  // door is closed and the writers are settled; commit() or rollback() follows.
  Begun begin_removal(const Caller& caller, const RemovalRow& row, Inside inside)
      LK_EXCLUDES(mutex_);
  Begun would_begin(const Caller& caller) const LK_EXCLUDES(mutex_);
  void wait_for_removal() LK_EXCLUDES(mutex_);
  KeyState wait_while_leaving(u64 timeout_ns) LK_EXCLUDES(mutex_);
  u64 removal_number() const LK_EXCLUDES(mutex_);  // of the one that prepares
  std::set<u32> claimers() const LK_EXCLUDES(mutex_);
  bool overtaken() const LK_EXCLUDES(mutex_);
  void stop_page_ins(PageIns how) LK_EXCLUDES(mutex_);
  void stop_from_front() LK_EXCLUDES(mutex_);
  Result<Removal::Committed> commit(const RemovalRow& row) LK_EXCLUDES(mutex_);
  void rollback() LK_EXCLUDES(mutex_);
  std::vector<u64> owners(u64& cursor, u32 count_max) LK_EXCLUDES(mutex_);

  // Cuts off every lease and wipes, whatever the claims: the ring is closing. No removal is under
  // way.
  void remove_now() LK_EXCLUDES(mutex_);

  // enter_use pins the secret for secret_in_use(); false when it is gone or going.
  bool enter_use() { return uses_.enter(); }
  void leave_use() { uses_.leave(); }
  // Only between enter_use and leave_use: the wipe waits for them, so no lock is needed.
  const crypto::HkdfState& secret_in_use() const LK_NO_ANALYSIS { return *secret_; }
  bool cut_off() const { return cut_off_.load(std::memory_order_acquire); }

  Gate& gate() { return gate_; }
  Gate& front_gate() { return front_gate_; }
  PageIns page_ins() const { return page_ins_.load(std::memory_order_acquire); }

 private:
  struct Preparing {
    u32 uid;
    bool all_users;
    bool overtaken;
    u64 number;       // of this removal, among those of the key
    bool was_sealed;  // so nothing is made for another seal
  };

  bool removal_under_way() const LK_REQUIRES(mutex_);
  Begun look_at_claims(const Caller& caller) const LK_REQUIRES(mutex_);
  void drop_claims(u32 uid, bool all_users) LK_REQUIRES(mutex_);
  void seal(u64 number) LK_REQUIRES(mutex_);
  void await_wipe() LK_REQUIRES(mutex_);
  void reopen() LK_REQUIRES(mutex_);
  void end_removal() LK_REQUIRES(mutex_);
  void doom() LK_REQUIRES(mutex_);
  void finish_wipe() LK_EXCLUDES(mutex_);
  void wipe_secret() LK_REQUIRES(mutex_);
  void link(Lease& lease) LK_REQUIRES(mutex_);
  void unlink(Lease& lease) LK_REQUIRES(mutex_);
  Lease* after(u64 cursor) LK_REQUIRES(mutex_);
  void check_invariants() const LK_REQUIRES(mutex_);

  const crypto::KeyId id_;
  const bool too_short_;

  mutable Mutex mutex_;
  KeyState state_ LK_GUARDED_BY(mutex_) = KeyState::present;
  bool doomed_ LK_GUARDED_BY(mutex_) = false;
  bool sealed_ LK_GUARDED_BY(mutex_) = false;
  u64 sealed_by_ LK_GUARDED_BY(mutex_) = 0;  // the number of the removal that sealed it
  u64 removals_ LK_GUARDED_BY(mutex_) = 0;   // that have prepared
  bool door_closed_ LK_GUARDED_BY(mutex_) = false;
  std::optional<Preparing> preparing_ LK_GUARDED_BY(mutex_);
  std::set<u32> claims_ LK_GUARDED_BY(mutex_);
  std::set<u32> former_claims_ LK_GUARDED_BY(mutex_);  // who may retry a removal
  Secret<crypto::HkdfState> secret_ LK_GUARDED_BY(mutex_);

  // Leases in order of their serials. walk_next_ is the first lease after walk_cursor_, kept right
  // by link and unlink, so that one walk in batches costs one step for each lease.
  Lease* first_ LK_GUARDED_BY(mutex_) = nullptr;
  Lease* last_ LK_GUARDED_BY(mutex_) = nullptr;
  u64 leases_ LK_GUARDED_BY(mutex_) = 0;
  u64 last_serial_ LK_GUARDED_BY(mutex_) = 0;
  u64 walk_cursor_ LK_GUARDED_BY(mutex_) = 0;
  Lease* walk_next_ LK_GUARDED_BY(mutex_) = nullptr;

  CondVar changed_;  // with mutex_: preparing_ ended, or state_ changed
  Gate gate_;        // writers; set under mutex_
  Gate front_gate_;  // what comes down from in front of the volume; the same
  Gate uses_;        // derivations; open until doomed_ or sealed_; set under mutex_
  std::atomic<bool> cut_off_{false};               // doomed_, for who holds a lease
  std::atomic<PageIns> page_ins_{PageIns::go_on};  // set under mutex_
};

}  // namespace latchkey::keymgr
