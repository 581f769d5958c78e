#pragma once
// Plaintext blocks to ciphertext blocks and checksums, and back. Pure: no I/O, no locks, no
// allocation. One data unit is one block of 4096.

#include "base/result.h"
#include "base/types.h"
#include "crypto/xts.h"

namespace latchkey::extent {

inline constexpr u32 kBlockBytes = 4096;

// Seals blocks from anywhere (cache pages) to `target`, which lies in an I/O buffer, side by side;
// the first has the tweak `first_unit`. checksums[i] becomes the crc32c of block i's ciphertext.
// target and checksums are as long as blocks.
void seal_blocks(const crypto::XtsKey& key, u64 first_unit,
                 std::span<const std::byte* const> blocks, MutableBytes target,
                 std::span<u32> checksums);
// A clear extent: the same path with a copy in place of the cipher.
void copy_blocks(std::span<const std::byte* const> blocks, MutableBytes target,
                 std::span<u32> checksums);

// Index of the first block whose checksum does not match, or -1.
i64 first_mismatch(Bytes blocks, std::span<const u32> checksums);

// Opens whole blocks; in place or out of place.
void open_blocks(const crypto::XtsKey& key, u64 first_unit, Bytes ciphertext,
                 MutableBytes plaintext);

}  // namespace latchkey::extent
