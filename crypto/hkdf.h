#pragma once
// HKDF-SHA512 as fscrypt uses it (RFC 5869; fs/crypto/hkdf.c): salt of 64 zero bytes, the extract
// done once for a master key, info = label || context || context's own bytes.
//
// Contexts under the label "fscrypt\0" (numbers are the kernel's; 9 is of btrfs series v6/v7):
//   1 key identifier    info empty           16 bytes
//   2 per-file key      info inode nonce     64 for XTS contents, 32 for CTS names
//   5 directory hash    info directory nonce 16
//   9 per-extent key    info extent nonce    64
// Under "latchkey\0", all our own: 1 attribute values, 2 keyed tags (design K5, D3).
//
// Thread-safe; all but hkdf_prepare() cannot fail. They work in a pool of 32 scratches in the
// arena, made by the first call and kept, and wipe what they used. Each is a SecretWork but
// derive_extent_key() and derive_extent_keys(), whose callers have one around the batch.

#include "base/secret.h"
#include "crypto/ids.h"
#include "crypto/xts.h"

namespace latchkey::crypto {

enum class Context : u8 { key_identifier = 1, per_file = 2, dirhash = 5, per_extent = 9 };

// The HMAC states after absorbing the inner and the outer pad: all that expand needs, and as secret
// as the master key. In the arena only: Secret<HkdfState>.
struct alignas(64) HkdfState {
  std::array<u64, 8> inner;
  std::array<u64, 8> outer;
};

// Makes the pool of scratches if there is none yet: Errc::no_memory where a later call would stop
// the process.
Result<void> hkdf_prepare();

// `master` is kShortKeyBytesMin to kMasterKeyBytesMax bytes in the arena. The caller wipes it.
void hkdf_extract(Bytes master, HkdfState& state);
// output.size() <= 64, info.size() <= 101. `output` is in the arena unless what is derived is
// public (the identifier).
void hkdf_expand(const HkdfState& state, Context context, Bytes info, MutableBytes output);
// The same with the whole info given, label and all: RFC 5869's first block. At most 110 bytes, so
// that an HMAC is two compressions.
inline constexpr std::size_t kInfoBytesMax = 110;
void hkdf_expand_info(const HkdfState& state, Bytes info, MutableBytes output);

KeyId key_identifier(const HkdfState& state);
// The 64-byte extent key goes straight into schedules; no copy of it is left.
void derive_extent_key(const HkdfState& state, const Nonce& nonce, XtsKey& key);
inline constexpr std::size_t kExtentKeysAtOnce = 8;
// The same for as many nonces as keys, kExtentKeysAtOnce together where the CPU has AVX-512.
void derive_extent_keys(const HkdfState& state, std::span<const Nonce> nonces,
                        std::span<XtsKey> keys);

}  // namespace latchkey::crypto
