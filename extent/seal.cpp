#include "extent/seal.h"

#include <cstring>

#include "base/check.h"
#include "base/checksum.h"

namespace latchkey::extent {

u32 seal_block(const crypto::XtsKey& key, u64 unit, Bytes plaintext, MutableBytes target) {
  LK_CHECK(plaintext.size() == kBlockBytes && target.size() == kBlockBytes);
  crypto::xts_seal(key, {unit, kBlockBytes}, plaintext, target);
  return crc32c(target);
}

u32 copy_block(Bytes plaintext, MutableBytes target) {
  LK_CHECK(plaintext.size() == kBlockBytes && target.size() == kBlockBytes);
  std::memcpy(target.data(), plaintext.data(), kBlockBytes);
  return crc32c(target);
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
