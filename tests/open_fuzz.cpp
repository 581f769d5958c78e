// Fuzz target: images of any content are opened, looked at and changed (image_opening.h). Nothing
// may stop the process, leak, or take long.
//
//   build/fuzz/tests/open_fuzz -max_total_time=60 -timeout=10 FOLDER
//
// An empty FOLDER is filled with images of small real stores first. With LATCHKEY_FUZZ_IMAGE=FILE
// an input is not opened but written there as the device image that it stands for.

#include "tests/support/fuzz_target.h"

using namespace latchkey::tests;  // NOLINT: a fuzz target and nothing else

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  fuzz_fill_folder(*argc, *argv, {});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const StoreImage image = StoreImage::decode(fuzz_bytes(data, size));
  if (!fuzz_write_image(image)) open_everything(image);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  return fuzz_mutate(data, size, max_size, seed);
}

extern "C" std::size_t LLVMFuzzerCustomCrossOver(const std::uint8_t* data, std::size_t size,
                                                 const std::uint8_t* other, std::size_t other_size,
                                                 std::uint8_t* out, std::size_t out_size,
                                                 unsigned seed) {
  return fuzz_cross(fuzz_bytes(data, size), fuzz_bytes(other, other_size), out, out_size, seed);
}
