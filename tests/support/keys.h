#pragma once
// Master keys made from a number, and a scan of the secrets arena for what is left of them.

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "base/check.h"
#include "base/secret.h"
#include "crypto/hkdf.h"
#include "crypto/xts.h"
#include "keymgr/keyring.h"

namespace latchkey::tests {

using Heap = std::vector<std::byte>;  // copies for comparison, outside of the arena

inline Heap raw_key(u64 seed, std::size_t size = 64) {
  std::mt19937_64 random(seed);
  Heap raw(size);
  for (std::byte& b : raw) b = std::byte(random());
  return raw;
}

inline SecretBytes in_arena(Bytes raw) {
  auto secret = SecretBytes::create(raw.size());
  LK_CHECK(secret.has_value());
  std::memcpy(secret->bytes().data(), raw.data(), raw.size());
  return std::move(*secret);
}

inline crypto::Nonce nonce_of(u64 number) {
  crypto::Nonce nonce;
  std::memcpy(nonce.bytes.data(), &number, sizeof number);
  return nonce;
}

// What a process holds while a key is in use, as bytes to look for.
struct KeyNeedles {
  Heap master, hkdf_inner, hkdf_outer;
  crypto::KeyId id;
};

inline KeyNeedles needles_of(const Heap& raw) {
  auto state = Secret<crypto::HkdfState>::create();
  LK_CHECK(state.has_value());
  SecretBytes secret = in_arena(raw);
  crypto::hkdf_extract(secret.bytes(), **state);
  const auto inner = std::as_bytes(std::span((*state)->inner));
  const auto outer = std::as_bytes(std::span((*state)->outer));
  return {raw, Heap(inner.begin(), inner.end()), Heap(outer.begin(), outer.end()),
          crypto::key_identifier(**state)};
}

// The expanded schedules of an extent key: the data key's, and the tweak key's.
struct ScheduleNeedles {
  Heap encrypt, tweak;
};

inline ScheduleNeedles schedule_of(const Heap& raw, const crypto::Nonce& nonce) {
  auto state = Secret<crypto::HkdfState>::create();
  auto key = Secret<crypto::XtsKey>::create();
  LK_CHECK(state.has_value() && key.has_value());
  SecretBytes secret = in_arena(raw);
  crypto::hkdf_extract(secret.bytes(), **state);
  crypto::derive_extent_key(**state, nonce, **key);
  return {Heap((*key)->encrypt.begin(), (*key)->encrypt.end()),
          Heap((*key)->tweak.begin(), (*key)->tweak.end())};
}

// Whether any 16 aligned bytes of `needle` lie anywhere in the arena. No other thread uses the
// arena meanwhile.
inline bool arena_holds(Bytes needle) {
  struct Search {
    Bytes needle;
    bool found = false;
  } search{needle};
  arena_visit(
      [](void* context, MutableBytes piece) {
        auto& s = *static_cast<Search*>(context);
        for (std::size_t at = 0; at + 16 <= s.needle.size() && !s.found; at += 16)
          s.found = ::memmem(piece.data(), piece.size(), s.needle.data() + at, 16) != nullptr;
      },
      &search);
  return search.found;
}

}  // namespace latchkey::tests
