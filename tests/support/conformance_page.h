#pragma once
// docs/conformance.md as the conformance table and what was seen have it.

#include <string>

#include "tests/support/conformance_table.h"

namespace latchkey::tests {

// "default: 300 equal, ..." in one line.
std::string to_text(Setting setting, const Judgement& judgement);

// What stands between the page's two marks.
std::string conformance_page(const ConformanceTable& table,
                             const std::map<Setting, Judgement>& judgements);

}  // namespace latchkey::tests
