#pragma once
// What the engine stores, opaque to it, beside each extent record: how its blocks are encrypted.
// The same facts as fscrypt's extent context of the btrfs series v6/v7 (34 bytes), in a layout of
// our own.
//
// An extent is sealed once and never in place, and its nonce is drawn when it is planned. So a
// (key, tweak) pair never seals two plaintexts (K1). Whatever weakens either half of that sentence
// breaks confidentiality, not just tests.

#include <array>
#include <optional>

#include "base/disk.h"
#include "base/result.h"
#include "crypto/ids.h"

namespace latchkey::extent {

struct ContextDisk {
  u8 version;  // 1
  u8 mode;     // crypto::Mode
  std::array<std::byte, 16> key_id;
  std::array<std::byte, 16> nonce;
};
LK_DISK_STRUCT(ContextDisk, 34);

struct Context {
  crypto::Mode mode = crypto::Mode::aes_256_xts;
  crypto::KeyId key_id;
  crypto::Nonce nonce;
  bool operator==(const Context&) const = default;
};

ContextDisk encode(const Context& context);
// Empty bytes: nullopt, a clear extent. Errc::malformed for another size, version or mode.
Result<std::optional<Context>> decode_context(Bytes bytes);

}  // namespace latchkey::extent
