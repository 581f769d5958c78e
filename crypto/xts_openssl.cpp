// AES-256-XTS and CBC through OpenSSL's EVP: the backend that is that library alone, and the second
// opinion in the tests. Native never takes it: see xts_portable.cpp.
//
// OpenSSL refuses a data key that equals the tweak key; HKDF does not make one.

#include "base/disk.h"
#include "crypto/evp.h"
#include "crypto/kernel.h"

namespace latchkey::crypto {
namespace {

const EVP_CIPHER* xts_cipher() {
  static const EVP_CIPHER* const cipher = evp::fetched("AES-256-XTS");
  return cipher;
}
const EVP_CIPHER* cbc_cipher() {
  static const EVP_CIPHER* const cipher = evp::fetched("AES-256-CBC");
  return cipher;
}

template <bool kSeal>
void crypt_run(const XtsKey& key, XtsRun run, const UnitSource& source, std::byte* output) {
  raw_key::check_expanded(key.raw);
  const evp::Context context = evp::keyed(xts_cipher(), key.raw, kSeal);
  for (std::size_t unit = 0; unit < source.units; ++unit) {
    const std::array<Le64, 2> tweak{Le64(run.first_unit + unit), Le64(0)};
    const auto* iv = reinterpret_cast<const unsigned char*>(tweak.data());
    LK_CHECK(EVP_CipherInit_ex(context.get(), nullptr, nullptr, nullptr, iv, kSeal) == 1);
    evp::update(context.get(), {source.at(unit), run.unit_bytes},
                {output + unit * run.unit_bytes, run.unit_bytes});
  }
}

void cbc(const NameKey& key, MutableBytes blocks, bool seal) {
  raw_key::check_expanded(key.raw);
  const evp::Context context = evp::keyed(cbc_cipher(), key.raw, seal);
  const unsigned char zero_iv[16] = {};
  LK_CHECK(EVP_CipherInit_ex(context.get(), nullptr, nullptr, nullptr, zero_iv, seal) == 1);
  evp::update(context.get(), blocks, blocks);
}
void cbc_encrypt(const NameKey& key, MutableBytes blocks) { cbc(key, blocks, true); }
void cbc_decrypt(const NameKey& key, MutableBytes blocks) { cbc(key, blocks, false); }

bool usable() { return true; }

}  // namespace

const Kernel kOpensslKernel{"openssl",       usable,           raw_key::expand,
                            crypt_run<true>, crypt_run<false>, raw_key::expand_name,
                            cbc_encrypt,     cbc_decrypt};

}  // namespace latchkey::crypto
