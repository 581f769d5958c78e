#pragma once
// The words of a test program's command line: flags, and names each with a value.

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/types.h"

namespace latchkey::tests {

// Decimal digits alone.
std::optional<u64> number_of(std::string_view text);

// False: not a value of this argument.
struct Argument {
  std::string_view name;  // "--seed"
  std::function<bool(std::string_view value)> take;
  bool is_flag = false;
};
Argument flag(std::string_view name, bool& into);
Argument number(std::string_view name, u64& into);
Argument number(std::string_view name, std::optional<u64>& into);
Argument number(std::string_view name, double& into);
Argument text(std::string_view name, std::string& into);
Argument text(std::string_view name, std::optional<std::string>& into);

// False: a word that is none of these, a value that is missing or wrong.
bool parse_arguments(std::span<char* const> words, std::span<const Argument> known);

}  // namespace latchkey::tests
