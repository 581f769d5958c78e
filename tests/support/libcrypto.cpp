#include "tests/support/libcrypto.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <memory>

#include "base/check.h"

namespace latchkey::tests {

namespace {

template <auto kFree>
struct Freed {
  template <class T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Cipher = std::unique_ptr<EVP_CIPHER, Freed<EVP_CIPHER_free>>;
using CipherContext = std::unique_ptr<EVP_CIPHER_CTX, Freed<EVP_CIPHER_CTX_free>>;
using Kdf = std::unique_ptr<EVP_KDF, Freed<EVP_KDF_free>>;
using KdfContext = std::unique_ptr<EVP_KDF_CTX, Freed<EVP_KDF_CTX_free>>;
using Iv = std::array<unsigned char, 16>;

const unsigned char* read_by(Bytes bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

OSSL_PARAM octets(const char* name, Bytes bytes) {
  return OSSL_PARAM_construct_octet_string(name, const_cast<std::byte*>(bytes.data()),
                                           bytes.size());
}

OSSL_PARAM text(const char* name, std::string& value) {
  return OSSL_PARAM_construct_utf8_string(name, value.data(), 0);
}

Heap encrypt(const char* cipher_name, Bytes key, const Iv& iv, OSSL_PARAM* params, Bytes plain) {
  const Cipher cipher(EVP_CIPHER_fetch(nullptr, cipher_name, nullptr));
  const CipherContext context(EVP_CIPHER_CTX_new());
  LK_CHECK(cipher && context);
  LK_CHECK(EVP_EncryptInit_ex2(context.get(), cipher.get(), read_by(key), iv.data(), params) == 1);
  Heap sealed(plain.size());
  int size = 0;
  LK_CHECK(EVP_EncryptUpdate(context.get(), reinterpret_cast<unsigned char*>(sealed.data()), &size,
                             read_by(plain), static_cast<int>(plain.size())) == 1);
  LK_CHECK(static_cast<std::size_t>(size) == plain.size());
  return sealed;
}

}  // namespace

Heap fscrypt_derive(Bytes master, u8 context, Bytes info, std::size_t size) {
  const Kdf kdf(EVP_KDF_fetch(nullptr, "HKDF", nullptr));
  const KdfContext derivation(EVP_KDF_CTX_new(kdf.get()));
  LK_CHECK(kdf && derivation);
  constexpr std::string_view kLabel{"fscrypt\0", 8};
  Heap whole(kLabel.size() + 1 + info.size());
  std::ranges::copy(std::as_bytes(std::span(kLabel)), whole.begin());
  whole[kLabel.size()] = std::byte{context};
  std::ranges::copy(info, whole.begin() + kLabel.size() + 1);
  const Heap salt(SHA512_DIGEST_LENGTH);
  std::string digest = "SHA512";
  const std::array params{text(OSSL_KDF_PARAM_DIGEST, digest), octets(OSSL_KDF_PARAM_KEY, master),
                          octets(OSSL_KDF_PARAM_SALT, salt), octets(OSSL_KDF_PARAM_INFO, whole),
                          OSSL_PARAM_construct_end()};
  Heap key(size);
  LK_CHECK(EVP_KDF_derive(derivation.get(), reinterpret_cast<unsigned char*>(key.data()), size,
                          params.data()) == 1);
  return key;
}

Heap xts_seal(Bytes key, u64 unit, Bytes plain) {
  Iv iv{};
  for (std::size_t i = 0; i < sizeof unit; ++i) iv[i] = static_cast<unsigned char>(unit >> 8 * i);
  return encrypt("AES-256-XTS", key, iv, nullptr, plain);
}

std::string cts_seal(Bytes key, std::string_view plain, std::size_t bytes_max) {
  std::string padded(plain);
  padded.resize(std::min((plain.size() + 31) / 32 * 32, bytes_max), '\0');
  std::string variant = "CS3";
  std::array params{text(OSSL_CIPHER_PARAM_CTS_MODE, variant), OSSL_PARAM_construct_end()};
  const Heap sealed =
      encrypt("AES-256-CBC-CTS", key, {}, params.data(), std::as_bytes(std::span(padded)));
  return {reinterpret_cast<const char*>(sealed.data()), sealed.size()};
}

std::string no_key_form(std::string_view sealed) {
  constexpr std::size_t kWhole = 149;
  std::string raw(8, '\0');
  raw += sealed.substr(0, kWhole);
  if (sealed.size() > kWhole) {
    std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
    SHA256(reinterpret_cast<const unsigned char*>(sealed.data()) + kWhole, sealed.size() - kWhole,
           digest.data());
    raw.append(digest.begin(), digest.end());
  }
  std::string form(raw.size() * 4 / 3 + 8, '\0');
  const int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(form.data()),
                                   reinterpret_cast<const unsigned char*>(raw.data()),
                                   static_cast<int>(raw.size()));
  form.resize(static_cast<std::size_t>(size));
  std::ranges::replace(form, '+', '-');
  std::ranges::replace(form, '/', '_');
  form.resize(std::min(form.find('='), form.size()));
  return form;
}

}  // namespace latchkey::tests
