// Goal: whatever a few users do with a few keys and files, in whatever order, every mode of removal
// and the power going in the middle of any of it: the volume answers what the model of the life of
// keys says, keeps what it acknowledged, and reports what it loses. Method: random sequences by
// seed on a simulated device, each step done to both (tests/support/key_life.h). A sequence that
// differs is made shorter before it is printed.

#include <gtest/gtest.h>

#include <functional>

#include "tests/support/key_life.h"
#include "tests/support/random.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

using Steps = std::vector<KeyStep>;
using Verb = KeyStep::Verb;

class Drawing {
 public:
  explicit Drawing(u64 seed) : random_(seed) {}
  u32 below(u32 bound) { return static_cast<u32>(random_() % bound); }

  KeyStep step() {
    // How often each verb is drawn, of 32.
    static constexpr std::array<std::pair<Verb, u32>, 10> kOften{{{Verb::add, 5},
                                                                  {Verb::remove, 7},
                                                                  {Verb::open, 2},
                                                                  {Verb::create, 4},
                                                                  {Verb::unlink, 1},
                                                                  {Verb::write, 5},
                                                                  {Verb::read, 3},
                                                                  {Verb::fsync, 2},
                                                                  {Verb::close, 3},
                                                                  {Verb::sync, 0}}};
    KeyStep step;
    u32 drawn = below(32);
    for (const auto& [verb, often] : kOften) {
      step.verb = verb;
      if (drawn < often) break;
      drawn -= often;
    }
    step.uid = KeyLife::kUids[below(KeyLife::kUids.size())];
    step.key = below(kModelKeys);
    step.slot = below(kModelHandles);
    step.name = below(kModelFiles);
    if (step.verb == Verb::remove) {
      step.mode = static_cast<keymgr::RemovalMode>(below(8));
      step.all_users = below(4) == 0;
      if (below(3) == 0) step.meanwhile = static_cast<Meanwhile>(1 + below(3));
    }
    return step;
  }

 private:
  SplitMix64 random_;
};

Steps draw(u64 seed, bool crashes) {
  Drawing drawing(seed);
  Steps steps;
  // Who is to do much has the keys first.
  for (u32 key = 0; key < kModelKeys; ++key)
    steps.push_back({.verb = Verb::add, .uid = KeyLife::kUids[drawing.below(4)], .key = key});
  for (int i = 0; i < 30; ++i) {
    steps.push_back(drawing.step());
    if (crashes && drawing.below(10) == 0) {
      steps.back().meanwhile = Meanwhile::nothing;
      steps.back().cut = drawing.below(8);
    }
  }
  return steps;
}

std::string run(const Steps& steps) {
  KeyLife life;
  for (const KeyStep& step : steps)
    if (std::string wrong = life.step(step); !wrong.empty()) return wrong;
  return life.audit();
}

// Without each step that is not needed to go wrong in some way.
Steps shorten(Steps steps) {
  for (std::size_t at = steps.size(); at-- > 0;) {
    Steps without = steps;
    without.erase(without.begin() + static_cast<std::ptrdiff_t>(at));
    if (!run(without).empty()) steps = std::move(without);
  }
  return steps;
}

void compare(u64 count, bool crashes) {
  for (const u64 seed : seeds(cases(count))) {
    const Steps steps = draw(seed, crashes);
    if (run(steps).empty()) continue;
    const Steps shorter = shorten(steps);
    std::string text;
    for (const KeyStep& step : shorter) text += "  " + to_text(step) + "\n";
    FAIL() << "seed " << seed << ": " << run(shorter) << "\n" << text;
  }
}

TEST(KeyModel, random_lives_are_those_of_the_model) { compare(600, false); }

TEST(KeyModel, and_so_they_are_when_the_power_goes_inside_of_any_call) { compare(200, true); }

}  // namespace
}  // namespace latchkey::tests
