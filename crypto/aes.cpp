#include "crypto/aes.h"

namespace latchkey::crypto {

#if LK_HAVE_AESNI

bool cpu_has_aesni() {
  static const bool has = __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul") &&
                          __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1");
  return has;
}

namespace {

// Each word becomes the sum of itself and all words before it: w0, w0^w1, w0^w1^w2, ...
LK_AESNI_INLINE __m128i prefix_sums(__m128i words) {
  words = _mm_xor_si128(words, _mm_slli_si128(words, 4));
  return _mm_xor_si128(words, _mm_slli_si128(words, 8));
}

// SubWord of the last word in all four words. ShiftRows does nothing to four equal columns, so the
// last round's instruction is SubWord and the sum with `constant`, at a third of the latency of
// AESKEYGENASSIST. `select` picks the word, rotated (RotWord) or not.
LK_AESNI_INLINE __m128i substituted(__m128i words, __m128i select, __m128i constant) {
  return _mm_aesenclast_si128(_mm_shuffle_epi8(words, select), constant);
}

LK_AESNI_INLINE __m128i load(const std::byte* bytes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

LK_AESNI_INLINE __m128i* writable(AesSchedule& schedule) {
  return reinterpret_cast<__m128i*>(schedule.data());
}

// One schedule in the making: the two round keys from which the next two come (FIPS-197 5.2).
struct Expansion {
  __m128i even;
  __m128i odd;
  __m128i* next;
};

LK_AESNI_INLINE Expansion begin(const std::byte* key, AesSchedule& schedule) {
  Expansion expansion{load(key), load(key + kBlockBytes), writable(schedule)};
  _mm_store_si128(expansion.next++, expansion.even);
  _mm_store_si128(expansion.next++, expansion.odd);
  return expansion;
}

LK_AESNI_INLINE void step_even(Expansion& expansion, __m128i constant) {
  const __m128i rotated = _mm_set1_epi32(0x0c0f0e0d);
  expansion.even =
      _mm_xor_si128(prefix_sums(expansion.even), substituted(expansion.odd, rotated, constant));
  _mm_store_si128(expansion.next++, expansion.even);
}

LK_AESNI_INLINE void step_odd(Expansion& expansion) {
  const __m128i straight = _mm_set1_epi32(0x0f0e0d0c);
  expansion.odd = _mm_xor_si128(prefix_sums(expansion.odd),
                                substituted(expansion.even, straight, _mm_setzero_si128()));
  _mm_store_si128(expansion.next++, expansion.odd);
}

constexpr int kLastConstant = 0x40;  // Rcon of the seventh and last step of a 256-bit key

}  // namespace

LK_AESNI void aes256_expand_pair(const std::byte* first, const std::byte* second,
                                 AesSchedule& first_schedule, AesSchedule& second_schedule) {
  Expansion a = begin(first, first_schedule);
  Expansion b = begin(second, second_schedule);
  for (int constant = 1; constant <= kLastConstant; constant <<= 1) {
    const __m128i constants = _mm_set1_epi32(constant);
    step_even(a, constants);
    step_even(b, constants);
    if (constant == kLastConstant) break;
    step_odd(a);
    step_odd(b);
  }
}

LK_AESNI void aes256_expand(const std::byte* key, AesSchedule& schedule) {
  Expansion expansion = begin(key, schedule);
  for (int constant = 1; constant <= kLastConstant; constant <<= 1) {
    step_even(expansion, _mm_set1_epi32(constant));
    if (constant != kLastConstant) step_odd(expansion);
  }
}

LK_AESNI void aes256_invert(const AesSchedule& encrypt, AesSchedule& decrypt) {
  const __m128i* from = round_keys(encrypt);
  __m128i* to = writable(decrypt);
  _mm_store_si128(to, _mm_load_si128(from + kAesRounds));
  for (int round = 1; round < kAesRounds; ++round)
    _mm_store_si128(to + round, _mm_aesimc_si128(_mm_load_si128(from + kAesRounds - round)));
  _mm_store_si128(to + kAesRounds, _mm_load_si128(from));
}

#else

bool cpu_has_aesni() { return false; }

#endif

}  // namespace latchkey::crypto
