#pragma once
// Hex text of identifiers and nonces.

#include <optional>
#include <string>
#include <string_view>

#include "base/types.h"

namespace latchkey {

std::string to_hex(Bytes bytes);  // lower case
// Fills `out` from exactly 2 * out.size() hex digits; false otherwise.
bool from_hex(std::string_view text, MutableBytes out);

}  // namespace latchkey
