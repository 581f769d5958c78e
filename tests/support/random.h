#pragma once
// Random numbers by seed where many generators live shortly: SplitMix64 (Steele, Lea, Flood, "Fast
// Splittable Pseudorandom Number Generators", 2014) has eight bytes of state, std::mt19937_64 has
// 2500 that are filled for each seed.

#include <limits>

#include "base/types.h"

namespace latchkey::tests {

class SplitMix64 {
 public:
  using result_type = u64;
  // Mixed: seeds that differ by the generator's own step would begin one stream at its neighbours.
  explicit SplitMix64(u64 seed = 0) : state_(seed) { state_ = (*this)(); }
  static constexpr u64 min() { return 0; }
  static constexpr u64 max() { return std::numeric_limits<u64>::max(); }
  u64 operator()() {
    u64 z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  bool operator==(const SplitMix64&) const = default;

 private:
  u64 state_;
};

}  // namespace latchkey::tests
