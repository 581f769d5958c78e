// Goal: our bytes are everybody's bytes. Every kernel that this machine can run gives the published
// answers, the kernels agree with each other, and names round-trip at every length that matters.
// Method: text vectors in tests/vectors/, each file naming its source; seeded random cases of each
// kernel and of HKDF against OpenSSL, ten thousand unless LATCHKEY_CASES says otherwise.

#include <gtest/gtest.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/sha.h>

#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>

#include "base/hex.h"
#include "crypto/hkdf.h"
#include "crypto/kernel.h"
#include "crypto/names.h"
#include "crypto/raw_key.h"
#include "crypto/values.h"
#include "crypto/xts.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

using namespace crypto;  // NOLINT: the whole file is about it

using Vector = std::map<std::string, std::string>;
using Buffer = std::vector<std::byte>;

// A file of vectors and how many there are, so that no test passes because there were none.
struct Published {
  const char* file;
  std::size_t count;
};
constexpr Published kXtsVectors[] = {
    {"xts_ieee_1619.txt", 5}, {"xts_nist.txt", 600}, {"xts_wycheproof.txt", 13}};
constexpr Published kAesVectors[] = {
    {"aes_fips_197.txt", 1}, {"aes_nist_keysbox.txt", 16}, {"aes_nist_varkey.txt", 256}};
constexpr Published kHkdfVectors = {"hkdf_wycheproof.txt", 9};
constexpr Published kGcmVectors[] = {{"gcm_nist.txt", 100}, {"gcm_wycheproof.txt", 66}};
constexpr Published kFscryptVectors = {"fscrypt.txt", 19};

std::vector<Vector> load(const Published& published) {
  std::ifstream in(std::string(LATCHKEY_SOURCE_DIR) + "/tests/vectors/" + published.file);
  EXPECT_TRUE(in) << published.file;
  std::vector<Vector> vectors(1);
  for (std::string line; std::getline(in, line);) {
    if (line.empty() && !vectors.back().empty()) vectors.emplace_back();
    const std::size_t equals = line.find(" =");
    if (line.empty() || line[0] == '#' || equals == std::string::npos) continue;
    vectors.back()[line.substr(0, equals)] =
        line.size() > equals + 3 ? line.substr(equals + 3) : "";
  }
  if (vectors.back().empty()) vectors.pop_back();
  EXPECT_EQ(vectors.size(), published.count) << published.file;
  return vectors;
}

Buffer unhex(const std::string& text) {
  Buffer bytes(text.size() / 2);
  EXPECT_TRUE(from_hex(text, bytes)) << text;
  return bytes;
}

Secret<XtsKey> xts_key(Bytes raw) {
  auto key = Secret<XtsKey>::create();
  EXPECT_TRUE(key);
  xts_expand(raw, **key);
  return std::move(*key);
}

Secret<HkdfState> state_of(const Vector& vector, const std::string& field = "master") {
  auto state = Secret<HkdfState>::create();
  EXPECT_TRUE(state);
  Buffer master(64);
  for (std::size_t i = 0; i < 64; ++i) master[i] = static_cast<std::byte>(i);
  if (vector.contains(field)) master = unhex(vector.at(field));
  hkdf_extract(master, **state);
  return std::move(*state);
}

class EveryKernel : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    before_ = xts_kernel();
    if (!xts_force_kernel(GetParam())) GTEST_SKIP() << "this processor has no " << GetParam();
  }
  void TearDown() override { EXPECT_TRUE(xts_force_kernel(before_)); }
  std::string before_;
};

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : xts_kernels()) names.emplace_back(kernel.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Crypto, EveryKernel, ::testing::ValuesIn(kernel_names()),
                         [](const auto& param) { return param.param; });

TEST_P(EveryKernel, xts_gives_the_published_answers_in_place_and_out_of_place) {
  for (const Published& published : kXtsVectors) {
    for (const Vector& vector : load(published)) {
      SCOPED_TRACE(vector.at("name"));
      const auto key = xts_key(unhex(vector.at("key")));
      const Buffer plain = unhex(vector.at("plaintext"));
      const Buffer sealed = unhex(vector.at("ciphertext"));
      const XtsRun run{std::stoull(vector.at("tweak"), nullptr, 16),
                       static_cast<u32>(plain.size())};
      Buffer out(plain.size());
      xts_seal(*key, run, plain, out);
      ASSERT_EQ(out, sealed);
      xts_open(*key, run, out, out);
      ASSERT_EQ(out, plain);
      xts_seal(*key, run, out, out);
      ASSERT_EQ(out, sealed);
    }
  }
}

