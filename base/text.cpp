#include "base/text.h"

#include <fmt/format.h>
#include <string.h>

#include <array>
#include <charconv>
#include <iterator>

namespace latchkey {
namespace {

constexpr std::string_view kSuffixes = "KMGTPE";

// 1 for K, 2 for M, ...; 0 for anything else.
u32 suffix_power(char letter) {
  const char upper =
      letter >= 'a' && letter <= 'z' ? static_cast<char>(letter - 'a' + 'A') : letter;
  const auto index = kSuffixes.find(upper);
  return index == std::string_view::npos ? 0 : static_cast<u32>(index) + 1;
}

}  // namespace

std::string errno_name(int number) {
  if (const char* name = strerrorname_np(number)) return name;
  return fmt::format("errno {}", number);
}

std::string describe(const Error& error) {
  fmt::memory_buffer line;
  auto out = std::back_inserter(line);
  if (*error.what != '\0')
    fmt::format_to(out, "{} ({})", error.what, name_of(error.code));
  else
    fmt::format_to(out, "{}", name_of(error.code));
  if (error.in_file != kNowhere) fmt::format_to(out, " at file offset {},", error.in_file);
  if (error.at != kNowhere) fmt::format_to(out, " at device offset {}", error.at);
  const int posix = posix_errno(error);
  fmt::format_to(out, " [{}", errno_name(posix));
  // The kernel's own reason, where the POSIX answer hides it.
  if (error.os_errno != 0 && error.os_errno != posix)
    fmt::format_to(out, ", kernel said {}", errno_name(error.os_errno));
  fmt::format_to(out, "]");
  return fmt::to_string(line);
}

std::string format_bytes(u64 bytes) {
  if (bytes < kKiB) return fmt::format("{} B", bytes);
  u32 power = 1;
  while (power < kSuffixes.size() && bytes >> (10 * (power + 1)) != 0) ++power;
  double value = static_cast<double>(bytes) / static_cast<double>(u64{1} << (10 * power));
  // 1023.7 KiB would be printed as 1024 KiB.
  if (value >= 1023.5 && power < kSuffixes.size()) {
    value /= 1024;
    ++power;
  }
  std::string number = value < 9.995   ? fmt::format("{:.2f}", value)
                       : value < 99.95 ? fmt::format("{:.1f}", value)
                                       : fmt::format("{:.0f}", value);
  if (number.find('.') != std::string::npos) {
    while (number.back() == '0') number.pop_back();
    if (number.back() == '.') number.pop_back();
  }
  return fmt::format("{} {}iB", number, kSuffixes[power - 1]);
}

Result<u64> parse_size(std::string_view text) {
  u64 number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error == std::errc::result_out_of_range) return fail(Errc::invalid, "size is too large");
  if (error != std::errc{}) return fail(Errc::invalid, "size does not begin with a digit");
  std::string_view suffix(rest, static_cast<std::size_t>(end - rest));
  if (suffix.empty()) return number;
  const u32 power = suffix_power(suffix.front());
  suffix.remove_prefix(1);
  if (power == 0 || !(suffix.empty() || suffix == "iB"))
    return fail(Errc::invalid, "size has a suffix other than K, M, G, T, P or E");
  if (number > ~u64{0} >> (10 * power)) return fail(Errc::invalid, "size is too large");
  return number << (10 * power);
}

}  // namespace latchkey
