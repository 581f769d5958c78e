// Goal: however a run is cut, wherever its units lie and however they are stored, every kernel
// gives the bytes of single units, and touches nothing but its input and its output. Method: data
// ends where a page begins that nobody may touch; seeded shapes; the unit by itself in the OpenSSL
// row is what is expected.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>

#include "base/check.h"
#include "crypto/xts.h"
#include "tests/support/keys.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

using namespace crypto;  // NOLINT: the whole file is about it

constexpr std::size_t kRoom = 256 * kKiB;
constexpr auto kCanary = std::byte{0x5c};

// Bytes whose last one lies before a page that traps.
class Fenced {
 public:
  Fenced() {
    void* mapped =
        ::mmap(nullptr, kRoom + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    LK_CHECK(mapped != MAP_FAILED);
    bytes_ = static_cast<std::byte*>(mapped);
    LK_CHECK(::mprotect(bytes_ + kRoom, kPage, PROT_NONE) == 0);
  }
  ~Fenced() { ::munmap(bytes_, kRoom + kPage); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;

  MutableBytes last(std::size_t size) { return {bytes_ + kRoom - size, size}; }
  MutableBytes all() { return {bytes_, kRoom}; }

 private:
  static constexpr std::size_t kPage = 4096;
  std::byte* bytes_ = nullptr;
};

class XtsRuns : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    before_ = xts_kernel();
    if (!xts_force_kernel(GetParam())) GTEST_SKIP() << "this processor has no " << GetParam();
    raw_ = raw_key(seed_base() + 1);
    key_ = expanded();
    ASSERT_TRUE(xts_force_kernel("openssl"));
    expected_key_ = expanded();
    ASSERT_TRUE(xts_force_kernel(GetParam()));
    for (std::byte& byte : input_.all()) byte = std::byte(random_());
  }
  void TearDown() override { EXPECT_TRUE(xts_force_kernel(before_)); }

  Secret<XtsKey> expanded() {
    auto key = Secret<XtsKey>::create();
    LK_CHECK(key.has_value());
    SecretBytes secret = in_arena(raw_);
    xts_expand(secret.bytes(), **key);
    return std::move(*key);
  }
  // Unit by unit, by OpenSSL.
  std::vector<std::byte> expected(bool seal, XtsRun run, Bytes input) {
    EXPECT_TRUE(xts_force_kernel("openssl"));
    std::vector<std::byte> output(input.size());
    for (std::size_t at = 0; at < input.size(); at += run.unit_bytes, ++run.first_unit)
      (seal ? xts_seal : xts_open)(*expected_key_, {run.first_unit, run.unit_bytes},
                                   input.subspan(at, run.unit_bytes),
                                   MutableBytes(output).subspan(at, run.unit_bytes));
    EXPECT_TRUE(xts_force_kernel(GetParam()));
    return output;
  }
  // Nothing before the last `size` bytes was written.
  void expect_untouched(std::size_t size) {
    for (const std::byte byte : output_.all().first(kRoom - size)) ASSERT_EQ(byte, kCanary);
  }

  std::string before_;
  std::mt19937_64 random_{seed_base() + 7};
  Heap raw_;
  Secret<XtsKey> key_, expected_key_;
  Fenced input_, output_;
};

