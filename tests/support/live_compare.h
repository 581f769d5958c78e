#pragma once
// A sequence on both sides, step by step, and one that differs made shorter.

#include <array>
#include <functional>
#include <optional>
#include <string>

#include "tests/support/live_side.h"

namespace latchkey::tests {

// How often each of these was an answer: a comparison in which nothing happens says nothing.
inline constexpr std::array<std::string_view, 7> kLiveAnswers = {
    "ENOKEY", "ENOENT", "EXDEV", "EACCES", "busy", "others", "incompletely-removed"};

struct LiveCounts {
  u64 sequences = 0;
  u64 calls = 0;  // answered by both; "-" is no call
  std::array<u64, kLiveAnswers.size()> answers{};
};

struct LiveDifference {
  std::size_t step = 0;
  std::string kernel, ours;
};

// Until the first difference. `tell` hears of each step.
std::optional<LiveDifference> compare(
    const LivePlan& plan, LiveSide& kernel, LiveSide& ours, LiveCounts& counts,
    const std::function<void(const std::string& line)>& tell = {});

// Does it still differ?
using LiveJudge = std::function<bool(const LivePlan& plan)>;
// `plan` differs. Leaves out what it can, then makes numbers small.
LivePlan shrink(const LivePlan& plan, const LiveJudge& differs);

}  // namespace latchkey::tests
