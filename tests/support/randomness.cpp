#include "tests/support/randomness.h"

#include <fmt/format.h>
#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"

namespace latchkey::tests {

namespace {

constexpr std::size_t kUnit = 16;
using Unit = std::array<u64, 2>;

std::vector<Unit> units_of(Bytes bytes) {
  std::vector<Unit> units(bytes.size() / kUnit);
  std::memcpy(units.data(), bytes.data(), units.size() * kUnit);
  return units;
}

std::string repeated_unit(std::vector<Unit> units) {
  std::ranges::sort(units);
  const auto twice = std::ranges::adjacent_find(units);
  if (twice == units.end()) return {};
  return fmt::format("the unit {:016x}{:016x} comes twice", (*twice)[0], (*twice)[1]);
}

// Chi-square with 255 degrees of freedom. Outside of these bounds by chance: once in 10^13 times
// (the cube root of it is nearly normal: Wilson and Hilferty, 1931).
std::string uneven_bytes(Bytes bytes) {
  constexpr double kLeast = 120, kMost = 470;
  std::array<double, 256> counts{};
  for (const std::byte byte : bytes) ++counts[static_cast<u8>(byte)];
  const double expected = static_cast<double>(bytes.size()) / 256;
  double chi = 0;
  for (const double count : counts) chi += (count - expected) * (count - expected) / expected;
  if (chi > kLeast && chi < kMost) return {};
  return fmt::format("the bytes' values have a chi-square of {:.0f} instead of 255", chi);
}

// Each bit of a unit is set in half of them, within seven standard deviations.
std::string uneven_bits(const std::vector<Unit>& units) {
  const double count = static_cast<double>(units.size());
  const double most = 7 * std::sqrt(count) / 2;
  for (u32 bit = 0; bit < 8 * kUnit; ++bit) {
    double set = 0;
    for (const Unit& unit : units) set += static_cast<double>(unit[bit / 64] >> bit % 64 & 1);
    if (std::abs(set - count / 2) > most)
      return fmt::format("bit {} is set in {} of {} units", bit, set, count);
  }
  return {};
}

}  // namespace

u64 deflated_size(Bytes bytes) {
  LK_CHECK(bytes.size() <= std::numeric_limits<u32>::max() / 2);
  std::vector<std::byte> level(ISAL_DEF_LVL1_DEFAULT);
  std::vector<std::byte> out(bytes.size() + bytes.size() / 8 + 65536);
  isal_zstream stream;
  isal_deflate_stateless_init(&stream);
  stream.level = 1;
  stream.level_buf = reinterpret_cast<u8*>(level.data());
  stream.level_buf_size = static_cast<u32>(level.size());
  stream.end_of_stream = 1;
  stream.next_in = reinterpret_cast<u8*>(const_cast<std::byte*>(bytes.data()));
  stream.avail_in = static_cast<u32>(bytes.size());
  stream.next_out = reinterpret_cast<u8*>(out.data());
  stream.avail_out = static_cast<u32>(out.size());
  LK_CHECK(isal_deflate_stateless(&stream) == COMP_OK && stream.avail_in == 0);
  return stream.total_out;
}

std::string what_is_not_random(Bytes bytes) {
  LK_CHECK(bytes.size() >= 4096 && bytes.size() % kUnit == 0);
  const std::vector<Unit> units = units_of(bytes);
  if (std::string wrong = repeated_unit(units); !wrong.empty()) return wrong;
  if (std::string wrong = uneven_bytes(bytes); !wrong.empty()) return wrong;
  if (std::string wrong = uneven_bits(units); !wrong.empty()) return wrong;
  const u64 deflated = deflated_size(bytes);
  if (deflated >= bytes.size()) return {};
  return fmt::format("deflate makes {} bytes {}", bytes.size(), deflated);
}

}  // namespace latchkey::tests
