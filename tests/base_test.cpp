// base/: results, on-disk integers, checksums, hex, text, clock and chance.

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/checksum.h"
#include "base/disk.h"
#include "base/env.h"
#include "base/hex.h"
#include "base/result.h"
#include "base/text.h"

namespace latchkey {
namespace {

Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// ---- on-disk integers

struct Sample {
  u8 tag;
  Le16 two;
  Le32 four;
  Le64 eight;
};
LK_DISK_STRUCT(Sample, 15);
LK_DISK_FIELD(Sample, eight, 7);

TEST(Disk, IntegersAreLittleEndianAndUnaligned) {
  const Sample sample{.tag = 0xee, .two = 0x0102, .four = 0x03040506, .eight = 0x0708090a0b0c0d0eU};
  std::vector<std::byte> image(sizeof sample);
  store_disk(image, sample);
  EXPECT_EQ(to_hex(image), "ee0201060504030e0d0c0b0a090807");
  const auto loaded = load_disk<Sample>(image);
  EXPECT_EQ(loaded.two, 0x0102);
  EXPECT_EQ(loaded.four, 0x03040506U);
  EXPECT_EQ(loaded.eight, 0x0708090a0b0c0d0eU);
}

TEST(Disk, IntegersKeepTheirLimits) {
  for (const u64 value : {u64{0}, u64{1}, u64{0x80}, u64{1} << 63, ~u64{0}}) {
    EXPECT_EQ(Le64(value).get(), value);
    EXPECT_EQ(Le32(static_cast<u32>(value)).get(), static_cast<u32>(value));
    EXPECT_EQ(Le16(static_cast<u16>(value)).get(), static_cast<u16>(value));
  }
}

// ---- checksums

// The definition of CRC-32C, bit by bit, reflected polynomial 0x82f63b78.
u32 crc32c_by_bits(Bytes bytes) {
  u32 crc = ~u32{0};
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<u32>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78U : 0);
  }
  return ~crc;
}

TEST(Checksum, Crc32cOfTheCheckString) {
  // The check value of CRC-32/ISCSI in the catalogue of parametrised CRC algorithms.
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xe3069283U);
  EXPECT_EQ(crc32c({}), 0U);
}

TEST(Checksum, Crc32cEqualsItsDefinition) {
  const u32 seed = std::random_device{}();
  std::mt19937 random(seed);
  std::vector<std::byte> data(5000);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random());
  for (int round = 0; round < 200; ++round) {
    const std::size_t first = random() % 100;
    const std::size_t size = random() % (data.size() - first);
    const Bytes piece = Bytes(data).subspan(first, size);
    ASSERT_EQ(crc32c(piece), crc32c_by_bits(piece))
        << "seed " << seed << " first " << first << " size " << size;
  }
}

// The input of xxHash's own self-test: the top bytes of a sequence of products.
std::vector<std::byte> xxhash_test_bytes(std::size_t size) {
  std::vector<std::byte> data(size);
  u64 state = 2654435761U;
  for (std::byte& byte : data) {
    byte = static_cast<std::byte>(state >> 56);
    state *= 11400714785074694797U;
  }
  return data;
}

// Answers from github.com/Cyan4973/xxHash, cli/xsum_sanity_check.c at 08ae0257300d, tables
// XSUM_XXH3_testdata and XSUM_XXH128_testdata. One length for each of the algorithm's cases.
struct Hash64Answer {
  std::size_t size;
  u64 seed;
  u64 hash;
};
constexpr u64 kPrime64 = 11400714785074694797U;
constexpr Hash64Answer kHash64Answers[] = {
    {0, 0, 0x2D06800538D394C2},           {0, kPrime64, 0xA8A6B918B2F0364A},
    {1, 0, 0xC44BDFF4074EECDB},           {6, 0, 0x27B56A84CD2D7325},
    {12, kPrime64, 0xE7303E1B2336DE0E},   {24, 0, 0xA3FE70BF9D3510EB},
    {48, 0, 0x397DA259ECBA1F11},          {80, kPrime64, 0xC6DD0CB699532E73},
    {195, 0, 0xCD94217EE362EC3A},         {403, 0, 0xCDEB804D65C6DEA4},
    {512, kPrime64, 0x3CE457DE14C27708},  {2048, 0, 0xDD59E2C3A5F038E0},
    {2367, kPrime64, 0xD2DB3415B942B42A},
};

TEST(Checksum, Hash64KnownAnswers) {
  const auto data = xxhash_test_bytes(2367);
  for (const auto& [size, seed, hash] : kHash64Answers)
    EXPECT_EQ(hash64(Bytes(data).first(size), seed), hash) << "size " << size;
}

