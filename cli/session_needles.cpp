#include "cli/session_needles.h"

#include <algorithm>

#include "base/secret_work.h"
#include "crypto/hkdf.h"

namespace latchkey::cli {

namespace {
constexpr std::size_t kRoundKeyBytes = 16;
constexpr std::size_t kKeyBytes = 2 * kRoundKeyBytes;  // a schedule begins with its key

// Without the first and the last one: those are the other schedule's last and first.
Bytes inner_round_keys(Bytes decrypt) {
  return decrypt.subspan(kRoundKeyBytes, decrypt.size() - 2 * kRoundKeyBytes);
}

}  // namespace

Result<void> SessionNeedles::add_master(Bytes master) {
  const SecretWork work;
  LK_TRY(auto state, Secret<crypto::HkdfState>::create());
  crypto::hkdf_extract(master, *state);
  const Bytes bytes = std::as_bytes(std::span(&*state, 1));
  scan_.add("master", master);
  scan_.add("hkdf_state", bytes);
  env_.random(state_.mask);
  for (std::size_t i = 0; i < bytes.size(); ++i) state_.masked[i] = bytes[i] ^ state_.mask[i];
  kept_ = true;
  return {};
}

Result<Secret<crypto::HkdfState>> SessionNeedles::state() const {
  if (!kept_) return fail(Errc::no_key, "no key was loaded");
  const SecretWork work;
  LK_TRY(auto state, Secret<crypto::HkdfState>::create());
  const MutableBytes bytes = std::as_writable_bytes(std::span(&*state, 1));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = state_.masked[i] ^ state_.mask[i];
  return state;
}

Result<void> SessionNeedles::add_extent(const crypto::Nonce& nonce, std::string_view whose) {
  if (std::ranges::find(extents_, nonce) != extents_.end()) return {};
  const SecretWork work;
  LK_TRY(auto key, Secret<crypto::XtsKey>::create());
  {
    LK_TRY(const auto from, state());
    crypto::derive_extent_key(*from, nonce, *key);
  }
  for (const Bytes schedule : {Bytes(key->encrypt), Bytes(key->tweak)}) {
    scan_.add(std::string(whose) + "extent_key", schedule.first(kKeyBytes));
    scan_.add(std::string(whose) + "round_key", schedule.subspan(kKeyBytes));
  }
  scan_.add(std::string(whose) + "round_key", inner_round_keys(key->decrypt));
  scan_.add(std::string(whose) + "extent_key", key->raw);  // of a kernel that has no schedules
  extents_.push_back(nonce);
  return {};
}

Result<void> SessionNeedles::add_names(const crypto::Nonce& nonce, std::string_view whose) {
  const SecretWork work;
  LK_TRY(auto key, Secret<crypto::NameKey>::create());
  LK_TRY(const auto from, state());
  crypto::derive_name_key(*from, nonce, *key);
  scan_.add(std::string(whose) + "name_key", key->encrypt);
  scan_.add(std::string(whose) + "name_key", inner_round_keys(key->decrypt));
  scan_.add(std::string(whose) + "name_key", key->raw);
  names_.push_back(nonce);
  return {};
}

Result<void> SessionNeedles::plant() {
  const SecretWork work;
  LK_TRY(const auto from, state());
  for (const crypto::Nonce& nonce : names_) {
    LK_TRY(auto key, Secret<crypto::NameKey>::create());
    crypto::derive_name_key(*from, nonce, *key);
    planted_.push_back(std::move(key));
  }
  return {};
}

}  // namespace latchkey::cli
