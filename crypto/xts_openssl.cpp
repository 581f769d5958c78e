// AES-256-XTS and CBC through OpenSSL's EVP: for CPUs without AES-NI, and as the second opinion in
// the tests.
//
// What it holds outside the arena: for the length of one call the expanded schedules lie in a heap
// block of the provider, and what its code spills lies on the stack. EVP_CIPHER_CTX_free() wipes
// that block (OPENSSL_clear_free); the stack is the caller's SecretWork's. The raw
// key lies in XtsKey::raw or NameKey::raw, in the arena. No context outlives a call, so nothing
// here remembers a key. OpenSSL refuses a data key that equals the tweak key; HKDF does not make
// one.

#include <openssl/evp.h>

#include <memory>

#include "base/check.h"
#include "base/disk.h"
#include "crypto/kernel.h"
#include "crypto/raw_key.h"

namespace latchkey::crypto {
namespace {

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

using raw_key::octets;

// Fetched once and kept: a fetch takes longer than a data unit.
const EVP_CIPHER* xts_cipher() {
  static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-XTS", nullptr);
  LK_CHECK_MSG(cipher != nullptr, "OpenSSL has no AES-256-XTS");
  return cipher;
}
const EVP_CIPHER* cbc_cipher() {
  static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-CBC", nullptr);
  LK_CHECK_MSG(cipher != nullptr, "OpenSSL has no AES-256-CBC");
  return cipher;
}

Context keyed(const EVP_CIPHER* cipher, Bytes raw, bool seal) {
  raw_key::check_expanded(raw);
  Context context(EVP_CIPHER_CTX_new());
  LK_CHECK_MSG(context != nullptr, "no memory for a cipher context");
  const int keyed = EVP_CipherInit_ex(context.get(), cipher, nullptr, octets(raw), nullptr, seal);
  LK_CHECK_MSG(keyed == 1, "OpenSSL refuses the key");
  return context;
}

void update(EVP_CIPHER_CTX* context, Bytes input, MutableBytes output) {
  int written = 0;
  const int done = EVP_CipherUpdate(context, octets(output), &written, octets(input),
                                    static_cast<int>(input.size()));
  LK_CHECK_MSG(done == 1 && static_cast<std::size_t>(written) == input.size(), "OpenSSL failed");
}

template <bool kSeal>
void crypt_run(const XtsKey& key, XtsRun run, const UnitSource& source, std::byte* output) {
  const Context context = keyed(xts_cipher(), key.raw, kSeal);
  for (std::size_t unit = 0; unit < source.units; ++unit) {
    const std::array<Le64, 2> tweak{Le64(run.first_unit + unit), Le64(0)};
    const auto* iv = reinterpret_cast<const unsigned char*>(tweak.data());
    LK_CHECK(EVP_CipherInit_ex(context.get(), nullptr, nullptr, nullptr, iv, kSeal) == 1);
    update(context.get(), {source.at(unit), run.unit_bytes},
           {output + unit * run.unit_bytes, run.unit_bytes});
  }
}

void cbc(const NameKey& key, MutableBytes blocks, bool seal) {
  const Context context = keyed(cbc_cipher(), key.raw, seal);
  const unsigned char zero_iv[16] = {};
  LK_CHECK(EVP_CipherInit_ex(context.get(), nullptr, nullptr, nullptr, zero_iv, seal) == 1);
  LK_CHECK(EVP_CIPHER_CTX_set_padding(context.get(), 0) == 1);
  update(context.get(), blocks, blocks);
}
void cbc_encrypt(const NameKey& key, MutableBytes blocks) { cbc(key, blocks, true); }
void cbc_decrypt(const NameKey& key, MutableBytes blocks) { cbc(key, blocks, false); }

bool usable() { return true; }

}  // namespace

const Kernel kOpensslKernel{"openssl",       usable,           raw_key::expand,
                            crypt_run<true>, crypt_run<false>, raw_key::expand_name,
                            cbc_encrypt,     cbc_decrypt};

}  // namespace latchkey::crypto
