#pragma once
// Eight extent keys at once: HKDF-SHA512 expand (hkdf.h) with one extent in each 64-bit lane of
// AVX-512 registers. Internal to crypto/.
//
// Nothing derived is stored but the keys: digests go from registers to where they are wanted. What
// the compiler spills is on the stack: the caller has a SecretWork around its batch.

#include <array>
#include <span>

#include "crypto/hkdf.h"

namespace latchkey::crypto {

inline constexpr std::size_t kHkdfLanes = kExtentKeysAtOnce;

// Whether this build and this CPU can.
bool hkdf_lanes_usable();

// keys[i]->raw = the 64 bytes derived for *nonces[i]. Unexpanded; in the arena.
void derive_lanes(const HkdfState& state, const std::array<const Nonce*, kHkdfLanes>& nonces,
                  const std::array<XtsKey*, kHkdfLanes>& keys);

}  // namespace latchkey::crypto
