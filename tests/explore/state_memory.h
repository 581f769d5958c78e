#pragma once
// The memory of one explored world, so that two of its states can be compared byte by byte: a
// program that links lk_explore has its operator new here. Addresses follow from what is in use and
// not from what was (each size takes its lowest free slot), and free memory is zero.
//
// One thread. Under a sanitizer operator new is the sanitizer's, and states cannot be compared.

#include <cstddef>

#include "base/types.h"

namespace latchkey::tests {

class StateMemory {
 public:
  static bool works();  // false under a sanitizer
  // While one lives, new memory of this thread is the world's.
  class Use {
   public:
    Use();
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    bool before_;
  };
  // While one lives, it is not, although a Use is around it: what the explorer notes of its own.
  class Pause {
   public:
    Pause();
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;

   private:
    bool before_;
  };

  static bool contains(const void* address);
  static u64 in_use();  // pieces
  static u64 hash(u64 seed);
};

// Order matters, and so does where the bytes end.
u64 hash_bytes(u64 seed, const std::byte* bytes, std::size_t size);

}  // namespace latchkey::tests
