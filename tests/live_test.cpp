// Goal: the life of a key is the kernel's. Whatever users add, remove, open, write and rename, each
// call answers what Linux's fscrypt answers, where compat_fscrypt is set.
// Method: random sequences by seed on an ext4 with encryption and on the library, compared step by
// step; what makes them comparable is a table of rules, each shown to be needed. A sequence that
// differs is made shorter and printed as text for tests/live_compare --replay.
// Needs root, a loop device, mkfs.ext4 and a kernel with CONFIG_FS_ENCRYPTION.

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "tests/support/live_compare.h"
#include "tests/support/live_kernel.h"
#include "tests/support/live_latchkey.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

constexpr u64 kSequences = 300;

TEST(LivePlan, is_read_from_its_own_text) {
  for (const u64 seed : seeds(200)) {
    const std::string text = text_of(make_live_plan(seed));
    const auto again = live_plan_from(text);
    ASSERT_TRUE(again) << text;
    EXPECT_EQ(text_of(*again), text);
  }
  EXPECT_TRUE(live_plan_from("add A k0;\n  close B h5 ;")->size() == 2);
  for (const char* wrong : {"ad A k0", "add A", "add A k0 k0", "add D k0", "add A k3", "close A h6",
                            "open A h0 e0 r", "open A h0 a6 r", "open A h0 a r", "open A h0 a0 q",
                            "read A h0 0 -1", "read A h0 0 99999999", "list A a0"})
    EXPECT_FALSE(live_plan_from(wrong)) << wrong;
}

TEST(LivePlan, is_made_shorter_as_long_as_it_differs) {
  const auto differs = [](const LivePlan& plan) {  // a write of more than 100 bytes after an add
    bool added = false;
    for (const LiveOp& op : plan) {
      added |= op.verb == LiveVerb::add;
      if (added && op.verb == LiveVerb::write && op.size > 100) return true;
    }
    return false;
  };
  u64 shrunk = 0;
  for (const u64 seed : seeds(50)) {
    const LivePlan plan = make_live_plan(seed);
    if (!differs(plan)) continue;
    const LivePlan least = shrink(plan, differs);
    EXPECT_TRUE(least.size() == 2 && differs(least)) << text_of(least);
    ++shrunk;
  }
  EXPECT_GT(shrunk, 10U);
}

// The rules that docs/conformance.md lists are those of the code.
TEST(LiveRules, are_the_documented_ones) {
  std::ifstream in(LATCHKEY_SOURCE_DIR "/docs/conformance.md");
  std::stringstream text;
  text << in.rdbuf();
  for (const LiveRule& rule : live_rules()) {
    std::string row = "| ";
    for (const std::string_view cell : {rule.name, rule.what, rule.reason, rule.differs}) {
      const bool code = cell == rule.differs;
      row += (code ? "`" : "") + std::string(cell) + (code ? "`" : "") + " | ";
    }
    row.pop_back();
    EXPECT_NE(text.str().find(row), std::string::npos) << "docs/conformance.md lacks\n" << row;
  }
}

class Live : public testing::Test {
 protected:
  void make(LiveKernel& kernel) {
    const std::string missing = kernel.make();
    if (!missing.empty()) GTEST_SKIP() << missing;
  }
};

TEST_F(Live, sequences_answer_as_the_kernel_does) {
  LiveKernel kernel;
  ASSERT_NO_FATAL_FAILURE(make(kernel));
  if (IsSkipped()) return;
  LiveLatchkey ours;
  LiveCounts counts;
  for (const u64 seed : seeds(cases(kSequences))) {
    const LivePlan plan = make_live_plan(seed);
    if (!compare(plan, kernel, ours, counts)) continue;
    const auto differs = [&](const LivePlan& shorter) {
      LiveCounts uncounted;
      return compare(shorter, kernel, ours, uncounted).has_value();
    };
    const LivePlan least = shrink(plan, differs);
    std::string story;
    LiveCounts uncounted;
    (void)compare(least, kernel, ours, uncounted,
                  [&](const std::string& line) { story += line + "\n"; });
    FAIL() << "seed " << seed << ":\n"
           << story << "live_compare --replay \"" << text_of(least) << "\"";
  }
  EXPECT_EQ(ours.finish(), "");
  // It says something only if all of this has happened.
  EXPECT_GT(counts.calls, counts.sequences * 5);
  for (std::size_t i = 0; i < kLiveAnswers.size(); ++i)
    EXPECT_GT(counts.answers[i], 0U) << kLiveAnswers[i];
}

TEST_F(Live, no_rule_is_there_without_need) {
  for (const LiveRule& rule : live_rules()) {
    SCOPED_TRACE(rule.name);
    const auto plan = live_plan_from(rule.differs);
    ASSERT_TRUE(plan);
    for (const bool with : {true, false}) {
      LiveRules rules;
      rules.*rule.on = with;
      LiveKernel kernel(rules);
      ASSERT_NO_FATAL_FAILURE(make(kernel));
      if (IsSkipped()) return;
      LiveLatchkey ours(rules);
      LiveCounts counts;
      EXPECT_EQ(compare(*plan, kernel, ours, counts).has_value(), !with);
    }
  }
}

}  // namespace
}  // namespace latchkey::tests
