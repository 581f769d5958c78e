#pragma once
// What put and get share: counts, and files that were left out.

#include <string>
#include <vector>

#include "cli/verbs.h"
#include "volume/paths.h"

namespace latchkey::cli {

struct CopyReport {
  u64 files = 0;
  u64 directories = 0;
  u64 bytes = 0;
  std::vector<std::string> skipped;  // symlinks and special files, by name
};

void print_report(const Common& common, const CopyReport& report, std::string_view done);

// "/a/b" and "c" make "/a/b/c".
std::string join(const std::string& directory, const std::string& name);

}  // namespace latchkey::cli
