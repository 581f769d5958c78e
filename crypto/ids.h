#pragma once
// Names of keys and of what is encrypted under them. They live here, not in extent/ or keymgr/, so
// that those two stay strangers.

#include <array>
#include <compare>
#include <cstring>

#include "base/types.h"

namespace latchkey::crypto {

template <int kTag>
struct Id16 {
  std::array<std::byte, 16> bytes{};
  auto operator<=>(const Id16&) const = default;
  Bytes span() const { return bytes; }
};

using KeyId = Id16<1>;  // HKDF of the master key (fscrypt's identifier): names it, reveals nothing
using Nonce = Id16<2>;  // random, drawn once

// fscrypt's mode numbers (include/uapi/linux/fscrypt.h), on disk.
enum class Mode : u8 { none = 0, aes_256_xts = 1, aes_256_cts = 4 };

inline constexpr std::size_t kMasterKeyBytesMin = 32;
inline constexpr std::size_t kShortKeyBytesMin = 16;  // fscrypt's own least; no use for AES-256
inline constexpr std::size_t kMasterKeyBytesMax = 64;

struct IdHash {
  template <int kTag>
  std::size_t operator()(const Id16<kTag>& id) const {
    std::size_t value;
    std::memcpy(&value, id.bytes.data(), sizeof value);
    return value;
  }
};

}  // namespace latchkey::crypto
