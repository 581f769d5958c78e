// Goal: keys, claims, policies and removals answer as Linux's fscrypt does, but where a row says
// why not. Method: 60 scenarios of 436 steps, whose results were taken from a 6.18 kernel with
// ext4, are run by four users on a volume each, in both settings; each step's result and detail
// must be the kernel's, or those of its row. docs/conformance.md must say what was seen;
// LATCHKEY_CONFORMANCE_PAGE=FILE writes what it should say.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <set>

#include "tests/support/conformance_page.h"
#include "tests/support/conformance_world.h"
#include "tests/support/page_section.h"

namespace latchkey::tests {
namespace {

const std::string kRoot = LATCHKEY_SOURCE_DIR;
constexpr std::string_view kBegin = "<!-- begin: printed by conformance_test -->\n";
constexpr std::string_view kEnd = "<!-- end -->\n";

const ConformanceTable& table() {
  static const ConformanceTable kTable =
      read_conformance_table(kRoot + "/tests/vectors/kernel_keys");
  return kTable;
}

Outcome run_step(ConformanceWorld& world, const Step& step) {
  const Outcome outcome = world.run(step.uid, step.operation);
  if (step.number == 0) {
    EXPECT_TRUE(outcome.result == "0" || outcome.result.starts_with("n=")) << outcome.result;
  }
  return outcome;
}

Seen run_all(Setting setting, Door door = Door::calls) {
  Seen seen;
  for (const Scenario& scenario : table().scenarios) {
    ConformanceWorld world(setting, door);
    for (const Step& step : scenario.steps) {
      if (step.operation.empty()) continue;
      SCOPED_TRACE(scenario.id + " " + step.uid + " " + step.operation);
      const Outcome outcome = run_step(world, step);
      if (step.number != 0 && step.missing.empty()) seen[{scenario.id, step.number}] = outcome;
    }
  }
  return seen;
}

const Seen& seen(Setting setting) {
  static std::map<Setting, Seen> kSeen;
  auto [at, fresh] = kSeen.try_emplace(setting);
  if (fresh) at->second = run_all(setting);
  return at->second;
}

TEST(Conformance, the_table_is_the_whole_measurement) {
  std::set<std::string> ids;
  std::size_t steps = 0;
  for (const Scenario& scenario : table().scenarios) {
    EXPECT_TRUE(ids.insert(scenario.id).second) << scenario.id;
    u32 next = 1;
    for (const Step& step : scenario.steps) {
      if (step.number == 0) continue;
      EXPECT_EQ(step.number, next++) << scenario.id;
      EXPECT_TRUE(!step.missing.empty() || !step.operation.empty());
      ++steps;
    }
  }
  EXPECT_EQ(ids.size(), 60U);
  EXPECT_EQ(steps, 436U);
}

TEST(Conformance, every_reason_has_a_step_and_every_step_a_reason) {
  std::set<std::string> used, given;
  for (const Difference& row : table().differences) used.insert(row.reason);
  for (const Scenario& scenario : table().scenarios)
    for (const Step& step : scenario.steps)
      if (!step.missing.empty()) used.insert(step.missing);
  for (const Reason& reason : table().reasons) {
    EXPECT_TRUE(given.insert(reason.name).second) << reason.name;
    EXPECT_FALSE(reason.kernel.empty() || reason.here.empty() || reason.why.empty());
  }
  for (const Missing& missing : table().missing) {
    EXPECT_TRUE(given.insert(missing.name).second) << missing.name;
    EXPECT_FALSE(missing.what.empty());
  }
  EXPECT_EQ(used, given);
}

TEST(Conformance, by_default_each_step_is_the_kernels_or_has_a_row) {
  for (const std::string& finding : judge(table(), Setting::ours, seen(Setting::ours)).findings)
    ADD_FAILURE() << finding;
}

TEST(Conformance, with_compat_each_step_is_the_kernels_or_has_a_row) {
  for (const std::string& finding : judge(table(), Setting::compat, seen(Setting::compat)).findings)
    ADD_FAILURE() << finding;
}

TEST(Conformance, the_bytes_of_the_ioctls_get_the_answers_of_the_calls) {
  for (const Setting setting : kSettings) {
    for (const auto& [step, outcome] : run_all(setting, Door::bytes))
      EXPECT_EQ(to_text(outcome), to_text(seen(setting).at(step)))
          << name_of(setting) << ": " << step.first << " " << step.second;
  }
}

TEST(Conformance, another_answer_and_a_row_too_many_are_findings) {
  for (const Setting setting : kSettings) {
    const Judgement before = judge(table(), setting, seen(setting));
    Seen other = seen(setting);
    other.at({"C01", 1}).result = "EIO";
    other.at({"C01", 2}).detail += " ";
    other.erase({"C02", 1});
    EXPECT_EQ(judge(table(), setting, other).findings.size(), before.findings.size() + 3);
    ConformanceTable more = table();
    more.differences.push_back({.reason = "any",
                                .setting = setting,
                                .scenario = "C02",
                                .step = 1,
                                .here = seen(setting).at({"C02", 1})});
    more.differences.push_back(
        {.reason = "any", .setting = setting, .scenario = "none", .step = 1, .here = {"0"}});
    EXPECT_EQ(judge(more, setting, seen(setting)).findings.size(), before.findings.size() + 2);
  }
}

TEST(Conformance, the_page_says_what_was_seen) {
  std::map<Setting, Judgement> judgements;
  for (const Setting setting : kSettings) {
    judgements[setting] = judge(table(), setting, seen(setting));
    std::cout << to_text(setting, judgements[setting]) << "\n";
  }
  const std::string page = conformance_page(table(), judgements);
  if (const char* file = std::getenv("LATCHKEY_CONFORMANCE_PAGE")) std::ofstream(file) << page;
  EXPECT_EQ(page_section(kRoot + "/docs/conformance.md", kBegin, kEnd), page);
}

}  // namespace
}  // namespace latchkey::tests