TEST_P(EveryKernel, aes_gives_the_published_answers) {
  for (const Published& published : kAesVectors) {
    for (const Vector& vector : load(published)) {
      SCOPED_TRACE(vector.at("name"));
      auto key = Secret<NameKey>::create();
      ASSERT_TRUE(key);
      kernel().expand_name(unhex(vector.at("key")), **key);
      const Buffer plain = unhex(vector.at("plaintext"));
      Buffer block = plain;
      kernel().cbc_encrypt(**key, block);  // one block and a zero IV: the cipher alone
      ASSERT_EQ(to_hex(block), vector.at("ciphertext"));
      kernel().cbc_decrypt(**key, block);
      ASSERT_EQ(block, plain);
    }
  }
}

TEST_P(EveryKernel, fscrypt_contents_equal_the_known_answers) {
  u32 seen = 0;
  for (const Vector& vector : load(kFscryptVectors)) {
    if (!vector.contains("sha256")) continue;
    SCOPED_TRACE(vector.at("name"));
    const auto state = state_of(vector);
    const bool extent = vector.contains("extent_nonce");
    auto raw = SecretBytes::create(kXtsKeyBytes);
    ASSERT_TRUE(raw);
    hkdf_expand(*state, extent ? Context::per_extent : Context::per_file,
                unhex(vector.at(extent ? "extent_nonce" : "file_nonce")), raw->bytes());
    const auto key = xts_key(raw->bytes());
    const std::size_t skip = vector.contains("skip") ? std::stoull(vector.at("skip")) : 0;
    Buffer data(std::stoull(vector.at("size")));
    for (std::size_t i = 0; i < data.size(); ++i)
      data[i] = static_cast<std::byte>(7 * (i + skip) + 3);
    const XtsRun run{std::stoull(vector.at("first_unit")),
                     static_cast<u32>(std::stoul(vector.at("unit_bytes")))};
    xts_seal(*key, run, data, data);
    EXPECT_EQ(to_hex(Bytes(data).first(16)), vector.at("head"));
    std::array<std::byte, 32> digest;
    SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(),
           reinterpret_cast<unsigned char*>(digest.data()));
    EXPECT_EQ(to_hex(digest), vector.at("sha256"));
    ++seen;
  }
  EXPECT_EQ(seen, 5U);
}

Secret<ValueKey> value_key(Bytes raw) {
  auto key = Secret<ValueKey>::create();
  EXPECT_TRUE(key);
  std::ranges::copy(raw, (*key)->raw.begin());
  return std::move(*key);
}

// nonce || ciphertext || tag, as values are stored.
TEST(Crypto, values_give_the_published_answers_of_gcm) {
  u32 valid = 0, invalid = 0;
  for (const Published& published : kGcmVectors) {
    for (const Vector& vector : load(published)) {
      SCOPED_TRACE(vector.at("name"));
      const auto key = value_key(unhex(vector.at("key")));
      ValueNonce nonce;
      ASSERT_TRUE(from_hex(vector.at("nonce"), nonce));
      const Buffer name = unhex(vector.at("associated"));
      const Buffer plain = unhex(vector.at("plaintext"));
      const std::string stored = vector.at("nonce") + vector.at("ciphertext") + vector.at("tag");
      const auto opened = decrypt_value(*key, name, unhex(stored));
      if (vector.at("result") == "valid") {
        EXPECT_EQ(to_hex(encrypt_value(*key, nonce, name, plain)), stored);
        ASSERT_TRUE(opened) << opened.error().what;
        EXPECT_EQ(*opened, plain);
        ++valid;
      } else {
        EXPECT_FALSE(opened);
        ++invalid;
      }
    }
  }
  EXPECT_EQ(valid, 139U);
  EXPECT_EQ(invalid, 27U);
}

