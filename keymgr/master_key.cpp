#include "keymgr/master_key.h"

#include <utility>

#include "base/check.h"

namespace latchkey::keymgr {

MasterKey::MasterKey(const crypto::KeyId& id, Secret<crypto::HkdfState>&& secret, u32 uid,
                     bool too_short)
    : id_(id), too_short_(too_short), claims_{uid}, secret_(std::move(secret)) {
  Lock lock(mutex_);
  check_invariants();
}

MasterKey::~MasterKey() {
  Lock lock(mutex_);
  LK_CHECK(state_ == KeyState::absent && leases_ == 0 && !preparing_);
}

bool MasterKey::add(u32 uid, Secret<crypto::HkdfState>& secret, std::optional<u64>* unsealed) {
  Lock lock(mutex_);
  if (doomed_) return false;
  claims_.insert(uid);
  if (sealed_) {
    secret_ = std::move(secret);
    sealed_ = false;
    uses_.set(Gate::State::open);
    if (unsealed != nullptr) *unsealed = sealed_by_;
  }
  if (state_ != KeyState::present) changed_.notify_all();
  state_ = KeyState::present;
  if (preparing_) {
    if (uid == preparing_->uid) preparing_->overtaken = true;
    if (preparing_->overtaken || !preparing_->all_users) reopen();
  }
  check_invariants();
  return true;
}

KeyStatus MasterKey::status(u32 uid) const {
  Lock lock(mutex_);
  if (state_ == KeyState::absent) return {};
  return {.state = state_,
          .claims = static_cast<u32>(claims_.size()),
          .claimed_by_caller = claims_.contains(uid),
          .claimed_before = former_claims_.contains(uid),
          .sealed = sealed_,
          .leases = leases_};
}

Result<void> MasterKey::lease(const std::shared_ptr<MasterKey>& key, u64 owner, Lease& lease) {
  LK_CHECK(!lease.held());
  if (key->too_short_) return fail(Errc::no_key, "the key is too short for AES-256");
  Lock lock(key->mutex_);
  if (key->state_ != KeyState::present) return fail(Errc::no_key, "the key is not present");
  if (key->door_closed_) return fail(Errc::no_key, "the key is being removed");
  lease.key_ = key;
  lease.owner_ = owner;
  key->link(lease);
  key->check_invariants();
  return {};
}

bool MasterKey::release(Lease& lease) {
  LK_CHECK(lease.held());
  const std::shared_ptr<MasterKey> key = std::move(lease.key_);
  lease.key_ = nullptr;
  {
    Lock lock(key->mutex_);
    key->unlink(lease);
    const bool last =
        key->state_ == KeyState::incompletely_removed && key->leases_ == 0 && !key->doomed_;
    if (last) key->doom();
    key->check_invariants();
    if (!last) return false;
  }
  key->finish_wipe();
  return true;
}

bool MasterKey::removal_under_way() const {
  return preparing_.has_value() || (doomed_ && state_ != KeyState::absent);
}

MasterKey::Begun MasterKey::look_at_claims(const Caller& caller) const {
  if (state_ == KeyState::absent) return Begun::gone;
  if (caller.all_users) return Begun::preparing;
  if (state_ == KeyState::present) {
    if (!claims_.contains(caller.uid)) return Begun::no_claim;
    return claims_.size() > 1 ? Begun::claim_only : Begun::preparing;
  }
  const bool may_retry =
      caller.uid == 0 || caller.anyone_may_retry || former_claims_.contains(caller.uid);
  return may_retry ? Begun::preparing : Begun::no_claim;
}

void MasterKey::drop_claims(u32 uid, bool all_users) {
  if (all_users) {
    former_claims_.merge(claims_);  // which allocates nothing
    claims_.clear();
  } else {
    former_claims_.insert(claims_.extract(uid));
  }
}

MasterKey::Begun MasterKey::would_begin(const Caller& caller) const {
  Lock lock(mutex_);
  return look_at_claims(caller);
}

MasterKey::Begun MasterKey::begin_removal(const Caller& caller, const RemovalRow& row,
                                          Inside inside) {
  {
    Lock lock(mutex_);
    while (removal_under_way()) {
      if (inside != Inside::not_looked) return Begun::another;
      changed_.wait(mutex_);
    }
    const Begun begun = look_at_claims(caller);
    if (begun == Begun::claim_only) drop_claims(caller.uid, false);
    if (begun != Begun::preparing) {
      check_invariants();
      return begun;
    }
    if (row.refuse_when_busy && inside == Inside::somebody) return Begun::refused;
    preparing_ = Preparing{.uid = caller.uid,
                           .all_users = caller.all_users,
                           .overtaken = false,
                           .number = ++removals_,
                           .was_sealed = sealed_};
    door_closed_ = true;
    if (row.writers == Writers::hold) gate_.set(Gate::State::held);
    if (row.writers == Writers::stop) gate_.set(Gate::State::stopped);
    check_invariants();
  }
  if (row.writers != Writers::keep) gate_.drain();
  return Begun::preparing;
}

void MasterKey::wait_for_removal() {
  Lock lock(mutex_);
  while (removal_under_way()) changed_.wait(mutex_);
}

KeyState MasterKey::wait_while_leaving(u64 timeout_ns) {
  Lock lock(mutex_);
  if (state_ == KeyState::incompletely_removed) changed_.wait_for(mutex_, timeout_ns);
  return state_;
}

u64 MasterKey::removal_number() const {
  Lock lock(mutex_);
  LK_CHECK(preparing_.has_value());
  return preparing_->number;
}

std::set<u32> MasterKey::claimers() const {
  Lock lock(mutex_);
  std::set<u32> all = claims_;
  all.insert(former_claims_.begin(), former_claims_.end());
  return all;
}

bool MasterKey::overtaken() const {
  Lock lock(mutex_);
  return preparing_ && preparing_->overtaken;
}

// An add that has settled how the removal ends has opened the door: then nothing is stopped.
void MasterKey::stop_page_ins(PageIns how) {
  Lock lock(mutex_);
  LK_CHECK(preparing_.has_value());
  if (door_closed_) page_ins_.store(how, std::memory_order_release);
}

void MasterKey::stop_from_front() {
  {
    Lock lock(mutex_);
    LK_CHECK(preparing_.has_value());
    if (!door_closed_) return;
    front_gate_.set(Gate::State::stopped);
  }
  front_gate_.drain();
}

Result<Removal::Committed> MasterKey::commit(const RemovalRow& row) {
  {
    Lock lock(mutex_);
    await_wipe();  // the last lease may just have gone
    LK_CHECK(preparing_.has_value());
    const Preparing removal = *preparing_;
    // Another user's add, under a removal of all claims, brings the secret back without overtaking;
    // the busy inodes then lost the keys of their own that a sealed key needs.
    const bool seals = row.stays == Stays::own_keys && leases_ != 0;
    if (removal.overtaken || (seals && removal.was_sealed && !sealed_)) {
      end_removal();
      return fail(Errc::canceled, "the key was added again");
    }
    if (state_ == KeyState::absent) {
      end_removal();
      return Removal::Committed{};
    }
    drop_claims(removal.uid, removal.all_users);
    if (!claims_.empty()) {
      end_removal();
      return Removal::Committed{.others_remain = true, .state = state_};
    }
    state_ = KeyState::incompletely_removed;
    if (row.stays != Stays::nothing && leases_ != 0) {
      if (seals && !sealed_) seal(removal.number);
      end_removal();
      return Removal::Committed{.others_remain = false, .state = state_};
    }
    doom();
    end_removal();
  }
  finish_wipe();
  return Removal::Committed{};
}

void MasterKey::rollback() {
  Lock lock(mutex_);
  LK_CHECK(preparing_.has_value());
  end_removal();
}

std::vector<u64> MasterKey::owners(u64& cursor, u32 count_max) {
  std::vector<u64> words;
  words.reserve(count_max);
  Lock lock(mutex_);
  Lease* lease = after(cursor);
  for (; lease != nullptr && words.size() < count_max; lease = lease->next_) {
    words.push_back(lease->owner_);
    cursor = lease->serial_;
  }
  walk_cursor_ = cursor;
  walk_next_ = lease;
  return words;
}

void MasterKey::remove_now() {
  {
    Lock lock(mutex_);
    await_wipe();
    LK_CHECK(!preparing_);
    if (state_ == KeyState::absent) return;
    claims_.clear();
    state_ = KeyState::incompletely_removed;
    doom();
  }
  finish_wipe();
}

void MasterKey::await_wipe() {
  while (doomed_ && state_ != KeyState::absent) changed_.wait(mutex_);
}

void MasterKey::reopen() {
  door_closed_ = false;
  // A doomed key's gates stay stopped: its leases are cut off for good. What a writer or a read
  // puts in front of the volume can come down again at once, so that way opens first.
  if (doomed_) return;
  if (front_gate_.state() != Gate::State::open) front_gate_.set(Gate::State::open);
  if (gate_.state() != Gate::State::open) gate_.set(Gate::State::open);
  page_ins_.store(PageIns::go_on, std::memory_order_release);
}

void MasterKey::end_removal() {
  preparing_.reset();
  reopen();
  check_invariants();
  changed_.notify_all();
}

void MasterKey::doom() {
  LK_CHECK(!doomed_ && claims_.empty() && state_ == KeyState::incompletely_removed);
  doomed_ = true;
  cut_off_.store(true, std::memory_order_release);
  gate_.set(Gate::State::stopped);
  front_gate_.set(Gate::State::stopped);
  uses_.set(Gate::State::stopped);
  page_ins_.store(PageIns::no_key, std::memory_order_release);
}

// Batches in hand finish; nobody begins another. The gate stays open.
void MasterKey::seal(u64 number) {
  uses_.set(Gate::State::stopped);
  uses_.drain();
  sealed_by_ = number;
  sealed_ = true;
  wipe_secret();
}

// By the thread that doomed the key. Writers in the gate finish their copy and batches in hand
// finish their derivations; both are short and wait for nothing (T3).
void MasterKey::finish_wipe() {
  gate_.drain();
  front_gate_.drain();
  uses_.drain();
  Lock lock(mutex_);
  wipe_secret();
  state_ = KeyState::absent;
  check_invariants();
  changed_.notify_all();
}

// The one place where a master key's secret dies (I5).
void MasterKey::wipe_secret() {
  LK_CHECK((doomed_ || sealed_) && uses_.inside() == 0);
  secret_.reset();
}

void MasterKey::link(Lease& lease) {
  lease.serial_ = ++last_serial_;
  lease.previous_ = last_;
  lease.next_ = nullptr;
  (last_ == nullptr ? first_ : last_->next_) = &lease;
  last_ = &lease;
  ++leases_;
  if (walk_next_ == nullptr) walk_next_ = &lease;
}

void MasterKey::unlink(Lease& lease) {
  LK_CHECK(leases_ != 0);
  (lease.previous_ == nullptr ? first_ : lease.previous_->next_) = lease.next_;
  (lease.next_ == nullptr ? last_ : lease.next_->previous_) = lease.previous_;
  if (walk_next_ == &lease) walk_next_ = lease.next_;
  lease.previous_ = lease.next_ = nullptr;
  --leases_;
}

Lease* MasterKey::after(u64 cursor) {
  if (cursor == walk_cursor_) return walk_next_;
  Lease* lease = first_;
  while (lease != nullptr && lease->serial_ <= cursor) lease = lease->next_;
  return lease;
}

void MasterKey::check_invariants() const {
  LK_CHECK(secret_.empty() == (state_ == KeyState::absent || sealed_));           // I1
  LK_CHECK(!claims_.empty() == (state_ == KeyState::present));                    // I2
  LK_CHECK(state_ != KeyState::incompletely_removed || leases_ != 0 || doomed_);  // I3
  LK_CHECK(!doomed_ ||
           (uses_.state() == Gate::State::stopped && gate_.state() == Gate::State::stopped &&
            front_gate_.state() == Gate::State::stopped));  // I6
  LK_CHECK(state_ != KeyState::absent || doomed_);          // I6
  LK_CHECK(!door_closed_ || preparing_);                    // I7
  LK_CHECK(!sealed_ ||
           (uses_.state() == Gate::State::stopped && state_ != KeyState::present));  // I8
  LK_CHECK((first_ == nullptr) == (leases_ == 0) && (last_ == nullptr) == (leases_ == 0));
}

}  // namespace latchkey::keymgr
