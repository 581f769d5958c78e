#pragma once
// Plaintext blocks to ciphertext blocks and checksums, and back. Pure: no I/O, no locks, no
// allocation. One data unit is one block of 4096.

#include "base/result.h"
#include "base/types.h"
#include "crypto/xts.h"

namespace latchkey::extent {

inline constexpr u32 kBlockBytes = 4096;

// Seals one block from anywhere (a cache page) to `target`, which lies in an I/O buffer; returns
// the crc32c of the ciphertext. `unit` is the block's tweak.
u32 seal_block(const crypto::XtsKey& key, u64 unit, Bytes plaintext, MutableBytes target);
// A clear extent: the same path with a copy in place of the cipher.
u32 copy_block(Bytes plaintext, MutableBytes target);

// Index of the first block whose checksum does not match, or -1.
i64 first_mismatch(Bytes blocks, std::span<const u32> checksums);

// Opens whole blocks; in place or out of place.
void open_blocks(const crypto::XtsKey& key, u64 first_unit, Bytes ciphertext,
                 MutableBytes plaintext);

}  // namespace latchkey::extent