// The answers are python3-cryptography's: HKDF with the info of values.h, then AESGCM.
TEST(Crypto, a_value_is_sealed_under_its_inodes_own_key) {
  const auto state = state_of({});
  Nonce inode_nonce;
  ASSERT_TRUE(from_hex("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", inode_nonce.bytes));
  auto key = Secret<ValueKey>::create();
  ASSERT_TRUE(key);
  derive_value_key(*state, inode_nonce, **key);
  EXPECT_EQ(to_hex((*key)->raw),
            "b37c58af0020a0268871ea72f58cd86b219e9407bc5812ebef4168e5839d2d3e");
  ValueNonce nonce;
  ASSERT_TRUE(from_hex("b0b1b2b3b4b5b6b7b8b9babb", nonce));
  const auto bytes = [](std::string_view text) { return std::as_bytes(std::span(text)); };
  const Buffer stored = encrypt_value(**key, nonce, bytes("user.name"), bytes("a value"));
  EXPECT_EQ(to_hex(stored),
            "b0b1b2b3b4b5b6b7b8b9babb926e41d4ea8e82818ab42227d7a1b0853787c3c6c4d1ab");
  EXPECT_TRUE(decrypt_value(**key, bytes("user.name"), stored));
  EXPECT_FALSE(decrypt_value(**key, bytes("user.other"), stored)) << "the name is bound";
  for (std::size_t i = 0; i < stored.size(); ++i) {
    Buffer forged = stored;
    forged[i] ^= std::byte{1};
    EXPECT_FALSE(decrypt_value(**key, bytes("user.name"), forged)) << i;
    EXPECT_FALSE(decrypt_value(**key, bytes("user.name"), Bytes(stored).first(i))) << i;
  }
}

TEST(Crypto, hkdf_gives_the_published_answers) {
  for (const Vector& vector : load(kHkdfVectors)) {
    SCOPED_TRACE(vector.at("name"));
    const auto state = state_of(vector, "ikm");
    Buffer output(vector.at("okm").size() / 2);
    hkdf_expand_info(*state, unhex(vector.at("info")), output);
    EXPECT_EQ(to_hex(output), vector.at("okm"));
  }
}

TEST(Crypto, identifiers_and_derivations_equal_the_known_answers) {
  u32 identifiers = 0, keys = 0;
  for (const Vector& vector : load(kFscryptVectors)) {
    SCOPED_TRACE(vector.at("name"));
    const auto state = state_of(vector);
    if (vector.contains("identifier")) {
      EXPECT_EQ(to_hex(key_identifier(*state).span()), vector.at("identifier"));
      ++identifiers;
    }
    if (vector.contains("context")) {
      Buffer key(vector.at("key").size() / 2);
      hkdf_expand(*state, static_cast<Context>(std::stoi(vector.at("context"))),
                  unhex(vector.at("info")), key);
      EXPECT_EQ(to_hex(key), vector.at("key"));
      ++keys;
    }
  }
  EXPECT_EQ(identifiers, 3U);
  EXPECT_EQ(keys, 4U);
}

TEST_P(EveryKernel, keys_derived_together_equal_keys_derived_one_by_one) {
  const u64 seed = seed_base() + 20261122;
  std::mt19937_64 random(seed);
  const auto state = state_of({});
  constexpr std::size_t kMost = 19;
  auto keys = Secret<std::array<XtsKey, kMost>>::create();
  auto one = Secret<XtsKey>::create();
  ASSERT_TRUE(keys && one);
  for (std::size_t count = 0; count <= kMost; ++count) {
    std::vector<Nonce> nonces(count);
    for (Nonce& nonce : nonces)
      for (std::byte& byte : nonce.bytes) byte = static_cast<std::byte>(random());
    derive_extent_keys(*state, nonces, std::span(**keys).first(count));
    for (std::size_t i = 0; i < count; ++i) {
      derive_extent_key(*state, nonces[i], **one);
      EXPECT_EQ(std::memcmp(&(**keys)[i], &**one, sizeof(XtsKey)), 0)
          << "seed " << seed << ", " << count << " keys, number " << i;
    }
  }
}

TEST(Crypto, names_equal_the_known_answers_and_their_no_key_form) {
  u32 seen = 0;
  for (const Vector& vector : load(kFscryptVectors)) {
    if (!vector.contains("no_key")) continue;
    SCOPED_TRACE(vector.at("name"));
    const Buffer raw = unhex(vector.at("stored"));
    const std::string stored(reinterpret_cast<const char*>(raw.data()), raw.size());
    EXPECT_EQ(no_key_name(stored), vector.at("no_key"));
    EXPECT_TRUE(matches_no_key_name(vector.at("no_key"), stored));
    EXPECT_FALSE(matches_no_key_name(vector.at("no_key"), stored + "x"));
    const auto state = state_of(vector);
    Nonce nonce;
    ASSERT_TRUE(from_hex(vector.at("directory_nonce"), nonce.bytes));
    auto key = Secret<NameKey>::create();
    ASSERT_TRUE(key);
    derive_name_key(*state, nonce, **key);
    EXPECT_EQ(decrypt_name(**key, stored).value_or("?"), vector.at("plain"));
    if (vector.at("padding") == "32") {
      EXPECT_EQ(encrypt_name(**key, vector.at("plain")), stored);
    }
    ++seen;
  }
  EXPECT_EQ(seen, 7U);
}

