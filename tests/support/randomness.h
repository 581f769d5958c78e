#pragma once
// Whether bytes look as if they were drawn at random: nonces, ciphertext.

#include <string>

#include "base/types.h"

namespace latchkey::tests {

// What is wrong with them, in words; empty: nothing. Looks for a unit of 16 bytes that comes twice
// at any distance, for values of a byte and bits of a unit that are too frequent or too rare (or
// all as frequent), and whether deflate makes them smaller. Random bytes fail once in 10^9 times.
// A multiple of 16, at least 4096 of them.
std::string what_is_not_random(Bytes bytes);

// How large deflate makes them; it looks back 32 KiB.
u64 deflated_size(Bytes bytes);

}  // namespace latchkey::tests
