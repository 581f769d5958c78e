#pragma once
// AES-256-CBC-CTS, variant CS3 (Kerberos' and the kernel's cts(cbc(aes))): the last two blocks
// change places even when the length is a multiple of a block; a single block is plain CBC. Zero
// IV. Source: NIST SP 800-38A addendum, CBC-CS3. Internal to crypto/.

#include "crypto/names.h"

namespace latchkey::crypto {

inline constexpr std::size_t kCtsBytesMin = 16;
inline constexpr std::size_t kCtsBytesMax = 4096;

// In place, 16 to 4096 bytes.
void cts_encrypt(const NameKey& key, MutableBytes text);
void cts_decrypt(const NameKey& key, MutableBytes text);

}  // namespace latchkey::crypto