struct Hash128Answer {
  std::size_t size;
  const char* canonical;  // high half, low half, big endian
};
constexpr Hash128Answer kHash128Answers[] = {
    {0, "99aa06d3014798d86001c324468d497f"},    {1, "a6cd5e9392000f6ac44bdff4074eecdb"},
    {6, "082afe0b8162d12a3e7039bdda43cfc6"},    {12, "6e3efd8fc7802b18061a192713f69ad9"},
    {24, "0ce966e4678d37611e7044d28b1b901d"},   {48, "a002ac4e5478227ef942219aed80f67b"},
    {81, "4952f58181ab00425e8bafb9f95fb803"},   {222, "337e09641b948717f1aebd597cec6b3a"},
    {403, "1b6de21e332dd73dcdeb804d65c6dea4"},  {512, "18d2d110dcc9bca1617e49599013cb6b"},
    {2048, "f736557fd47073a5dd59e2c3a5f038e0"}, {2240, "ccb134fbfa7ce49d6e73a90539cf2948"},
    {2367, "e89c0f6ff369b427cb37aeb9e5d361ed"},
};

TEST(Checksum, Checksum128KnownAnswersAndZeroTail) {
  const auto data = xxhash_test_bytes(2367);
  const std::string zeros(32, '0');
  for (const auto& [size, canonical] : kHash128Answers)
    EXPECT_EQ(to_hex(checksum128(Bytes(data).first(size))), canonical + zeros) << "size " << size;
}

// ---- results

constexpr u8 kLastErrc = static_cast<u8>(Errc::would_wait);

TEST(Result, EveryCodeHasItsOwnNameAndAnErrno) {
  std::set<std::string> names;
  for (u8 code = 1; code <= kLastErrc; ++code) {
    const Error error{static_cast<Errc>(code)};
    EXPECT_TRUE(names.insert(name_of(error.code)).second) << name_of(error.code);
    EXPECT_STRNE(name_of(error.code), "unknown");
    EXPECT_GT(posix_errno(error), 0);
  }
  EXPECT_STREQ(name_of(static_cast<Errc>(kLastErrc + 1)), "unknown");
  EXPECT_STREQ(name_of(Errc::no_key), "no_key");
}

TEST(Result, PosixErrnoIsWhatASystemCallWouldAnswer) {
  EXPECT_EQ(posix_errno(Error{Errc::no_key}), ENOKEY);
  EXPECT_EQ(posix_errno(Error{Errc::no_space}), ENOSPC);
  EXPECT_EQ(posix_errno(Error{Errc::cross_key}), EXDEV);
  EXPECT_EQ(posix_errno(Error{Errc::damaged}), EIO);
  EXPECT_EQ(posix_errno(Error{Errc::io}), EIO);
  Error device{Errc::io};
  device.os_errno = ENODEV;
  EXPECT_EQ(posix_errno(device), ENODEV);
  // Any other code speaks for itself, whatever the kernel said on the way.
  device.code = Errc::no_memory;
  EXPECT_EQ(posix_errno(device), ENOMEM);
}

Result<int> half(int value) {
  if (value % 2 != 0) return fail(Errc::invalid, "odd", 7);
  return value / 2;
}
Result<int> quarter(int value) {
  LK_TRY(const int once, half(value));
  LK_TRY(const int twice, half(once));
  return twice;
}
Result<void> divisible(int value) {
  LK_TRYV(half(value));
  return {};
}
Result<std::unique_ptr<int>> boxed_half(int value) {
  LK_TRY(auto box,
         [&]() -> Result<std::unique_ptr<int>> { return std::make_unique<int>(value); }());
  LK_TRY(*box, half(*box));
  return box;
}

TEST(Result, TryPassesValuesAndErrorsOn) {
  EXPECT_EQ(quarter(12).value(), 3);
  const auto odd = quarter(6);
  ASSERT_FALSE(odd.has_value());
  EXPECT_EQ(odd.error().code, Errc::invalid);
  EXPECT_STREQ(odd.error().what, "odd");
  EXPECT_EQ(odd.error().at, 7U);
  EXPECT_NE(std::string(odd.error().where.file_name()).find("base_test"), std::string::npos);
  EXPECT_TRUE(divisible(2).has_value());
  EXPECT_EQ(divisible(3).error().code, Errc::invalid);
  EXPECT_EQ(**boxed_half(8), 4);
  EXPECT_EQ(boxed_half(7).error().code, Errc::invalid);
}