TEST(Crypto, names_of_every_length_that_matters_round_trip) {
  const auto state = state_of({});
  auto key = Secret<NameKey>::create();
  ASSERT_TRUE(key);
  derive_name_key(*state, Nonce{}, **key);
  for (const std::size_t length : {1, 3, 15, 16, 17, 32, 100, 254, 255}) {
    std::string name(length, 'n');
    name.back() = static_cast<char>('a' + length % 26);
    const std::string stored = encrypt_name(**key, name);
    EXPECT_EQ(stored.size(), std::min<std::size_t>((length + 31) / 32 * 32, 255));
    EXPECT_EQ(decrypt_name(**key, stored).value_or("?"), name);
    EXPECT_LE(no_key_name(stored).size(), kNoKeyNameBytesMax);
    EXPECT_EQ(stored_in_no_key_name(no_key_name(stored)),
              length <= 128 ? std::optional(stored) : std::nullopt);
  }
  EXPECT_FALSE(decrypt_name(**key, "short"));
  for (const std::size_t length : {1, 16, 32, 33, 255, 256, 1000, 4064, 4065, 4092, 4093}) {
    std::string target(length, '/');
    target.back() = static_cast<char>('a' + length % 26);
    const std::string stored = encrypt_target(**key, target);
    EXPECT_EQ(stored.size(), std::min<std::size_t>((length + 31) / 32 * 32, 4093));
    EXPECT_EQ(decrypt_target(**key, stored).value_or("?"), target);
    EXPECT_LE(no_key_name(stored).size(), kNoKeyNameBytesMax);
    if (length < 224) {
      EXPECT_EQ(stored, encrypt_name(**key, target)) << "they differ in the longest one only";
    }
  }
  EXPECT_FALSE(decrypt_target(**key, "short"));
  EXPECT_FALSE(decrypt_target(**key, std::string(4094, 'x')));
  EXPECT_FALSE(decrypt_target(**key, encrypt_target(**key, std::string(1, '\0')))) << "empty";
}

TEST(Crypto, a_text_that_is_no_no_key_name_holds_no_stored_name) {
  EXPECT_EQ(stored_in_no_key_name(no_key_name("0123456789abcdef")), "0123456789abcdef");
  EXPECT_FALSE(could_be_no_key_name("a name with spaces"));
  for (const char* text : {"", "a name with spaces", "AAAAAAAAAAA",  // no more than the two words
                           "AAAAAAAAAABCDE",                         // bits left over
                           "0123456789abcdef"})                      // words that are not zero
    EXPECT_FALSE(stored_in_no_key_name(text)) << text;
}

void fill(std::mt19937_64& random, MutableBytes bytes) {
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(u64)) {
    const u64 value = random();
    std::memcpy(bytes.data() + at, &value, std::min(sizeof value, bytes.size() - at));
  }
}

using raw_key::octets;

// OpenSSL's AES-256-XTS, called here and not through a kernel: that one is judged as well.
class OpensslXts {
 public:
  OpensslXts() : context_(EVP_CIPHER_CTX_new()) {}
  void crypt(bool seal, Bytes raw, XtsRun run, Bytes input, MutableBytes output) {
    ASSERT_EQ(EVP_CipherInit_ex(context_.get(), cipher_.get(), nullptr, octets(raw), nullptr, seal),
              1);
    u64 unit = run.first_unit;
    for (std::size_t at = 0; at < input.size(); at += run.unit_bytes, ++unit) {
      std::array<unsigned char, 16> iv{};
      for (std::size_t i = 0; i < 8; ++i) iv[i] = static_cast<unsigned char>(unit >> (8 * i));
      ASSERT_EQ(EVP_CipherInit_ex(context_.get(), nullptr, nullptr, nullptr, iv.data(), seal), 1);
      int written = 0;
      ASSERT_EQ(EVP_CipherUpdate(context_.get(), octets(output.subspan(at)), &written,
                                 octets(input.subspan(at)), static_cast<int>(run.unit_bytes)),
                1);
      ASSERT_EQ(written, static_cast<int>(run.unit_bytes));
    }
  }

 private:
  template <auto kFree>
  struct Free {
    void operator()(auto* object) const { kFree(object); }
  };
  std::unique_ptr<EVP_CIPHER, Free<EVP_CIPHER_free>> cipher_{
      EVP_CIPHER_fetch(nullptr, "AES-256-XTS", nullptr)};
  std::unique_ptr<EVP_CIPHER_CTX, Free<EVP_CIPHER_CTX_free>> context_;
};

