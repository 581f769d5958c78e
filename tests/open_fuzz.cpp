// Fuzz target: images of any content are opened (tests/support/image_opening.h). Nothing may stop
// the process, leak, or take long.
//
//   build/fuzz/tests/open_fuzz -max_total_time=60 -timeout=10 FOLDER
//
// With LATCHKEY_FUZZ_REPAIR=1 they are checked and repaired instead: nothing may become worse. An
// empty FOLDER is filled with images of small real stores first. With LATCHKEY_FUZZ_IMAGE=FILE
// an input is not opened but written there as the device image that it stands for.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/support/image_mutator.h"
#include "tests/support/image_opening.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace latchkey::tests {
namespace {

Bytes bytes_of(const u8* data, std::size_t size) { return std::as_bytes(std::span(data, size)); }

void write_file(const std::filesystem::path& path, Bytes bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

void write_seeds(const std::filesystem::path& folder) {
  int number = 0;
  for (const StoreImage& image : seed_images())
    write_file(folder / ("seed" + std::to_string(number++)), image.encode());
}

void write_image(const char* path, const StoreImage& image) {
  write_file(path, {});
  std::filesystem::resize_file(path, image.device_blocks * engine::kBlockBytes);
  std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
  for (const auto& [number, block] : image.blocks) {
    out.seekp(static_cast<std::streamoff>(number * engine::kBlockBytes));
    out.write(reinterpret_cast<const char*>(block.data()), block.size());
  }
}

ImageMutator mutator(u64 seed) {
  return {seed, [](MutableBytes bytes, u64) {
            std::vector<u8> copy(bytes.size());
            std::memcpy(copy.data(), bytes.data(), copy.size());
            LLVMFuzzerMutate(copy.data(), copy.size(), copy.size());
            std::memcpy(bytes.data(), copy.data(), copy.size());
          }};
}

std::size_t give(const StoreImage& image, u8* data, std::size_t size_max) {
  const std::vector<std::byte> bytes = image.encode();
  const std::size_t size = std::min(bytes.size(), size_max);
  std::memcpy(data, bytes.data(), size);
  return size;
}

}  // namespace
}  // namespace latchkey::tests

using latchkey::tests::StoreImage;

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  for (int i = 1; i < *argc; ++i) {
    const char* argument = (*argv)[i];
    std::error_code error;
    if (argument[0] != '-' && std::filesystem::is_directory(argument, error) &&
        std::filesystem::is_empty(argument, error))
      latchkey::tests::write_seeds(argument);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const StoreImage image = StoreImage::decode(latchkey::tests::bytes_of(data, size));
  if (const char* path = std::getenv("LATCHKEY_FUZZ_IMAGE"); path != nullptr)
    latchkey::tests::write_image(path, image);
  else if (std::getenv("LATCHKEY_FUZZ_REPAIR") != nullptr)
    latchkey::tests::repair_everything(image);
  else
    latchkey::tests::open_everything(image);
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  StoreImage image = StoreImage::decode(latchkey::tests::bytes_of(data, size));
  if (seed % 64 == 0 || image.blocks.empty()) return LLVMFuzzerMutate(data, size, max_size);
  latchkey::tests::mutator(seed).mutate(image);
  return latchkey::tests::give(image, data, max_size);
}

extern "C" std::size_t LLVMFuzzerCustomCrossOver(const std::uint8_t* data, std::size_t size,
                                                 const std::uint8_t* other, std::size_t other_size,
                                                 std::uint8_t* out, std::size_t out_size,
                                                 unsigned seed) {
  StoreImage image = StoreImage::decode(latchkey::tests::bytes_of(data, size));
  const StoreImage second = StoreImage::decode(latchkey::tests::bytes_of(other, other_size));
  latchkey::tests::mutator(seed).cross(image, second);
  return latchkey::tests::give(image, out, out_size);
}
