#include "keymgr/keyring.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/no_wait.h"
#include "base/secret_work.h"
#include "keymgr/master_key.h"

namespace latchkey::keymgr {

namespace {

// Wipes `secret` in every case: what is left of it is the state.
Result<Secret<crypto::HkdfState>> extract(SecretBytes&& secret, std::size_t bytes_min) {
  SecretBytes raw = std::move(secret);
  if (raw.bytes().size() < bytes_min || raw.bytes().size() > crypto::kMasterKeyBytesMax)
    return fail(Errc::invalid, "a master key has 32 to 64 bytes");
  LK_TRY(auto state, Secret<crypto::HkdfState>::create());
  crypto::hkdf_extract(raw.bytes(), *state);
  raw.reset();
  return state;
}

}  // namespace

std::string_view name_of(KeyState state) {
  switch (state) {
    case KeyState::absent:
      return "absent";
    case KeyState::present:
      return "present";
    case KeyState::incompletely_removed:
      return "incompletely-removed";
  }
  LK_CHECK_MSG(false, "a key state without a name");
}

Lease::~Lease() { LK_CHECK_MSG(!held(), "a lease died without being released"); }

Keyring::Keyring(const KeyringOptions& options)
    : options_(options), suspensions_(options.waiters_max) {}

crypto::KeyId Lease::key_id() const {
  LK_CHECK(key_ != nullptr);
  return key_->id();
}

bool Lease::cut_off() const { return key_ != nullptr && key_->cut_off(); }

PageIns Lease::page_ins(bool served) const {
  if (key_ == nullptr) return PageIns::no_key;
  const bool serve = served && key_->front_gate().state() == Gate::State::open;
  return serve ? PageIns::go_on : key_->page_ins();
}

Result<KeyUse> KeyUse::begin(const Lease& lease) {
  if (!lease.held() || !lease.key_->enter_use())
    return fail(Errc::no_key, "the key's secret is gone");
  begin_no_wait();
  begin_secret_work();
  KeyUse use;
  use.key_ = lease.key_;
  return use;
}

KeyUse::KeyUse(KeyUse&& other) noexcept = default;

KeyUse::~KeyUse() {
  if (key_ == nullptr) return;
  end_secret_work();  // before the key can be absent
  key_->leave_use();
  end_no_wait();
}

void KeyUse::extent_key(const crypto::Nonce& nonce, crypto::XtsKey& key) const {
  crypto::derive_extent_key(state(), nonce, key);
}

void KeyUse::extent_keys(std::span<const crypto::Nonce> nonces,
                         std::span<crypto::XtsKey> keys) const {
  crypto::derive_extent_keys(state(), nonces, keys);
}

void KeyUse::raw_extent_key(const crypto::Nonce& nonce, MutableBytes key) const {
  crypto::hkdf_expand(state(), crypto::Context::per_extent, nonce.span(), key);
}

void KeyUse::name_key(const crypto::Nonce& directory_nonce, crypto::NameKey& key) const {
  crypto::derive_name_key(state(), directory_nonce, key);
}

void KeyUse::value_key(const crypto::Nonce& inode_nonce, crypto::ValueKey& key) const {
  crypto::derive_value_key(state(), inode_nonce, key);
}

const crypto::HkdfState& KeyUse::state() const {
  LK_CHECK(key_ != nullptr);
  return key_->secret_in_use();
}

Result<GatePass> GatePass::enter(const Lease& lease) {
  check_may_wait();
  for (HeldGate held;; held.wait()) {
    auto pass = try_enter(lease, held);
    if (pass || pass.error().code != Errc::busy) return pass;
  }
}

Result<GatePass> GatePass::try_enter(const Lease& lease, HeldGate& held) {
  const Gate::State state = lease.held() ? lease.key_->gate().try_enter() : Gate::State::stopped;
  if (state == Gate::State::stopped) return fail(Errc::no_key, "the key's gate is closed");
  if (state == Gate::State::held) {
    held.key_ = lease.key_;
    return fail(Errc::busy, "the key's gate is held");
  }
  begin_no_wait();
  GatePass pass;
  pass.key_ = lease.key_;
  pass.gate_ = &lease.key_->gate();
  return pass;
}

Result<GatePass> GatePass::enter_from_front(const Lease& lease) {
  if (!lease.held() || lease.key_->front_gate().try_enter() != Gate::State::open)
    return fail(Errc::no_key, "the key's gate is closed");
  begin_no_wait();
  GatePass pass;
  pass.key_ = lease.key_;
  pass.gate_ = &lease.key_->front_gate();
  return pass;
}

void HeldGate::wait() {
  check_may_wait();
  LK_CHECK(key_ != nullptr);
  key_->gate().wait_while_held();
  key_.reset();
}

GatePass::GatePass(GatePass&& other) noexcept = default;

GatePass::~GatePass() {
  if (key_ == nullptr) return;
  gate_->leave();
  end_no_wait();
}

Removal::Removal(Removal&& other) noexcept = default;

Removal::~Removal() {
  if (key_ != nullptr) rollback();
}

const RemovalRow& Removal::row() const { return *row_; }

crypto::KeyId Removal::key_id() const { return key_->id(); }

std::set<u32> Removal::claimers() const { return key_->claimers(); }

bool Removal::overtaken() const { return !ended_ && key_->overtaken(); }

void Removal::stop_page_ins() {
  key_->stop_page_ins(row_->later_io == LaterIo::waits ? PageIns::wait : PageIns::no_key);
}

void Removal::stop_from_front() {
  check_may_wait();
  key_->stop_from_front();
}

std::vector<u64> Removal::owners(u64& cursor, u32 count_max) const {
  return key_->owners(cursor, count_max);
}

Result<Removal::Committed> Removal::commit() {
  check_may_wait();
  LK_CHECK_MSG(!ended_, "a removal ends once");
  ended_ = true;
  return key_->commit(*row_);
}

void Removal::rollback() {
  if (ended_) return;
  ended_ = true;
  key_->rollback();
}

Keyring::~Keyring() { remove_everything(); }

// The claim that `uid` would add is one on a key that it has none on.
Result<void> Keyring::may_claim(const crypto::KeyId& id, u32 uid) const {
  if (uid == 0) return {};
  u32 claims = 0;
  for (const auto& [other, key] : keys_) {
    if (!key->status(uid).claimed_by_caller) continue;
    if (other == id) return {};
    ++claims;
  }
  if (claims >= options_.max_claims_per_uid)
    return fail(Errc::quota, "the user has claims on too many keys");
  return {};
}

Result<crypto::KeyId> Keyring::add(u32 uid, SecretBytes&& secret, std::optional<u64>* unsealed) {
  const SecretWork work;
  const bool too_short = secret.bytes().size() < crypto::kMasterKeyBytesMin;
  LK_TRY(auto state, extract(std::move(secret), options_.short_keys ? crypto::kShortKeyBytesMin
                                                                    : crypto::kMasterKeyBytesMin));
  const crypto::KeyId id = crypto::key_identifier(*state);
  Lock lock(mutex_);
  LK_TRYV(may_claim(id, uid));
  // Nobody finds an absent key again; whoever still holds it has a pointer of his own.
  std::erase_if(
      keys_, [](const auto& entry) { return entry.second->status(0).state == KeyState::absent; });
  const auto found = keys_.find(id);
  if (found != keys_.end() && found->second->add(uid, state, unsealed)) return id;
  // A key that is made is present until it is removed, so what can fail for memory comes before it.
  keys_.erase(id);
  keys_.reserve(keys_.size() + 1);
  decltype(keys_) fresh;
  std::shared_ptr<MasterKey>& made = fresh[id];
  made = std::make_shared<MasterKey>(id, std::move(state), uid, too_short);
  keys_.merge(fresh);
  suspensions_.end(id);
  return id;
}

Result<crypto::KeyId> Keyring::identify(SecretBytes&& secret) {
  const SecretWork work;
  LK_TRY(auto state, extract(std::move(secret), crypto::kMasterKeyBytesMin));
  return crypto::key_identifier(*state);
}

KeyStatus Keyring::status(const crypto::KeyId& id, u32 uid) const {
  const auto key = find(id);
  return key == nullptr ? KeyStatus{} : key->status(uid);
}

std::vector<crypto::KeyId> Keyring::list() const {
  std::vector<crypto::KeyId> ids;
  {
    Lock lock(mutex_);
    for (const auto& [id, key] : keys_)
      if (key->status(0).state != KeyState::absent) ids.push_back(id);
  }
  std::ranges::sort(ids);
  return ids;
}

Result<void> Keyring::lease(const crypto::KeyId& id, u64 owner, Lease& lease) {
  const auto key = find(id);
  if (key == nullptr) return fail(Errc::no_key, "the key is not present");
  return MasterKey::lease(key, owner, lease);
}

bool Keyring::release(Lease& lease) { return MasterKey::release(lease); }

Result<RemovalStart> Keyring::begin_removal(const crypto::KeyId& id, u32 uid, bool all_users,
                                            RemovalMode mode, Inside inside) {
  check_may_wait();
  const RemovalRow& row = removal_row(mode);
  if (all_users && uid != 0)
    return fail(Errc::permission, "only root removes the claims of all users");
  const MasterKey::Caller caller{uid, all_users, options_.anyone_may_retry};
  for (;;) {
    const auto key = find(id);
    if (key == nullptr) return fail(Errc::no_key, "the key is absent");
    RemovalStart start;
    switch (key->begin_removal(caller, row, inside)) {
      case MasterKey::Begun::gone:
        // It went while this removal waited. If it was added again since, that key is meant.
        if (find(id) == key) return fail(Errc::no_key, "the key is absent");
        continue;
      case MasterKey::Begun::no_claim:
        return fail(Errc::no_key, "the caller has no claim on the key");
      case MasterKey::Begun::claim_only:
        start.claim_only = true;
        return start;
      case MasterKey::Begun::another:
        start.another = true;
        return start;
      case MasterKey::Begun::refused:
        return fail(Errc::busy, "files or directories of the key are open");
      case MasterKey::Begun::preparing:
        Removal removal;
        removal.key_ = key;
        removal.row_ = &row;
        removal.number_ = key->removal_number();
        start.removal.emplace(std::move(removal));
        return start;
    }
  }
}

Result<bool> Keyring::would_remove_claim_only(const crypto::KeyId& id, u32 uid,
                                              bool all_users) const {
  if (all_users && uid != 0)
    return fail(Errc::permission, "only root removes the claims of all users");
  const auto key = find(id);
  const auto begun = key == nullptr ? MasterKey::Begun::gone
                                    : key->would_begin({uid, all_users, options_.anyone_may_retry});
  if (begun == MasterKey::Begun::gone) return fail(Errc::no_key, "the key is absent");
  if (begun == MasterKey::Begun::no_claim)
    return fail(Errc::no_key, "the caller has no claim on the key");
  return begun == MasterKey::Begun::claim_only;
}

void Keyring::wait_for_removal(const crypto::KeyId& id) const {
  check_may_wait();
  if (const auto key = find(id)) key->wait_for_removal();
}

KeyState Keyring::wait_while_leaving(const crypto::KeyId& id, u64 timeout_ns) const {
  check_may_wait();
  const auto key = find(id);
  return key == nullptr ? KeyState::absent : key->wait_while_leaving(timeout_ns);
}

std::vector<u64> Keyring::owners(const crypto::KeyId& id, u64& cursor, u32 count_max) const {
  const auto key = find(id);
  return key == nullptr ? std::vector<u64>{} : key->owners(cursor, count_max);
}

void Keyring::remove_everything() {
  suspensions_.end_all();
  decltype(keys_) keys;
  {
    Lock lock(mutex_);
    keys.swap(keys_);
  }
  for (const auto& [id, key] : keys) key->remove_now();
}

std::shared_ptr<MasterKey> Keyring::find(const crypto::KeyId& id) const {
  Lock lock(mutex_);
  const auto found = keys_.find(id);
  return found == keys_.end() ? nullptr : found->second;
}

}  // namespace latchkey::keymgr
