#pragma once
// Changes an image of a store as a fuzzer does, but knowing its structure: bytes and fields of
// metadata, pointers and records moved about, records added and dropped, bits of bitmaps; then most
// of the time with checksums made right again. All of it follows from the seed.

#include <functional>
#include <random>

#include "tests/support/store_image.h"

namespace latchkey::tests {

class ImageMutator {
 public:
  // Changes some of the bytes, not their number: libFuzzer's own mutations, or chance.
  using MutateBytes = std::function<void(MutableBytes bytes, u64 seed)>;
  ImageMutator(u64 seed, MutateBytes mutate_bytes)
      : random_(seed), mutate_bytes_(std::move(mutate_bytes)) {}

  void mutate(StoreImage& image);
  // Some blocks of `other` take their place in `image`.
  void cross(StoreImage& image, const StoreImage& other);

 private:
  u64 below(u64 end) { return random_() % end; }
  template <class T>
  const T& one_of(const std::vector<T>& choices) {
    return choices[below(choices.size())];
  }
  std::vector<u64> targets(const StoreImage& image);
  u64 interesting(const StoreImage& image);
  engine::Key some_key(const StoreImage& image);
  void set_field(MutableBytes at, std::size_t size, const StoreImage& image);
  void repair_some(StoreImage& image);

  void change_bytes(StoreImage& image);
  void change_field(StoreImage& image);
  void change_superblock(StoreImage& image);
  void move_pointer(StoreImage& image);
  void change_value(StoreImage& image);
  void add_record(StoreImage& image);
  void drop_record(StoreImage& image);
  void resize_value(StoreImage& image);
  void change_bitmap(StoreImage& image);
  void drop_block(StoreImage& image);

  std::mt19937_64 random_;
  MutateBytes mutate_bytes_;
};

}  // namespace latchkey::tests
