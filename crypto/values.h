#pragma once
// Values of user.* attributes (design K5): AES-256-GCM (NIST SP 800-38D) under a key of the inode's
// own, HKDF-SHA512(master, "latchkey\0" || 1 || inode nonce), with a random nonce for each value.
// The associated data is the attribute's name: a value under another name is no value. The inode's
// number is not bound, so that snapshots keep what they share.
//
// How many values may be set on one inode: 2^32 random nonces of 96 bits collide with a chance of
// 2^-32 (SP 800-38D, 8.3), and no inode's attributes are set so often.
//
// The cipher is OpenSSL's EVP in every backend; what it holds for the length of a call,
// crypto/evp.h says. Thread-safe; what uses a key is a SecretWork.

#include <array>
#include <vector>

#include "base/result.h"
#include "crypto/hkdf.h"

namespace latchkey::crypto {

// In the arena only.
struct alignas(64) ValueKey {
  std::array<std::byte, 32> raw;
};

using ValueNonce = std::array<std::byte, 12>;
inline constexpr std::size_t kValueTagBytes = 16;
// A stored value is so much longer than the value: nonce || ciphertext || tag.
inline constexpr std::size_t kValueOverhead = sizeof(ValueNonce) + kValueTagBytes;

void derive_value_key(const HkdfState& state, const Nonce& inode_nonce, ValueKey& key);

// `nonce` was drawn for this one call. `name` is the attribute's, of any length.
std::vector<std::byte> encrypt_value(const ValueKey& key, const ValueNonce& nonce, Bytes name,
                                     Bytes value);
// Errc::damaged where `stored` is not what encrypt_value() made under this key and name.
Result<std::vector<std::byte>> decrypt_value(const ValueKey& key, Bytes name, Bytes stored);

}  // namespace latchkey::crypto
