#pragma once
// AES-256 on AES-NI: key schedules and single blocks. Internal to crypto/.
//
// Nothing here looks anything up by a secret: SubBytes is the instruction's, in the key schedule
// too. Instruction sets are enabled for single functions and never for a file, so that no inline
// code that others share is compiled with instructions which the CPU may lack.

#include <array>

#include "base/types.h"

#if defined(__x86_64__)
#define LK_HAVE_AESNI 1
#include <immintrin.h>
#else
#define LK_HAVE_AESNI 0
#endif

namespace latchkey::crypto {

inline constexpr std::size_t kBlockBytes = 16;
inline constexpr std::size_t kAesKeyBytes = 32;
inline constexpr int kAesRounds = 14;
using AesSchedule = std::array<std::byte, (kAesRounds + 1) * kBlockBytes>;

bool cpu_has_aesni();

#if LK_HAVE_AESNI
// Carry-less multiplication is of the same generation as AES-NI and steps eight tweaks at once.
#define LK_AESNI __attribute__((target("aes,pclmul,ssse3,sse4.1")))
#define LK_AESNI_INLINE __attribute__((target("aes,pclmul,ssse3,sse4.1"), always_inline)) inline

#if defined(__clang__)
#define LK_UNROLL _Pragma("unroll")
#else
#define LK_UNROLL _Pragma("GCC unroll 16")
#endif

// Two keys of 32 bytes side by side: the second hides in the latency of the first.
LK_AESNI void aes256_expand_pair(const std::byte* first, const std::byte* second,
                                 AesSchedule& first_schedule, AesSchedule& second_schedule);
LK_AESNI void aes256_expand(const std::byte* key, AesSchedule& schedule);
// The schedule of the equivalent inverse cipher (FIPS-197 5.3.5).
LK_AESNI void aes256_invert(const AesSchedule& encrypt, AesSchedule& decrypt);

// Schedules lie in the arena, 16-byte aligned (XtsKey and NameKey are 64-byte aligned).
LK_AESNI_INLINE const __m128i* round_keys(const AesSchedule& schedule) {
  return reinterpret_cast<const __m128i*>(schedule.data());
}

LK_AESNI_INLINE __m128i aes256_encrypt_block(const __m128i* keys, __m128i block) {
  block = _mm_xor_si128(block, _mm_load_si128(keys));
  for (int round = 1; round < kAesRounds; ++round)
    block = _mm_aesenc_si128(block, _mm_load_si128(keys + round));
  return _mm_aesenclast_si128(block, _mm_load_si128(keys + kAesRounds));
}

LK_AESNI_INLINE __m128i aes256_decrypt_block(const __m128i* keys, __m128i block) {
  block = _mm_xor_si128(block, _mm_load_si128(keys));
  for (int round = 1; round < kAesRounds; ++round)
    block = _mm_aesdec_si128(block, _mm_load_si128(keys + round));
  return _mm_aesdeclast_si128(block, _mm_load_si128(keys + kAesRounds));
}
#endif

}  // namespace latchkey::crypto
