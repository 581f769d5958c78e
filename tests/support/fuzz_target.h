#pragma once
// What the fuzz targets share (*_fuzz.cpp; libFuzzer): a folder of seeds, mutations that know a
// store's structure, and inputs written out as images.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/support/image_mutator.h"
#include "tests/support/image_opening.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace latchkey::tests {

inline Bytes fuzz_bytes(const u8* data, std::size_t size) {
  return std::as_bytes(std::span(data, size));
}

inline std::size_t fuzz_give(Bytes bytes, u8* data, std::size_t size_max) {
  const std::size_t size = std::min(bytes.size(), size_max);
  std::memcpy(data, bytes.data(), size);
  return size;
}

inline void fuzz_write(const std::filesystem::path& path, Bytes bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

// An empty folder among the arguments is filled with the seeds, each behind `head`.
inline void fuzz_fill_folder(int argc, char** argv, Bytes head) {
  for (int i = 1; i < argc; ++i) {
    std::error_code error;
    const std::filesystem::path folder = argv[i];
    if (argv[i][0] == '-' || !std::filesystem::is_directory(folder, error) ||
        !std::filesystem::is_empty(folder, error))
      continue;
    int number = 0;
    for (const StoreImage& image : seed_images()) {
      std::vector<std::byte> bytes(head.begin(), head.end());
      const std::vector<std::byte> encoded = image.encode();
      bytes.insert(bytes.end(), encoded.begin(), encoded.end());
      fuzz_write(folder / ("seed" + std::to_string(number++)), bytes);
    }
  }
}

// With LATCHKEY_FUZZ_IMAGE=FILE an input is not tried but written there as the device image that it
// stands for.
inline bool fuzz_write_image(const StoreImage& image) {
  const char* path = std::getenv("LATCHKEY_FUZZ_IMAGE");
  if (path == nullptr) return false;
  fuzz_write(path, {});
  std::filesystem::resize_file(path, image.device_blocks * engine::kBlockBytes);
  std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
  for (const auto& [number, block] : image.blocks) {
    out.seekp(static_cast<std::streamoff>(number * engine::kBlockBytes));
    out.write(reinterpret_cast<const char*>(block.data()), block.size());
  }
  return true;
}

inline ImageMutator fuzz_mutator(u64 seed) {
  return {seed, [](MutableBytes bytes, u64) {
            std::vector<u8> copy(bytes.size());
            std::memcpy(copy.data(), bytes.data(), copy.size());
            LLVMFuzzerMutate(copy.data(), copy.size(), copy.size());
            std::memcpy(bytes.data(), copy.data(), copy.size());
          }};
}

// A custom mutator and a cross-over for inputs that are images alone.
inline std::size_t fuzz_mutate(u8* data, std::size_t size, std::size_t size_max, unsigned seed) {
  StoreImage image = StoreImage::decode(fuzz_bytes(data, size));
  if (seed % 64 == 0 || image.blocks.empty()) return LLVMFuzzerMutate(data, size, size_max);
  fuzz_mutator(seed).mutate(image);
  return fuzz_give(image.encode(), data, size_max);
}

inline std::size_t fuzz_cross(Bytes first, Bytes second, u8* out, std::size_t size_max,
                              unsigned seed) {
  StoreImage image = StoreImage::decode(first);
  fuzz_mutator(seed).cross(image, StoreImage::decode(second));
  return fuzz_give(image.encode(), out, size_max);
}

}  // namespace latchkey::tests
