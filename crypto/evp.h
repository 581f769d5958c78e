#pragma once
// What the kernels on OpenSSL's EVP share. Internal to crypto/.
//
// Outside the arena: for the length of one call the expanded schedules lie in a heap block of the
// provider, and what its code spills lies on the stack. EVP_CIPHER_CTX_free() wipes that block
// (OPENSSL_clear_free); the stack is the caller's SecretWork's. No context outlives a call, so
// nothing here remembers a key.

#include <openssl/evp.h>

#include <memory>

#include "base/check.h"
#include "crypto/raw_key.h"

namespace latchkey::crypto::evp {

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

// Kept by the caller: a fetch takes longer than a data unit.
inline const EVP_CIPHER* fetched(const char* name) {
  const EVP_CIPHER* cipher = EVP_CIPHER_fetch(nullptr, name, nullptr);
  LK_CHECK_MSG(cipher != nullptr, "OpenSSL lacks a cipher");
  return cipher;
}

// `raw` was expanded, which the caller has checked.
inline Context keyed(const EVP_CIPHER* cipher, Bytes raw, bool seal) {
  Context context(EVP_CIPHER_CTX_new());
  LK_CHECK_MSG(context != nullptr, "no memory for a cipher context");
  const int keyed =
      EVP_CipherInit_ex(context.get(), cipher, nullptr, raw_key::octets(raw), nullptr, seal);
  LK_CHECK_MSG(keyed == 1, "OpenSSL refuses the key");
  LK_CHECK(EVP_CIPHER_CTX_set_padding(context.get(), 0) == 1);
  return context;
}

// Whole blocks.
inline void update(EVP_CIPHER_CTX* context, Bytes input, MutableBytes output) {
  int written = 0;
  const int done = EVP_CipherUpdate(context, raw_key::octets(output), &written,
                                    raw_key::octets(input), static_cast<int>(input.size()));
  LK_CHECK_MSG(done == 1 && static_cast<std::size_t>(written) == input.size(), "OpenSSL failed");
}

}  // namespace latchkey::crypto::evp
