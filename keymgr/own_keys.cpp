#include "keymgr/own_keys.h"

#include <algorithm>
#include <utility>

#include "base/secret_work.h"

namespace latchkey::keymgr {

namespace {

constexpr std::size_t kKeysAtOnce = 64;  // of one use, which a wipe waits for

}  // namespace

u64 OwnKeys::bytes_for(u64 extents) { return sizeof(Fixed) + extents * crypto::kXtsKeyBytes; }

Result<std::unique_ptr<OwnKeys>> OwnKeys::derive(const Lease& lease, Wanted&& wanted) {
  std::unique_ptr<OwnKeys> keys(new OwnKeys);
  keys->seal_ = wanted.seal;
  keys->write_nonce_ = wanted.write_nonce;
  keys->nonces_ = std::move(wanted.extents);
  std::vector<crypto::Nonce>& nonces = keys->nonces_;
  std::ranges::sort(nonces);
  const auto same = std::ranges::unique(nonces);
  nonces.erase(same.begin(), same.end());
  LK_TRY(keys->fixed_, Secret<Fixed>::create());
  if (!nonces.empty()) {
    LK_TRY(keys->raw_, SecretBytes::create(nonces.size() * crypto::kXtsKeyBytes));
  }
  const SecretWork work;
  {
    LK_TRY(const KeyUse use, KeyUse::begin(lease));
    use.extent_key(keys->write_nonce_, keys->fixed_->write);
    use.name_key(wanted.inode_nonce, keys->fixed_->names);
    use.value_key(wanted.inode_nonce, keys->fixed_->values);
  }
  for (std::size_t first = 0; first < nonces.size(); first += kKeysAtOnce) {
    LK_TRY(const KeyUse use, KeyUse::begin(lease));
    for (std::size_t i = first; i < std::min(first + kKeysAtOnce, nonces.size()); ++i)
      use.raw_extent_key(
          nonces[i], keys->raw_.bytes().subspan(i * crypto::kXtsKeyBytes, crypto::kXtsKeyBytes));
  }
  return keys;
}

bool OwnKeys::extent_key(const crypto::Nonce& nonce, crypto::XtsKey& key) const {
  if (nonce == write_nonce_) {
    key = fixed_->write;
    return true;
  }
  const auto found = std::ranges::lower_bound(nonces_, nonce);
  if (found == nonces_.end() || *found != nonce) return false;
  const auto index = static_cast<std::size_t>(found - nonces_.begin());
  crypto::xts_expand(raw_.bytes().subspan(index * crypto::kXtsKeyBytes, crypto::kXtsKeyBytes), key);
  return true;
}

}  // namespace latchkey::keymgr
