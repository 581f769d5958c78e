#pragma once
// What the kernels share that hand the raw key to somebody else's cipher: it lies in XtsKey::raw or
// NameKey::raw, in the arena, and the schedules stay zero. Internal to crypto/.

#include <cstring>

#include "base/check.h"
#include "base/secret.h"
#include "crypto/names.h"
#include "crypto/xts.h"

namespace latchkey::crypto::raw_key {

// Stops the process where both halves of a key are zero: an expanded one is random. Not inlined for
// the reason that aesni::check_expanded() names.
__attribute__((noinline)) inline void check_expanded(Bytes raw) {
  std::byte any{0};
  for (const std::byte byte : raw) any |= byte;
  LK_CHECK_MSG(any != std::byte{0}, "a key that this kernel did not expand");
}

// `raw` may be key.raw.
inline void expand(Bytes raw, XtsKey& key) {
  std::memmove(key.raw.data(), raw.data(), key.raw.size());
  wipe(key.encrypt);
  wipe(key.decrypt);
  wipe(key.tweak);
}

inline void expand_name(Bytes raw, NameKey& key) {
  wipe(&key, sizeof key);
  std::memcpy(key.raw.data(), raw.data(), key.raw.size());
}

inline const unsigned char* octets(Bytes bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
inline unsigned char* octets(MutableBytes bytes) {
  return reinterpret_cast<unsigned char*>(bytes.data());
}

}  // namespace latchkey::crypto::raw_key
