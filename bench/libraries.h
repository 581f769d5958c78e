#pragma once
// Other people's AES-256-XTS and HKDF, used as their users are told to: a context keyed once, a
// tweak a unit; an HKDF context kept. What ours runs beside. Keys and data here are not secret.

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#if LK_HAVE_GCRYPT
#include <gcrypt.h>
#endif

#include <array>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "crypto/hkdf.h"

namespace latchkey::bench {

inline const unsigned char* octets(Bytes bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}
inline unsigned char* octets(MutableBytes bytes) {
  return reinterpret_cast<unsigned char*>(bytes.data());
}

class OpensslXts {
 public:
  OpensslXts(Bytes raw, bool seal)
      : cipher_(EVP_CIPHER_fetch(nullptr, "AES-256-XTS", nullptr)),
        context_(EVP_CIPHER_CTX_new()),
        seal_(seal) {
    LK_CHECK_MSG(cipher_ != nullptr && context_ != nullptr, "OpenSSL has no AES-256-XTS");
    rekey(raw);
  }
  ~OpensslXts() {
    EVP_CIPHER_CTX_free(context_);
    EVP_CIPHER_free(cipher_);
  }
  OpensslXts(const OpensslXts&) = delete;
  OpensslXts& operator=(const OpensslXts&) = delete;

  void rekey(Bytes raw) {
    LK_CHECK(EVP_CipherInit_ex(context_, cipher_, nullptr, octets(raw), nullptr, seal_) == 1);
  }
  void run(u64 first_unit, u32 unit_bytes, Bytes input, MutableBytes output) {
    for (std::size_t offset = 0; offset < input.size(); offset += unit_bytes) {
      unsigned char tweak[16] = {};
      const u64 unit = first_unit + offset / unit_bytes;
      for (int i = 0; i < 8; ++i) tweak[i] = static_cast<unsigned char>(unit >> (8 * i));
      LK_CHECK(EVP_CipherInit_ex(context_, nullptr, nullptr, nullptr, tweak, seal_) == 1);
      int written = 0;
      LK_CHECK(EVP_CipherUpdate(context_, octets(output.subspan(offset, unit_bytes)), &written,
                                octets(input.subspan(offset, unit_bytes)),
                                static_cast<int>(unit_bytes)) == 1);
    }
  }

 private:
  EVP_CIPHER* cipher_;
  EVP_CIPHER_CTX* context_;
  int seal_;
};

#if LK_HAVE_GCRYPT
class GcryptXts {
 public:
  GcryptXts(Bytes raw, bool seal) : seal_(seal) {
    LK_CHECK_MSG(gcry_check_version(nullptr) != nullptr, "libgcrypt cannot begin");
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
    LK_CHECK(gcry_cipher_open(&handle_, GCRY_CIPHER_AES256, GCRY_CIPHER_MODE_XTS, 0) == 0);
    LK_CHECK(gcry_cipher_setkey(handle_, raw.data(), raw.size()) == 0);
  }
  ~GcryptXts() { gcry_cipher_close(handle_); }
  GcryptXts(const GcryptXts&) = delete;
  GcryptXts& operator=(const GcryptXts&) = delete;

  void run(u64 first_unit, u32 unit_bytes, Bytes input, MutableBytes output) {
    const auto call = seal_ ? gcry_cipher_encrypt : gcry_cipher_decrypt;
    for (std::size_t offset = 0; offset < input.size(); offset += unit_bytes) {
      const u64 tweak[2] = {first_unit + offset / unit_bytes, 0};
      LK_CHECK(gcry_cipher_setiv(handle_, tweak, sizeof tweak) == 0);
      LK_CHECK(call(handle_, output.data() + offset, unit_bytes, input.data() + offset,
                    unit_bytes) == 0);
    }
  }

 private:
  gcry_cipher_hd_t handle_ = nullptr;
  const bool seal_;
};
#endif

// EVP_KDF "HKDF", expand only: the extract is done once a master key on both sides.
class OpensslHkdf {
 public:
  explicit OpensslHkdf(Bytes master) {
    EVP_KDF* kdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
    context_ = EVP_KDF_CTX_new(kdf);
    EVP_KDF_free(kdf);
    LK_CHECK_MSG(context_ != nullptr, "OpenSSL has no HKDF");
    std::vector<std::byte> pseudorandom(64), salt(64), input(master.begin(), master.end());
    set(EVP_KDF_HKDF_MODE_EXTRACT_ONLY, input, salt);
    LK_CHECK(EVP_KDF_derive(context_, octets(MutableBytes(pseudorandom)), pseudorandom.size(),
                            nullptr) == 1);
    set(EVP_KDF_HKDF_MODE_EXPAND_ONLY, pseudorandom, salt);
    std::memcpy(info_.data(), "fscrypt", 8);
    info_[8] = static_cast<std::byte>(crypto::Context::per_extent);
  }
  ~OpensslHkdf() { EVP_KDF_CTX_free(context_); }
  OpensslHkdf(const OpensslHkdf&) = delete;
  OpensslHkdf& operator=(const OpensslHkdf&) = delete;

  void extent_key(const crypto::Nonce& nonce, MutableBytes key) {
    std::memcpy(info_.data() + 9, nonce.bytes.data(), nonce.bytes.size());
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info_.data(), info_.size()),
        OSSL_PARAM_construct_end()};
    LK_CHECK(EVP_KDF_derive(context_, octets(key), key.size(), params) == 1);
  }

 private:
  void set(int mode, std::vector<std::byte>& key, std::vector<std::byte>& salt) {
    char digest[] = "SHA512";
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, key.data(), key.size()),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, salt.data(), salt.size()),
        OSSL_PARAM_construct_end()};
    LK_CHECK(EVP_KDF_CTX_set_params(context_, params) == 1);
  }

  EVP_KDF_CTX* context_ = nullptr;
  std::array<std::byte, 25> info_{};
};

}  // namespace latchkey::bench
