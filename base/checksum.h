#pragma once
// Checksums of what lies on disk. Both find damage by chance only; neither stops a forger.

#include <array>

#include "base/types.h"

namespace latchkey {

// CRC-32C (Castagnoli), the value iSCSI and btrfs use: of "123456789" it is 0xe3069283. ISA-L.
u32 crc32c(Bytes bytes);

// XXH3, 128 bits, in the first 16 bytes of a 32-byte field (canonical, big endian); the rest is
// zero and leaves room for a MAC.
using Checksum = std::array<std::byte, 32>;
Checksum checksum128(Bytes bytes);

// XXH3, 64 bits: for hash tables and directory order, not for integrity.
u64 hash64(Bytes bytes, u64 seed = 0);

}  // namespace latchkey
