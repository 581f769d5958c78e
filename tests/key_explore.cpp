// key_explore: every interleaving of three callers around a removal, mode by mode, plan by plan.
//
//   key_explore [--seconds S] [--mode MODE] [--plan TEXT] [--bound PREEMPTIONS] [--choices DIGITS]
//               [--on volume] [--list plans]
//
// On the keyring with the least volume around it, every one; on the volume itself, those of at most
// two preemptions (or as many as --bound says).
// Prints a row for each plan: the states in which more than one caller could go on, the runs that
// it took to see them all, how many interleavings that were. --seconds is for each plan; one that
// it cuts off is told. --choices repeats one run, step by step. Exit code 1: something was wrong.

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "tests/explore/volume_scene.h"
#include "tests/support/arguments.h"

namespace latchkey::tests {
namespace {

struct Arguments {
  ExploreOptions options;
  std::string mode, plan;
  std::vector<u32> choices;
  bool on_volume = false;
};

int usage() {
  fmt::print(stderr,
             "usage: key_explore [--seconds S] [--mode MODE] [--plan TEXT] "
             "[--bound PREEMPTIONS] [--choices DIGITS] [--on volume] [--list plans]\n");
  return 2;
}

std::string digits(const std::vector<u32>& choices) {
  std::string text;
  for (const u32 choice : choices) text += static_cast<char>('0' + choice);
  return text;
}

// One by its name; else all with that in their name.
bool selects(const std::string& text, const KeyPlan& plan) {
  const auto plans = key_plans(keymgr::RemovalMode::soft);
  const bool is_a_name = std::ranges::any_of(plans, [&](const auto& p) { return p.name == text; });
  return is_a_name ? plan.name == text : plan.name.find(text) != std::string::npos;
}

bool show(const KeyPlan& plan, std::string_view mode, const Explored& explored) {
  fmt::print("{:8} {:36} {:>10} {:>10} {:>6} {:>12.3g}  {}\n", mode, plan.name, explored.states,
             explored.runs, explored.steps_max, explored.interleavings,
             !explored.wrong.empty() ? explored.wrong
             : explored.whole        ? "all"
                                     : "cut off");
  std::fflush(stdout);
  if (explored.wrong.empty()) return true;
  for (const std::string& line : explored.story) fmt::print("  {}\n", line);
  fmt::print("repeat: key_explore --mode {} --plan '{}' --choices {}\n", mode, plan.name,
             digits(explored.choices));
  return false;
}

int run(const Arguments& arguments) {
  u64 plans = 0, whole = 0, wrong = 0, states = 0, runs = 0;
  long double interleavings = 0;
  fmt::print("{:8} {:36} {:>10} {:>10} {:>6} {:>12}\n", "mode", "plan", "states", "runs", "steps",
             "interleavings");
  for (const keymgr::RemovalRow& row : keymgr::removal_rows()) {
    if (!arguments.mode.empty() && arguments.mode != row.name) continue;
    for (const KeyPlan& plan : key_plans(row.mode)) {
      if (!selects(arguments.plan, plan)) continue;
      if (arguments.on_volume && !VolumeScene::plays(plan)) continue;
      const auto make = [&]() -> std::unique_ptr<Scene> {
        if (arguments.on_volume) return std::make_unique<VolumeScene>(plan);
        return std::make_unique<KeyScene>(plan);
      };
      Explorer explorer(make, arguments.options);
      const Explored explored =
          arguments.choices.empty() ? explorer.explore() : explorer.repeat(arguments.choices);
      ++plans;
      whole += explored.whole ? 1 : 0;
      wrong += show(plan, row.name, explored) ? 0 : 1;
      states += explored.states;
      runs += explored.runs;
      interleavings += explored.interleavings;
    }
  }
  fmt::print(
      "key_explore: {} plans, {} explored whole, {} states, {} runs, {:.3g} interleavings; "
      "{} wrong\n",
      plans, whole, states, runs, interleavings, wrong);
  return wrong == 0 && plans != 0 ? 0 : 1;
}

}  // namespace
}  // namespace latchkey::tests

int main(int argc, char** argv) {
  using namespace latchkey::tests;
  Arguments arguments;
  std::optional<latchkey::u64> bound;
  std::string choices;
  bool list = false;
  const Argument known[] = {
      number("--seconds", arguments.options.seconds_max),
      text("--mode", arguments.mode),
      text("--plan", arguments.plan),
      number("--bound", bound),
      text("--choices", choices),
      Argument{"--on",
               [&](std::string_view what) { return arguments.on_volume = what == "volume"; }},
      Argument{"--list", [&](std::string_view what) { return list = what == "plans"; }}};
  if (!parse_arguments({argv + 1, static_cast<std::size_t>(argc - 1)}, known)) return usage();
  if (list) {
    for (const KeyPlan& plan : key_plans(latchkey::keymgr::RemovalMode::soft))
      fmt::print("{}\n", plan.name);
    return 0;
  }
  if (bound) arguments.options.preemptions_max = static_cast<latchkey::u32>(*bound);
  for (const char digit : choices)
    arguments.choices.push_back(static_cast<latchkey::u32>(digit - '0'));
  if (arguments.on_volume) {
    arguments.options.merge = false;
    if (!arguments.options.preemptions_max) arguments.options.preemptions_max = 2;
  }
  return run(arguments);
}
