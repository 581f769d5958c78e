#include "extent/seal.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/checksum.h"

namespace latchkey::extent {

namespace {

// Sealed together, then looked at for their checksums while they are in the first cache.
constexpr std::size_t kBlocksAtOnce = 4;

template <class Fill>
void fill(std::span<const std::byte* const> blocks, MutableBytes target, std::span<u32> checksums,
          const Fill& fill_some) {
  LK_CHECK(target.size() == blocks.size() * kBlockBytes && checksums.size() == blocks.size());
  for (std::size_t first = 0; first < blocks.size(); first += kBlocksAtOnce) {
    const std::size_t count = std::min(kBlocksAtOnce, blocks.size() - first);
    const MutableBytes some = target.subspan(first * kBlockBytes, count * kBlockBytes);
    fill_some(first, blocks.subspan(first, count), some);
    for (std::size_t i = 0; i < count; ++i)
      checksums[first + i] = crc32c(some.subspan(i * kBlockBytes, kBlockBytes));
  }
}

}  // namespace

void seal_blocks(const crypto::XtsKey& key, u64 first_unit,
                 std::span<const std::byte* const> blocks, MutableBytes target,
                 std::span<u32> checksums) {
  fill(blocks, target, checksums, [&](std::size_t first, auto some, MutableBytes output) {
    crypto::xts_seal_scattered(key, {first_unit + first, kBlockBytes}, some, output);
  });
}

void copy_blocks(std::span<const std::byte* const> blocks, MutableBytes target,
                 std::span<u32> checksums) {
  fill(blocks, target, checksums, [](std::size_t, auto some, MutableBytes output) {
    for (std::size_t i = 0; i < some.size(); ++i)
      std::memcpy(output.data() + i * kBlockBytes, some[i], kBlockBytes);
  });
}

i64 first_mismatch(Bytes blocks, std::span<const u32> checksums) {
  LK_CHECK(blocks.size() == checksums.size() * kBlockBytes);
  for (std::size_t index = 0; index < checksums.size(); ++index)
    if (crc32c(blocks.subspan(index * kBlockBytes, kBlockBytes)) != checksums[index])
      return static_cast<i64>(index);
  return -1;
}

void open_blocks(const crypto::XtsKey& key, u64 first_unit, Bytes ciphertext,
                 MutableBytes plaintext) {
  LK_CHECK(ciphertext.size() == plaintext.size() && ciphertext.size() % kBlockBytes == 0);
  crypto::xts_open(key, {first_unit, kBlockBytes}, ciphertext, plaintext);
}

}  // namespace latchkey::extent