TEST(CheckDeathTest, ABrokenInvariantStopsTheProcessAndSaysWhere) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const int two = 2;
  LK_CHECK(two == 2);
  EXPECT_EXIT(LK_CHECK(two == 3), testing::KilledBySignal(SIGABRT),
              "base_test.cpp:[0-9]+: check failed: two == 3\n");
  EXPECT_EXIT(LK_CHECK_MSG(two == 3, "sums are off"), testing::KilledBySignal(SIGABRT),
              "check failed: two == 3: sums are off\n");
}

// ---- text

TEST(Hex, RoundTripAndRefusals) {
  std::vector<std::byte> bytes(4);
  ASSERT_TRUE(from_hex("00fF7aA9", bytes));
  EXPECT_EQ(to_hex(bytes), "00ff7aa9");
  EXPECT_EQ(to_hex({}), "");
  EXPECT_TRUE(from_hex("", {}));
  for (const char* bad : {"00ff7aa", "00ff7aa90", "00ff7ag9", "00ff7a 9", "0x00ff7a", ""})
    EXPECT_FALSE(from_hex(bad, bytes)) << bad;
  for (int value = 0; value < 256; ++value) {
    const std::byte one[] = {static_cast<std::byte>(value)};
    std::byte back[1];
    ASSERT_TRUE(from_hex(to_hex(one), back));
    EXPECT_EQ(back[0], one[0]);
  }
}

TEST(Text, ErrorsAreOneClearLine) {
  EXPECT_EQ(describe(Error{Errc::damaged, "checksum does not match", 65536}),
            "checksum does not match (damaged) at device offset 65536 [EIO]");
  EXPECT_EQ(describe(Error{Errc::no_key}), "no_key [ENOKEY]");
  Error error{Errc::io, "write failed", 0, ENODEV};
  EXPECT_EQ(describe(error), "write failed (io) at device offset 0 [ENODEV]");
  error = {Errc::unavailable, "io_uring is refused", kNowhere, EPERM};
  EXPECT_EQ(describe(error), "io_uring is refused (unavailable) [ENOSYS, kernel said EPERM]");
  EXPECT_EQ(errno_name(4095), "errno 4095");
}

TEST(Text, SizesForPeople) {
  const std::pair<u64, const char*> rows[] = {
      {0, "0 B"},
      {1023, "1023 B"},
      {1024, "1 KiB"},
      {1536, "1.5 KiB"},
      {128 * kKiB, "128 KiB"},
      {1000 * kKiB, "1000 KiB"},
      {kMiB - 1, "1 MiB"},
      {3 * kGiB / 2, "1.5 GiB"},
      {10 * kGiB, "10 GiB"},
      {100 * kMiB, "100 MiB"},
      {12'345'678, "11.8 MiB"},
      {~u64{0}, "16 EiB"},
  };
  for (const auto& [bytes, text] : rows) EXPECT_EQ(format_bytes(bytes), text) << bytes;
}

TEST(Text, SizesAreParsed) {
  const std::pair<const char*, u64> good[] = {
      {"0", 0},
      {"4096", 4096},
      {"128K", 128 * kKiB},
      {"128k", 128 * kKiB},
      {"4G", 4 * kGiB},
      {"4GiB", 4 * kGiB},
      {"1T", 1024 * kGiB},
      {"15E", u64{15} << 60},
      {"18446744073709551615", ~u64{0}},
  };
  for (const auto& [text, value] : good) {
    const auto size = parse_size(text);
    ASSERT_TRUE(size.has_value()) << text;
    EXPECT_EQ(*size, value) << text;
  }
  for (const char* bad : {"", "K", "-1", "+1", " 1", "1 ", "1X", "1KB", "1Ki", "1KiBs", "1.5G",
                          "16E", "18446744073709551616", "0x10"}) {
    const auto size = parse_size(bad);
    ASSERT_FALSE(size.has_value()) << bad;
    EXPECT_EQ(size.error().code, Errc::invalid) << bad;
  }
}

// ---- clock and chance

TEST(Env, ClocksRunAndRandomFills) {
  Env& env = system_env();
  const u64 before = env.monotonic_ns();
  EXPECT_GE(env.monotonic_ns(), before);
  constexpr u64 kYear2024 = u64{1'704'067'200} * 1'000'000'000;
  EXPECT_GT(env.realtime_ns(), kYear2024);
  // More than getrandom gives at one go under a signal; each 64 bytes differ from the ones before.
  std::vector<std::byte> bytes(4096);
  env.random(bytes);
  std::set<std::string> pieces;
  for (std::size_t i = 0; i < bytes.size(); i += 64)
    EXPECT_TRUE(pieces.insert(to_hex(Bytes(bytes).subspan(i, 64))).second);
  env.random({});
}

}  // namespace
}  // namespace latchkey
