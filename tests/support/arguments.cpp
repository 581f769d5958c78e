#include "tests/support/arguments.h"

#include <algorithm>
#include <charconv>

namespace latchkey::tests {

namespace {

template <class Number>
std::optional<Number> number_in(std::string_view text) {
  Number number = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || rest != end) return std::nullopt;
  return number;
}

template <class Number, class Into>
Argument number_into(std::string_view name, Into& into) {
  return {name, [&into](std::string_view value) {
            const auto number = number_in<Number>(value);
            if (number) into = *number;
            return number.has_value();
          }};
}

template <class Into>
Argument text_into(std::string_view name, Into& into) {
  return {name, [&into](std::string_view value) {
            into = std::string(value);
            return true;
          }};
}

}  // namespace

std::optional<u64> number_of(std::string_view text) { return number_in<u64>(text); }

Argument flag(std::string_view name, bool& into) {
  return {name, [&into](std::string_view) { return into = true; }, true};
}
Argument number(std::string_view name, u64& into) { return number_into<u64>(name, into); }
Argument number(std::string_view name, std::optional<u64>& into) {
  return number_into<u64>(name, into);
}
Argument number(std::string_view name, double& into) { return number_into<double>(name, into); }
Argument text(std::string_view name, std::string& into) { return text_into(name, into); }
Argument text(std::string_view name, std::optional<std::string>& into) {
  return text_into(name, into);
}

bool parse_arguments(std::span<char* const> words, std::span<const Argument> known) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto argument = std::ranges::find(known, std::string_view(words[i]), &Argument::name);
    if (argument == known.end()) return false;
    if (!argument->is_flag && ++i == words.size()) return false;
    if (!argument->take(words[i])) return false;
  }
  return true;
}

}  // namespace latchkey::tests
