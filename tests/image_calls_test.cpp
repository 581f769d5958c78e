// Goal: calls in any order keep a sound store sound, and stop no process on one that is not.
// Method: random programs of calls on small real stores, some of them changed by the fuzz target's
// mutator; the check afterwards. calls_fuzz.cpp goes on from here by coverage.

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/image_mutator.h"
#include "tests/support/image_opening.h"
#include "tests/support/image_program.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

std::vector<std::byte> random_program(std::mt19937_64& random) {
  std::vector<std::byte> program((1 + random() % 60) * kCallBytes);
  std::ranges::generate(program, [&] { return static_cast<std::byte>(random()); });
  return program;
}

TEST(ImageCalls, programs_keep_a_sound_store_sound) {
  const std::vector<StoreImage> seeds = seed_images();
  for (u64 i = 0; i < 100; ++i) {
    const u64 seed = seed_base() + i;
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    run_program(seeds[seed % seeds.size()], random_program(random));
  }
}

TEST(ImageCalls, programs_on_changed_images_are_answered) {
  const std::vector<StoreImage> seeds = seed_images();
  for (u64 i = 0; i < 100; ++i) {
    const u64 seed = seed_base() + 1'000'000 + i;
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    StoreImage image = seeds[seed % seeds.size()];
    ImageMutator change(seed, [](MutableBytes bytes, u64 chance) {
      bytes[chance % bytes.size()] ^= static_cast<std::byte>(1 + chance / 8191 % 255);
    });
    change.mutate(image);
    run_program(image, random_program(random));
  }
}

}  // namespace
}  // namespace latchkey::tests
