#include "crypto/values.h"

#include <algorithm>
#include <cstring>

#include "base/secret_work.h"
#include "crypto/evp.h"

namespace latchkey::crypto {
namespace {

constexpr char kOwnLabel[] = "latchkey";  // with its terminating NUL, as every label
constexpr std::byte kValueContext{1};

const EVP_CIPHER* gcm_cipher() {
  static const EVP_CIPHER* const cipher = evp::fetched("AES-256-GCM");
  return cipher;
}

// Keyed, with its nonce, and all of the associated data taken in.
evp::Context begin(const ValueKey& key, Bytes nonce, Bytes associated, bool seal) {
  raw_key::check_expanded(key.raw);
  evp::Context context = evp::keyed(gcm_cipher(), key.raw, seal);
  LK_CHECK(EVP_CIPHER_CTX_get_iv_length(context.get()) == int{sizeof(ValueNonce)});
  LK_CHECK(EVP_CipherInit_ex(context.get(), nullptr, nullptr, nullptr, raw_key::octets(nonce),
                             seal) == 1);
  int written = 0;
  if (!associated.empty())
    LK_CHECK(EVP_CipherUpdate(context.get(), nullptr, &written, raw_key::octets(associated),
                              static_cast<int>(associated.size())) == 1);
  return context;
}

void crypt(EVP_CIPHER_CTX* context, Bytes input, MutableBytes output) {
  if (!input.empty()) evp::update(context, input, output);
}

// The tag is made, or held against the one that was set; GCM writes no bytes here.
bool finish(EVP_CIPHER_CTX* context) {
  unsigned char none[kValueTagBytes];
  int written = 0;
  return EVP_CipherFinal_ex(context, none, &written) == 1;
}

}  // namespace

void derive_value_key(const HkdfState& state, const Nonce& inode_nonce, ValueKey& key) {
  std::array<std::byte, sizeof kOwnLabel + 1 + sizeof(Nonce)> info;
  std::memcpy(info.data(), kOwnLabel, sizeof kOwnLabel);
  info[sizeof kOwnLabel] = kValueContext;
  std::ranges::copy(inode_nonce.bytes, info.begin() + sizeof kOwnLabel + 1);
  hkdf_expand_info(state, info, key.raw);
}

std::vector<std::byte> encrypt_value(const ValueKey& key, const ValueNonce& nonce, Bytes name,
                                     Bytes value) {
  std::vector<std::byte> stored(value.size() + kValueOverhead);
  const MutableBytes rest = MutableBytes(stored).subspan(sizeof nonce);
  std::ranges::copy(nonce, stored.begin());
  const SecretWork work;
  const evp::Context context = begin(key, nonce, name, true);
  crypt(context.get(), value, rest.first(value.size()));
  LK_CHECK_MSG(finish(context.get()), "OpenSSL failed");
  LK_CHECK(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, int{kValueTagBytes},
                               rest.subspan(value.size()).data()) == 1);
  return stored;
}

Result<std::vector<std::byte>> decrypt_value(const ValueKey& key, Bytes name, Bytes stored) {
  if (stored.size() < kValueOverhead)
    return fail(Errc::damaged, "an attribute's value is too short to be one");
  const Bytes nonce = stored.first(sizeof(ValueNonce));
  const Bytes sealed = stored.subspan(nonce.size(), stored.size() - kValueOverhead);
  std::array<std::byte, kValueTagBytes> tag;
  std::ranges::copy(stored.last(tag.size()), tag.begin());
  std::vector<std::byte> value(sealed.size());
  const SecretWork work;
  const evp::Context context = begin(key, nonce, name, false);
  crypt(context.get(), sealed, value);
  LK_CHECK(EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, int{tag.size()}, tag.data()) ==
           1);
  if (finish(context.get())) return value;
  wipe(value);  // what did not verify is shown to nobody
  return fail(Errc::damaged, "an attribute's value does not verify");
}

}  // namespace latchkey::crypto
