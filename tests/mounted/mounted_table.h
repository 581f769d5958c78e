#pragma once
// The conformance table for a mounted store: what was impossible for the library has operations,
// and where a mount answers otherwise than the library there are rows of its own
// (tests/vectors/kernel_keys/mounted.tsv).

#include <map>
#include <string>

#include "tests/support/conformance_table.h"

namespace latchkey::tests {

struct MountedTable {
  ConformanceTable unmounted, mounted;
};
// Stops the process where a line cannot be read or means no step.
MountedTable read_mounted_table(const std::string& folder);

// What docs/conformance.md says of it.
std::string mounted_page(const MountedTable& table, const std::map<Setting, Judgement>& judgements);

}  // namespace latchkey::tests
