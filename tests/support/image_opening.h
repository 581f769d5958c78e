#pragma once
// Everything that one can do to an image of unknown origin, and small real stores to begin with.
// Whatever the image is: every call answers, none of them stops the process or takes long.

#include <random>

#include "base/env.h"
#include "tests/support/store_image.h"
#include "volume/types.h"

namespace latchkey::tests {

// Time and chance that repeat, so that an input does the same again.
class RepeatingEnv final : public Env {
 public:
  explicit RepeatingEnv(u64 seed = 1) : random_(seed) {}
  u64 monotonic_ns() override { return ++now_; }
  u64 realtime_ns() override { return u64{1'800'000'000} * 1'000'000'000 + ++now_; }
  void random(MutableBytes bytes) override {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
  }

 private:
  u64 now_ = 0;
  std::mt19937_64 random_;
};

inline constexpr u64 kImageKeySeed = 7;  // of raw_key(), for the key of the seeds
// One thread does all the work, in one order, with little memory.
volume::VolumeOptions image_options(bool read_only);

// Checks it, with data; opens it read-only, without its key and with it, and looks at everything;
// opens it for writing (which reaps orphans), changes some of everything, closes, checks again.
// Returns how many files were read whole under the key without an error.
u32 open_everything(const StoreImage& image);

// Repairs it, stops the process if that made anything worse: a finding more, a file less that can
// be read; or if a second repair finds something to do. Returns whether it mended anything.
bool repair_everything(const StoreImage& image);

// Plain and encrypted files, large and small, with holes; orphans; nodes of 4 and 16 KiB; trees of
// one and two levels; one region of free space and two. The same at every call.
std::vector<StoreImage> seed_images();

}  // namespace latchkey::tests