// One in ten has units of any size, the others small ones; few units mostly. Memory begins
// anywhere, as a caller's may, but for what goes past the caches: that wants an aligned output.
// Numbers of units are random, or just around a carry out of 32 bits, or the last that there are.
TEST_P(EveryKernel, agrees_with_openssl_on_random_runs) {
  constexpr u32 kUnitsMost = 9, kBytesMost = kUnitsMost * 65536, kAlign = 64;
  enum How { in_place, out_of_place, streaming, scattered };
  const u64 seed = seed_base() + 20261121, count = cases(10'000);
  std::mt19937_64 random(seed);
  OpensslXts openssl;
  Buffer raw(kXtsKeyBytes), theirs(kBytesMost), input(kBytesMost + kAlign);
  Buffer output(kBytesMost + 2 * kAlign);
  const std::size_t aligned =
      (kAlign - reinterpret_cast<std::uintptr_t>(output.data()) % kAlign) % kAlign;
  auto key = Secret<XtsKey>::create();
  ASSERT_TRUE(key);
  for (u64 i = 0; i < count; ++i) {
    const u32 unit = 16 * (1 + static_cast<u32>(random() % (i % 10 == 0 ? 4096 : 64)));
    const u32 units = 1 + static_cast<u32>(random() % kUnitsMost);
    const std::size_t size = std::size_t{unit} * units;
    const u64 firsts[] = {random(), 0xffffffff - random() % units, ~u64{0} - (units - 1)};
    const How how = How(random() % 4);
    const bool seal = how == scattered || random() % 2 == 0;
    const XtsRun run{firsts[i % 16 < 14 ? 0 : i % 16 - 13], unit, how == streaming};
    fill(random, raw);
    const MutableBytes from = MutableBytes(input).subspan(random() % kAlign, size);
    const MutableBytes to =
        MutableBytes(output).subspan(aligned + (how == streaming ? 0 : random() % kAlign), size);
    fill(random, from);
    openssl.crypt(seal, raw, run, from, MutableBytes(theirs).first(size));
    xts_expand(raw, **key);
    if (how == scattered) {
      std::vector<const std::byte*> parts;
      for (u32 part = 0; part < units; ++part) parts.push_back(&from[std::size_t{part} * unit]);
      xts_seal_scattered(**key, run, parts, to);
    } else {
      if (how == in_place) std::memcpy(to.data(), from.data(), size);
      (seal ? xts_seal : xts_open)(**key, run, how == in_place ? Bytes(to) : Bytes(from), to);
    }
    ASSERT_EQ(std::memcmp(to.data(), theirs.data(), size), 0)
        << "seed " << seed << ", case " << i << ", unit " << unit << ", " << units << " units from "
        << run.first_unit << (seal ? ", sealed, way " : ", opened, way ") << how;
  }
}

// OpenSSL's HKDF-SHA512 (RFC 5869) without a salt, on everything that our interface can express.
TEST(Crypto, hkdf_agrees_with_openssl_on_random_inputs) {
  const u64 seed = seed_base() + 20261123, count = cases(10'000);
  std::mt19937_64 random(seed);
  const std::unique_ptr<EVP_KDF, decltype(&EVP_KDF_free)> kdf(
      EVP_KDF_fetch(nullptr, "HKDF", nullptr), EVP_KDF_free);
  const std::unique_ptr<EVP_KDF_CTX, decltype(&EVP_KDF_CTX_free)> context(
      EVP_KDF_CTX_new(kdf.get()), EVP_KDF_CTX_free);
  ASSERT_NE(context, nullptr);
  auto state = Secret<HkdfState>::create();
  ASSERT_TRUE(state);
  for (u64 i = 0; i < count; ++i) {
    Buffer master(32 + random() % 33), info(random() % (kInfoBytesMax + 1));
    Buffer ours(1 + random() % 64), theirs(ours.size());
    fill(random, master);
    fill(random, info);
    char digest[] = "SHA512";
    const OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, master.data(), master.size()),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info.data(), info.size()),
        OSSL_PARAM_construct_end()};
    EVP_KDF_CTX_reset(context.get());
    ASSERT_EQ(
        EVP_KDF_derive(context.get(), octets(MutableBytes(theirs)), theirs.size(), parameters), 1);
    hkdf_extract(master, **state);
    hkdf_expand_info(**state, info, ours);
    ASSERT_EQ(ours, theirs) << "seed " << seed << ", case " << i;
  }
}

}  // namespace
}  // namespace latchkey::tests
