#include "tests/sim/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/check.h"
#include "tests/support/random.h"

namespace latchkey::tests {

namespace {

constexpr std::array kOpNames = {
    "create",     "write",       "append",        "read",         "truncate",    "fsync",
    "sync",       "unlink",      "rename",        "mkdir",        "rmdir",       "list",
    "open",       "close",       "add_key",       "remove_soft",  "remove_hard", "block_write",
    "block_read", "block_fsync", "name_create",   "name_unlink",  "name_rename", "wait",
    "link",       "symlink",     "read_link",     "exchange",     "unnamed",     "name_unnamed",
    "subvolume",  "snapshot",    "drop_snapshot", "finish_drops", "scrub",       "punch",
    "allocate",   "clone"};
// How often each is drawn.
constexpr std::array<u32, kOpNames.size()> kWeights = {8, 14, 7, 7, 6, 8, 2, 3, 5, 3, 2, 2, 4,
                                                       4, 3,  2, 2, 8, 5, 3, 3, 2, 2, 2, 3, 2,
                                                       1, 3,  5, 5, 1, 3, 3, 1, 1, 3, 3, 4};
constexpr std::array kFaultNames = {
    "slow",        "never",         "read_error",      "write_error",    "flush_error",
    "device_full", "lost_write",    "misplaced_write", "misplaced_read", "stale_read",
    "rotten_bit",  "rotten_sector", "rotten_block",    "rotten_mib"};
constexpr auto kLastTold = static_cast<u64>(SimFaultKind::device_full);

using Random = SplitMix64;

u64 below(Random& random, u64 bound) { return random() % bound; }

SimOpKind draw_kind(Random& random) {
  u64 total = 0;
  for (const u32 weight : kWeights) total += weight;
  u64 drawn = below(random, total);
  for (std::size_t kind = 0;; ++kind) {
    if (drawn < kWeights[kind]) return static_cast<SimOpKind>(kind);
    drawn -= kWeights[kind];
  }
}

SimLife draw_life(Random& random) {
  SimLife life;
  life.seed = random();
  const u64 dice = below(random, 8);
  life.end = dice < 3   ? SimEnd::cut_by_changes
             : dice < 5 ? SimEnd::cut_by_time
             : dice < 7 ? SimEnd::abandon
                        : SimEnd::close;
  life.cut = life.end == SimEnd::cut_by_time ? below(random, 20'000'000) : below(random, 120);
  if (below(random, 6) == 0) life.recovery_cuts = 1 + below(random, 2);
  return life;
}

void draw_ops(SimPlan& plan, Random& random) {
  const u64 length = 4 + below(random, 16);  // of one caller in one life
  for (u32 life = 0; life < plan.lives.size(); ++life)
    for (u32 caller = 0; caller < plan.callers; ++caller)
      for (u64 i = 0; i < length; ++i) {
        SimOp op;
        op.number = static_cast<u32>(plan.ops.size());
        op.life = life;
        op.caller = caller;
        op.kind = draw_kind(random);
        op.seed = random();
        plan.ops.push_back(op);
      }
}

// Faults that only need to be detected come one at a time, in the last life: what they break cannot
// be compared any further.
void draw_faults(SimPlan& plan, Random& random) {
  const u64 dice = below(random, 8);
  if (dice < 3) return;
  const u64 count = dice == 7 ? 1 : 1 + below(random, 3);
  for (u64 i = 0; i < count; ++i) {
    SimFaultPlan fault;
    fault.number = static_cast<u32>(i);
    fault.seed = random();
    fault.after = below(random, below(random, 2) == 0 ? 8 : 60);
    fault.life = static_cast<u32>(below(random, plan.lives.size()));
    if (dice < 4) {
      fault.kind = static_cast<SimFaultKind>(below(random, 2));
    } else if (dice < 6) {
      fault.kind = static_cast<SimFaultKind>(below(random, kLastTold + 1));
      fault.sticky = below(random, 4) == 0;
      fault.at_opening = below(random, 3) == 0;
      if (fault.at_opening) fault.after = below(random, 12);
    } else {
      fault.kind = static_cast<SimFaultKind>(kLastTold + 1 +
                                             below(random, kFaultNames.size() - kLastTold - 1));
      fault.life = static_cast<u32>(plan.lives.size() - 1);
      plan.faults = {fault};
      return;
    }
    if (fault.kind == SimFaultKind::never) {
      fault.at_opening = fault.sticky = false;
      SimLife& life = plan.lives[fault.life];
      life.end = SimEnd::cut_by_time;
      life.cut = below(random, 20'000'000);
    }
    plan.faults.push_back(fault);
  }
}

}  // namespace

std::string_view name_of(SimOpKind kind) { return kOpNames[static_cast<std::size_t>(kind)]; }
std::string_view name_of(SimFaultKind kind) { return kFaultNames[static_cast<std::size_t>(kind)]; }

SimPromise promise_of(SimFaultKind kind) {
  if (kind <= SimFaultKind::never) return SimPromise::survived;
  return kind <= SimFaultKind::device_full ? SimPromise::told : SimPromise::detected;
}

SimPromise SimPlan::promise() const {
  if (held_to) return *held_to;
  SimPromise weakest = SimPromise::survived;
  for (const SimFaultPlan& fault : faults) weakest = std::max(weakest, promise_of(fault.kind));
  return weakest;
}

bool SimPlan::has_fault(SimFaultKind kind, u32 life) const {
  return std::ranges::any_of(
      faults, [&](const SimFaultPlan& f) { return f.kind == kind && f.life == life; });
}

SimPlan make_plan(u64 seed, const PlanOptions& options) {
  Random random(seed * 0x9e3779b97f4a7c15U + 1);
  SimPlan plan;
  plan.seed = seed;
  plan.schedule = random();
  plan.callers = 1 + static_cast<u32>(below(random, 4));
  plan.nearly_full = below(random, 10) == 0;
  plan.files.inline_writeback = below(random, 3) == 0;
  plan.files.workers = 1 + static_cast<u32>(below(random, 2));
  constexpr std::array<u32, 4> kIntervals = {0, 1, 3, 20};
  plan.files.commit_interval_ms = kIntervals[below(random, kIntervals.size())];
  constexpr std::array<u32, 4> kPreempt = {0, 20, 120, 512};
  plan.preempt_in_1024 = kPreempt[below(random, kPreempt.size())];
  plan.by_priority = below(random, 4) == 0;
  plan.slowest_ns = below(random, 2) == 0 ? 100'000 : 3'000'000;
  const u64 lives = 1 + below(random, 3);
  for (u64 i = 0; i < lives; ++i) plan.lives.push_back(draw_life(random));
  draw_ops(plan, random);
  if (options.faults) draw_faults(plan, random);
  return plan;
}

std::string describe(const SimPlan& plan) {
  std::string text = fmt::format(
      "seed {}, schedule {}: {} lives, {} callers, {}{}, commit every {} ms, preempt {}/1024{}{}\n",
      plan.seed, plan.schedule, plan.lives.size(), plan.callers,
      plan.files.inline_writeback ? "no workers" : "workers ",
      plan.files.inline_writeback ? "" : std::to_string(plan.files.workers),
      plan.files.commit_interval_ms, plan.preempt_in_1024, plan.by_priority ? ", priorities" : "",
      plan.nearly_full ? ", nearly full" : "");
  constexpr std::array kEnds = {"power cut after changes", "power cut after ns", "abandon",
                                "close"};
  for (std::size_t i = 0; i < plan.lives.size(); ++i)
    text += fmt::format("  life {}: {} {}, {} crashes in recovery\n", i,
                        kEnds[static_cast<std::size_t>(plan.lives[i].end)], plan.lives[i].cut,
                        plan.lives[i].recovery_cuts);
  for (const SimFaultPlan& fault : plan.faults)
    text += fmt::format("  fault {}: life {}, {} after {}{}{}\n", fault.number, fault.life,
                        name_of(fault.kind), fault.after, fault.at_opening ? " at opening" : "",
                        fault.sticky ? ", for good" : "");
  for (const SimOp& op : plan.ops)
    text += fmt::format("  op {}: life {}, caller {}, {}\n", op.number, op.life, op.caller,
                        name_of(op.kind));
  return text;
}

std::string numbers_to_text(const std::vector<u32>& numbers) {
  if (numbers.empty()) return "none";
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    if (!text.empty()) text += ',';
    text += std::to_string(numbers[i]);
    if (end - i > 1) text += '-' + std::to_string(numbers[end - 1]);
    i = end;
  }
  return text;
}

std::vector<u32> numbers_from_text(std::string_view text) {
  std::vector<u32> numbers;
  if (text == "none") return numbers;
  const auto take = [&text] {
    u32 number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    LK_CHECK_MSG(error == std::errc{}, "numbers look like 0-4,7");
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return number;
  };
  for (;;) {
    const u32 first = take();
    u32 last = first;
    if (text.starts_with('-')) {
      text.remove_prefix(1);
      last = take();
    }
    for (u32 number = first; number <= last; ++number) numbers.push_back(number);
    if (text.empty()) return numbers;
    LK_CHECK_MSG(text.front() == ',', "numbers look like 0-4,7");
    text.remove_prefix(1);
  }
}

namespace {

template <class T>
void keep(std::vector<T>& list, const std::vector<u32>& numbers) {
  std::erase_if(list, [&](const T& item) {
    return std::ranges::find(numbers, item.number) == numbers.end();
  });
}

}  // namespace

void keep_ops(SimPlan& plan, const std::vector<u32>& numbers) { keep(plan.ops, numbers); }
void keep_faults(SimPlan& plan, const std::vector<u32>& numbers) { keep(plan.faults, numbers); }

}  // namespace latchkey::tests
