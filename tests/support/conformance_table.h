#pragma once
// What the kernel's fscrypt answers, step by step (tests/vectors/kernel_keys/*.tsv), where we
// differ on purpose, and what a library cannot be asked (differences.tsv): data, and the judgement
// over what was seen.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace latchkey::tests {

enum class Setting : u8 { ours, compat };  // compat: VolumeOptions::compat_fscrypt
inline constexpr Setting kSettings[] = {Setting::ours, Setting::compat};
std::string_view name_of(Setting setting);  // "default", "compat"

// A result is "0", "n=<bytes>" or an errno's name.
struct Outcome {
  std::string result;
  std::string detail = {};
  bool operator==(const Outcome&) const = default;
};
std::string to_text(const Outcome& outcome);

struct Step {
  u32 number = 0;         // 0: a preparation
  std::string uid;        // "root", "A", "B", "C"
  std::string missing;    // the subject that the library lacks, or nothing
  std::string what;       // of a missing one, in words
  std::string operation;  // empty: nothing is done
  Outcome kernel;
};

struct Scenario {
  std::string id, title;
  std::vector<Step> steps;
};

// Why some steps differ.
struct Reason {
  std::string name, kernel, here, why;
};

// One step that differs in one setting, and how.
struct Difference {
  std::string reason;
  Setting setting{};
  std::string scenario;
  u32 step = 0;
  Outcome here;
};

struct Missing {
  std::string name, what;
};

struct ConformanceTable {
  std::vector<Scenario> scenarios;
  std::vector<Reason> reasons;
  std::vector<Difference> differences;
  std::vector<Missing> missing;

  const Difference* difference(Setting setting, std::string_view scenario, u32 step) const;
};
// Stops the process where a line cannot be read. `folder` ends with the table's own name.
ConformanceTable read_conformance_table(const std::string& folder);

// What was seen, by scenario and step; nothing for missing ones.
using Seen = std::map<std::pair<std::string, u32>, Outcome>;

struct Judgement {
  u32 equal = 0, intended = 0, impossible = 0;
  std::vector<std::string> findings;  // what no row allows, and rows that nothing needs
};
Judgement judge(const ConformanceTable& table, Setting setting, const Seen& seen);

}  // namespace latchkey::tests
