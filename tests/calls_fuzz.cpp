// Fuzz target: images of any content, checksums made right, and short programs of a volume's calls
// on them (image_program.h). Used as open_fuzz is. An input is one byte, the number of calls, the
// calls, the image.

#include "tests/support/fuzz_target.h"
#include "tests/support/image_program.h"

using namespace latchkey::tests;  // NOLINT: a fuzz target and nothing else

namespace {

struct Input {
  std::vector<std::uint8_t> calls;
  StoreImage image;

  static Input decode(const std::uint8_t* data, std::size_t size) {
    Input input;
    if (size == 0) return input;
    const std::size_t calls = std::min(size - 1, data[0] * kCallBytes);
    input.calls.assign(data + 1, data + 1 + calls);
    input.image = StoreImage::decode(fuzz_bytes(data + 1 + calls, size - 1 - calls));
    return input;
  }
  std::size_t encode(std::uint8_t* data, std::size_t size_max) const {
    const std::size_t count = std::min<std::size_t>(calls.size() / kCallBytes, 255);
    std::vector<std::byte> bytes{static_cast<std::byte>(count)};
    for (std::size_t i = 0; i < count * kCallBytes; ++i)
      bytes.push_back(static_cast<std::byte>(calls[i]));
    const auto encoded = image.encode();
    bytes.insert(bytes.end(), encoded.begin(), encoded.end());
    return fuzz_give(bytes, data, size_max);
  }
};

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  const std::byte no_calls{};
  fuzz_fill_folder(*argc, *argv, {&no_calls, 1});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Input input = Input::decode(data, size);
  if (!fuzz_write_image(input.image))
    run_program(input.image, fuzz_bytes(input.calls.data(), input.calls.size()));
  return 0;
}

// Calls twice as often as the image, and an image that is sound half of the time: then whatever the
// check finds afterwards is the calls' doing.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size,
                                               std::size_t max_size, unsigned seed) {
  static constexpr std::size_t kCallsMax = 64;
  Input input = Input::decode(data, size);
  if (input.image.blocks.empty()) return LLVMFuzzerMutate(data, size, max_size);
  if (seed % 6 == 0) {
    fuzz_mutator(seed).mutate(input.image);
  } else {
    input.calls.resize(std::max<std::size_t>(input.calls.size(), kCallBytes));
    const std::size_t used = input.calls.size();
    input.calls.resize(kCallsMax * kCallBytes);
    const std::size_t now = LLVMFuzzerMutate(input.calls.data(), used, input.calls.size());
    input.calls.resize((now + kCallBytes - 1) / kCallBytes * kCallBytes);
  }
  return input.encode(data, max_size);
}

extern "C" std::size_t LLVMFuzzerCustomCrossOver(const std::uint8_t* data, std::size_t size,
                                                 const std::uint8_t* other, std::size_t other_size,
                                                 std::uint8_t* out, std::size_t out_size,
                                                 unsigned) {
  Input input = Input::decode(data, size);
  const Input second = Input::decode(other, other_size);
  const std::size_t half = input.calls.size() / kCallBytes / 2 * kCallBytes;
  input.calls.resize(half);
  input.calls.insert(input.calls.end(), second.calls.begin(), second.calls.end());
  return input.encode(out, out_size);
}
