#pragma once
// fscrypt's derivations and ciphers once more, by OpenSSL's own HKDF, XTS and CTS: shares no code
// with crypto/, so that the two can judge each other. Keys for tests only, in ordinary memory.

#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"

namespace latchkey::tests {

using Heap = std::vector<std::byte>;

// HKDF-SHA512 without a salt; info is "fscrypt", a zero, the context's number, then `info`.
Heap fscrypt_derive(Bytes master, u8 context, Bytes info, std::size_t size);
// One data unit: AES-256-XTS under 64 bytes of key, the tweak is the unit's number.
Heap xts_seal(Bytes key, u64 unit, Bytes plain);
// A name: zeros up to a multiple of 32 bytes, or to `bytes_max`; then AES-256-CBC-CTS (CS3), no IV.
std::string cts_seal(Bytes key, std::string_view plain, std::size_t bytes_max);
// As a locked directory lists it.
std::string no_key_form(std::string_view sealed);

}  // namespace latchkey::tests
