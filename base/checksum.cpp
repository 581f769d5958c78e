#include "base/checksum.h"

#include <isa-l/crc.h>
#include <xxh_x86dispatch.h>  // chooses SSE2, AVX2 or AVX-512 at run time

#include <algorithm>
#include <cstring>

namespace latchkey {

u32 crc32c(Bytes bytes) {
  // ISA-L takes an int and inverts neither at the start nor at the end; its pointer is not const.
  u32 crc = ~u32{0};
  while (!bytes.empty()) {
    const std::size_t size = std::min<std::size_t>(bytes.size(), kGiB);
    auto* data = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(bytes.data()));
    crc = crc32_iscsi(data, static_cast<int>(size), crc);
    bytes = bytes.subspan(size);
  }
  return ~crc;
}

Checksum checksum128(Bytes bytes) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  Checksum checksum{};
  static_assert(sizeof canonical <= sizeof checksum);
  std::memcpy(checksum.data(), &canonical, sizeof canonical);
  return checksum;
}

u64 hash64(Bytes bytes, u64 seed) { return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed); }

}  // namespace latchkey