std::vector<std::string> kernels() {
  std::vector<std::string> names;
  for (const KernelInfo& kernel : xts_kernels()) names.emplace_back(kernel.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Crypto, XtsRuns, ::testing::ValuesIn(kernels()),
                         [](const auto& param) { return param.param; });

// Every number of units from none to more than two sets of tweaks, with every kind of end.
TEST_P(XtsRuns, of_any_number_of_units_equal_single_units) {
  for (const u32 unit_bytes : {16U, 48U, 496U, 512U, 528U, 1008U, 1024U, 4096U, 4112U, 8176U}) {
    for (std::size_t units = 0; units <= 19; ++units) {
      const std::size_t size = units * unit_bytes;
      for (const bool seal : {true, false}) {
        SCOPED_TRACE(std::to_string(units) + " units of " + std::to_string(unit_bytes));
        const XtsRun run{random_(), unit_bytes, (units & 1) != 0};
        std::ranges::fill(output_.all(), kCanary);
        (seal ? xts_seal : xts_open)(*key_, run, input_.last(size), output_.last(size));
        ASSERT_TRUE(std::ranges::equal(output_.last(size), expected(seal, run, input_.last(size))));
        expect_untouched(size);
      }
    }
  }
}

// Past the caches only where every unit of the output begins at 64 bytes: elsewhere as ever.
TEST_P(XtsRuns, that_stream_are_the_same_bytes_at_every_alignment) {
  const std::size_t size = 8 * 4096;
  for (std::size_t shift = 0; shift <= 128; shift += 8) {
    const XtsRun run{shift, 4096, true};
    const Bytes input = input_.all().subspan(shift, size);
    const MutableBytes output = output_.all().subspan(shift % 72, size);
    for (const bool seal : {true, false}) {
      (seal ? xts_seal : xts_open)(*key_, run, input, output);
      ASSERT_TRUE(std::ranges::equal(output, expected(seal, run, input))) << shift;
    }
  }
}

TEST_P(XtsRuns, from_scattered_units_equal_a_run_of_them_joined) {
  for (int round = 0; round < 200; ++round) {
    const u32 unit_bytes = 16 * static_cast<u32>(1 + random_() % 300);
    std::vector<const std::byte*> units(random_() % 20);
    std::vector<std::byte> joined;
    for (const std::byte*& unit : units) {
      // Some end at the trap.
      const std::size_t room = kRoom - unit_bytes;
      unit = input_.all().data() + (random_() % 4 == 0 ? room : random_() % room);
      joined.insert(joined.end(), unit, unit + unit_bytes);
    }
    const XtsRun run{random_(), unit_bytes, random_() % 2 == 0};
    std::ranges::fill(output_.all(), kCanary);
    xts_seal_scattered(*key_, run, units, output_.last(joined.size()));
    ASSERT_TRUE(std::ranges::equal(output_.last(joined.size()), expected(true, run, joined)))
        << "round " << round << ", " << units.size() << " units of " << unit_bytes;
    expect_untouched(joined.size());
  }
}

TEST_P(XtsRuns, in_place_are_the_same_bytes) {
  for (const u32 unit_bytes : {512U, 4096U, 65536U, 4080U}) {
    const std::size_t size = 3 * unit_bytes;
    const XtsRun run{11, unit_bytes, true};
    for (const bool seal : {true, false}) {
      const auto wanted = expected(seal, run, input_.last(size));
      std::ranges::copy(input_.last(size), output_.last(size).begin());
      (seal ? xts_seal : xts_open)(*key_, run, output_.last(size), output_.last(size));
      ASSERT_TRUE(std::ranges::equal(output_.last(size), wanted)) << unit_bytes;
    }
  }
}

// libkcapi 1.4.0 starts the tweak again every 64 KiB of one call.
TEST_P(XtsRuns, of_sixteen_units_of_64_KiB_in_one_call_equal_single_units) {
  constexpr u32 kUnit = 64 * kKiB;
  std::vector<std::byte> input(16 * std::size_t{kUnit}), output(input.size());
  for (std::byte& byte : input) byte = std::byte(random_());
  const XtsRun run{random_(), kUnit, false};
  for (const bool seal : {true, false}) {
    (seal ? xts_seal : xts_open)(*key_, run, input, output);
    ASSERT_TRUE(std::ranges::equal(output, expected(seal, run, input)));
  }
}

class XtsRunsDeathTest : public XtsRuns {};
INSTANTIATE_TEST_SUITE_P(Crypto, XtsRunsDeathTest, ::testing::Values("kcapi"),
                         [](const auto& param) { return param.param; });

TEST_P(XtsRunsDeathTest, of_units_of_more_than_64_KiB_stop_the_process) {
  constexpr u32 kUnit = 64 * kKiB + 16;
  EXPECT_DEATH(xts_seal(*key_, {0, kUnit}, input_.last(kUnit), output_.last(kUnit)),
               "a unit that libkcapi would cut into two");
  EXPECT_DEATH(xts_open(*key_, {0, kUnit}, input_.last(kUnit), output_.last(kUnit)),
               "a unit that libkcapi would cut into two");
}

}  // namespace
}  // namespace latchkey::tests
