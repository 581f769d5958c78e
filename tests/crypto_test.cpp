// Goal: our bytes are everybody's bytes. Every kernel that this machine can run gives the published
// answers, the kernels agree with each other, and names round-trip at every length that matters.
// Method: text vectors in tests/vectors/, each file naming its source; seeded random cases of the
// native kernel against OpenSSL.

#include <gtest/gtest.h>
#include <openssl/sha.h>

#include <cstring>
#include <fstream>
#include <map>
#include <random>

#include "base/hex.h"
#include "crypto/hkdf.h"
#include "crypto/kernel.h"
#include "crypto/names.h"
#include "crypto/xts.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

using namespace crypto;  // NOLINT: the whole file is about it

using Vector = std::map<std::string, std::string>;
using Buffer = std::vector<std::byte>;

std::vector<Vector> load(const std::string& file) {
  std::ifstream in(std::string(LATCHKEY_SOURCE_DIR) + "/tests/vectors/" + file);
  EXPECT_TRUE(in) << file;
  std::vector<Vector> vectors(1);
  for (std::string line; std::getline(in, line);) {
    if (line.empty() && !vectors.back().empty()) vectors.emplace_back();
    const std::size_t equals = line.find(" =");
    if (line.empty() || line[0] == '#' || equals == std::string::npos) continue;
    vectors.back()[line.substr(0, equals)] =
        line.size() > equals + 3 ? line.substr(equals + 3) : "";
  }
  if (vectors.back().empty()) vectors.pop_back();
  EXPECT_GT(vectors.size(), 0U);
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
  u32 seen = 0;
  for (const Vector& vector : load("xts.txt")) {
    SCOPED_TRACE(vector.at("name"));
    const auto key = xts_key(unhex(vector.at("key")));
    const Buffer plain = unhex(vector.at("plaintext"));
    const Buffer sealed = unhex(vector.at("ciphertext"));
    const XtsRun run{std::stoull(vector.at("tweak"), nullptr, 16), static_cast<u32>(plain.size())};
    Buffer out(plain.size());
    xts_seal(*key, run, plain, out);
    EXPECT_EQ(out, sealed);
    xts_open(*key, run, out, out);
    EXPECT_EQ(out, plain);
    ++seen;
  }
  EXPECT_GE(seen, 10U);
}

TEST_P(EveryKernel, aes_gives_the_published_answer) {
  u32 seen = 0;
  for (const Vector& vector : load("aes.txt")) {
    SCOPED_TRACE(vector.at("name"));
    auto key = Secret<NameKey>::create();
    ASSERT_TRUE(key);
    kernel().expand_name(unhex(vector.at("key")), **key);
    const Buffer plain = unhex(vector.at("plaintext"));
    Buffer block = plain;
    kernel().cbc_encrypt(**key, block);  // one block and a zero IV: the cipher alone
    EXPECT_EQ(to_hex(block), vector.at("ciphertext"));
    kernel().cbc_decrypt(**key, block);
    EXPECT_EQ(block, plain);
    ++seen;
  }
  EXPECT_EQ(seen, 1U);
}

TEST_P(EveryKernel, fscrypt_contents_equal_the_known_answers) {
  u32 seen = 0;
  for (const Vector& vector : load("fscrypt.txt")) {
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
  EXPECT_GE(seen, 5U);
}

TEST(Crypto, hkdf_gives_the_published_answers) {
  u32 seen = 0;
  for (const Vector& vector : load("hkdf.txt")) {
    SCOPED_TRACE(vector.at("name"));
    const auto state = state_of(vector, "ikm");
    Buffer output(vector.at("okm").size() / 2);
    hkdf_expand_info(*state, unhex(vector.at("info")), output);
    EXPECT_EQ(to_hex(output), vector.at("okm"));
    ++seen;
  }
  EXPECT_EQ(seen, 7U);
}

TEST(Crypto, identifiers_and_derivations_equal_the_known_answers) {
  u32 identifiers = 0, keys = 0;
  for (const Vector& vector : load("fscrypt.txt")) {
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
  EXPECT_GE(keys, 4U);
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
  for (const Vector& vector : load("fscrypt.txt")) {
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
  EXPECT_GE(seen, 7U);
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
  }
  EXPECT_FALSE(decrypt_name(**key, "short"));
  EXPECT_FALSE(could_be_no_key_name("a name with spaces"));
}

// OpenSSL's bytes are the measure; it is the last kernel and usable everywhere.
TEST_P(EveryKernel, agrees_with_openssl_on_random_runs) {
  if (GetParam() == "openssl") GTEST_SKIP() << "it is the measure";
  const u64 seed = seed_base() + 20261121;
  std::mt19937_64 random(seed);
  for (int i = 0; i < 2000; ++i) {
    const u32 unit = 16 * (1 + static_cast<u32>(random() % (i % 10 == 0 ? 4096 : 64)));
    Buffer raw(64), plain(unit * (1 + random() % 9)), ours(plain.size()), theirs(plain.size());
    for (std::byte& byte : raw) byte = static_cast<std::byte>(random());
    for (std::byte& byte : plain) byte = static_cast<std::byte>(random());
    const XtsRun run{random(), unit};
    for (const bool seal : {true, false}) {
      for (Buffer* result : {&ours, &theirs}) {
        ASSERT_TRUE(xts_force_kernel(result == &ours ? GetParam() : "openssl"));
        const auto key = xts_key(raw);
        (seal ? xts_seal : xts_open)(*key, run, plain, *result);
      }
      ASSERT_EQ(ours, theirs) << "seed " << seed << ", case " << i << ", unit " << unit;
    }
  }
}

}  // namespace
}  // namespace latchkey::tests
