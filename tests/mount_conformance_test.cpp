// Goal: a mounted store answers programs as the kernel's fscrypt does, but where a row says why
// not; also what a library cannot be asked (tests/mounted/player.h). Method: the 60 scenarios of
// 436 steps of conformance_test, by system calls of a process for each user on a mount of each
// scenario's own, keys by the control socket and by fscrypt's ioctls, in both settings.
// docs/conformance.md must say what was seen; LATCHKEY_CONFORMANCE_PAGE=FILE writes what it should
// say, LATCHKEY_SCENARIO=B01 runs that one alone. Needs root and /dev/fuse.

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iostream>

#include "tests/mounted/mount_world.h"
#include "tests/mounted/mounted_table.h"
#include "tests/support/conformance_page.h"
#include "tests/support/page_section.h"

namespace latchkey::tests {
namespace {

const std::string kRoot = LATCHKEY_SOURCE_DIR;
constexpr std::string_view kBegin = "<!-- begin: printed by mount_conformance_test -->\n";
constexpr std::string_view kEnd = "<!-- end: mounted -->\n";

const MountedTable& table() {
  static const MountedTable kTable = read_mounted_table(kRoot + "/tests/vectors/kernel_keys");
  return kTable;
}

Outcome run_step(MountWorld& world, const Step& step) {
  Outcome outcome = world.run(step.uid, step.operation);
  if (step.number == 0) {
    EXPECT_TRUE(outcome.result == "0" || outcome.result.starts_with("n=")) << outcome.result;
  }
  return outcome;
}

bool is_chosen(const Scenario& scenario) {
  const char* const chosen = std::getenv("LATCHKEY_SCENARIO");
  return chosen == nullptr || scenario.id == chosen;
}

Seen run_all(Setting setting, KeyDoor door) {
  Seen seen;
  for (const Scenario& scenario : table().mounted.scenarios) {
    if (!is_chosen(scenario)) continue;
    MountWorld world(setting, door);
    for (const Step& step : scenario.steps) {
      if (step.operation.empty()) continue;
      SCOPED_TRACE(scenario.id + " " + step.uid + " " + step.operation);
      Outcome outcome = run_step(world, step);
      if (step.number != 0 && step.missing.empty())
        seen[{scenario.id, step.number}] = std::move(outcome);
    }
  }
  return seen;
}

class MountConformance : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = why_no_mount(); !why.empty()) GTEST_SKIP() << why;
  }
  static const Seen& seen(Setting setting) {
    static std::map<Setting, Seen> kSeen;
    auto [at, fresh] = kSeen.try_emplace(setting);
    if (fresh) at->second = run_all(setting, KeyDoor::ioctls);
    return at->second;
  }
  static Judgement judged(Setting setting) {
    return judge(table().mounted, setting, seen(setting));
  }
};

TEST_F(MountConformance, by_default_each_step_is_the_kernels_or_has_a_row) {
  for (const std::string& finding : judged(Setting::ours).findings) ADD_FAILURE() << finding;
}

TEST_F(MountConformance, with_compat_each_step_is_the_kernels_or_has_a_row) {
  for (const std::string& finding : judged(Setting::compat).findings) ADD_FAILURE() << finding;
}

TEST_F(MountConformance, the_control_socket_gives_the_answers_of_the_ioctls) {
  for (const Setting setting : kSettings)
    for (const auto& [step, outcome] : run_all(setting, KeyDoor::socket))
      EXPECT_EQ(to_text(outcome), to_text(seen(setting).at(step)))
          << name_of(setting) << ": " << step.first << " " << step.second;
}

TEST_F(MountConformance, the_page_says_what_was_seen) {
  std::map<Setting, Judgement> judgements;
  for (const Setting setting : kSettings) {
    judgements[setting] = judged(setting);
    std::cout << to_text(setting, judgements[setting]) << "\n";
  }
  const std::string page = mounted_page(table(), judgements);
  if (const char* file = std::getenv("LATCHKEY_CONFORMANCE_PAGE")) std::ofstream(file) << page;
  EXPECT_EQ(page_section(kRoot + "/docs/conformance.md", kBegin, kEnd), page);
}

}  // namespace
}  // namespace latchkey::tests
