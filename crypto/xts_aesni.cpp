// AES-256-XTS and CBC on AES-NI, eight blocks abreast: AESENC has a latency of several cycles and a
// throughput of one or two a cycle, so eight independent blocks keep the unit busy.

#include "crypto/xts_aesni.h"
#include "base/check.h"
#include "crypto/kernel.h"

namespace latchkey::crypto {

#if LK_HAVE_AESNI

namespace {

constexpr std::size_t kAbreast = 8;

LK_AESNI_INLINE __m128i load_block(const std::byte* bytes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}
LK_AESNI_INLINE void store_block(std::byte* bytes, __m128i block) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), block);
}

// tweak * x in GF(2^128) with the polynomial x^128 + x^7 + x^2 + x + 1 (IEEE 1619, 5.2).
LK_AESNI_INLINE __m128i times_x(__m128i tweak) {
  const __m128i carries = _mm_srai_epi32(_mm_shuffle_epi32(tweak, 0x13), 31);
  const __m128i feedback = _mm_and_si128(carries, _mm_set_epi32(0, 1, 0, 0x87));
  return _mm_xor_si128(_mm_add_epi64(tweak, tweak), feedback);
}

// tweak * x^8: a shift by one byte, the byte that falls out folded back with one multiplication.
LK_AESNI_INLINE __m128i times_x8(__m128i tweak) {
  const __m128i fallen = _mm_srli_si128(tweak, 15);
  const __m128i folded = _mm_clmulepi64_si128(fallen, _mm_cvtsi32_si128(0x87), 0);
  return _mm_xor_si128(_mm_slli_si128(tweak, 1), folded);
}

// Encrypts the tweaks of up to eight units in one pass: done unit by unit each would cost the whole
// latency of fourteen rounds.
LK_AESNI_INLINE void encrypt_tweaks(const __m128i* keys, u64 first_unit, __m128i* tweaks) {
  __m128i block[kAbreast];
  const __m128i whitening = _mm_load_si128(keys);
  LK_UNROLL for (std::size_t i = 0; i < kAbreast; ++i) {
    const auto unit = static_cast<long long>(first_unit + i);
    block[i] = _mm_xor_si128(_mm_set_epi64x(0, unit), whitening);
  }
  for (int round = 1; round < kAesRounds; ++round) {
    const __m128i key = _mm_load_si128(keys + round);
    LK_UNROLL for (std::size_t i = 0; i < kAbreast; ++i) block[i] = _mm_aesenc_si128(block[i], key);
  }
  const __m128i last = _mm_load_si128(keys + kAesRounds);
  LK_UNROLL for (std::size_t i = 0; i < kAbreast; ++i)
      _mm_store_si128(tweaks + i, _mm_aesenclast_si128(block[i], last));
}

template <bool kSeal>
LK_AESNI_INLINE __m128i middle_round(__m128i block, __m128i key) {
  if constexpr (kSeal) return _mm_aesenc_si128(block, key);
  return _mm_aesdec_si128(block, key);
}
template <bool kSeal>
LK_AESNI_INLINE __m128i last_round(__m128i block, __m128i key) {
  if constexpr (kSeal) return _mm_aesenclast_si128(block, key);
  return _mm_aesdeclast_si128(block, key);
}

// Eight blocks; all are loaded before one is stored, so output may be input. The xor with the tweak
// on the way out is folded into the last round key. Leaves the tweaks of the next eight blocks.
template <bool kSeal>
LK_AESNI_INLINE void crypt_eight(const __m128i* keys, __m128i* tweaks, const std::byte* input,
                                 std::byte* output) {
  __m128i block[kAbreast];
  const __m128i whitening = _mm_load_si128(keys);
  LK_UNROLL for (std::size_t i = 0; i < kAbreast; ++i) {
    const __m128i in = _mm_xor_si128(load_block(input + i * kBlockBytes), whitening);
    block[i] = _mm_xor_si128(in, tweaks[i]);
  }
  for (int round = 1; round < kAesRounds; ++round) {
    const __m128i key = _mm_load_si128(keys + round);
    LK_UNROLL for (std::size_t i = 0; i < kAbreast; ++i) block[i] =
        middle_round<kSeal>(block[i], key);
  }
  const __m128i last = _mm_load_si128(keys + kAesRounds);
  LK_UNROLL for (std::size_t i = 0; i < kAbreast; ++i) {
    const __m128i key = _mm_xor_si128(last, tweaks[i]);
    store_block(output + i * kBlockBytes, last_round<kSeal>(block[i], key));
    tweaks[i] = times_x8(tweaks[i]);
  }
}

// One data unit of `blocks` blocks; the last one to seven go one by one.
template <bool kSeal>
LK_AESNI_INLINE void crypt_unit(const __m128i* keys, __m128i tweak, const std::byte* input,
                                std::byte* output, std::size_t blocks) {
  __m128i tweaks[kAbreast];
  LK_UNROLL for (std::size_t i = 0; i < kAbreast; ++i) {
    tweaks[i] = tweak;
    tweak = times_x(tweak);
  }
  for (; blocks >= kAbreast; blocks -= kAbreast) {
    crypt_eight<kSeal>(keys, tweaks, input, output);
    input += kAbreast * kBlockBytes;
    output += kAbreast * kBlockBytes;
  }
  for (std::size_t i = 0; i < blocks; ++i) {
    __m128i block = _mm_xor_si128(load_block(input + i * kBlockBytes), tweaks[i]);
    block = kSeal ? aes256_encrypt_block(keys, block) : aes256_decrypt_block(keys, block);
    store_block(output + i * kBlockBytes, _mm_xor_si128(block, tweaks[i]));
  }
}

template <bool kSeal>
LK_AESNI void crypt_run(const XtsKey& key, XtsRun run, const UnitSource& source,
                        std::byte* output) {
  const AesSchedule& schedule = kSeal ? key.encrypt : key.decrypt;
  aesni::check_expanded(key.tweak, schedule);
  const __m128i* keys = round_keys(schedule);
  const __m128i* tweak_keys = round_keys(key.tweak);
  const std::size_t blocks = run.unit_bytes / kBlockBytes;

  alignas(16) __m128i tweaks[kAbreast];
  for (std::size_t unit = 0; unit < source.units; ++unit) {
    const std::size_t index = unit % kAbreast;
    if (index == 0) encrypt_tweaks(tweak_keys, run.first_unit + unit, tweaks);
    crypt_unit<kSeal>(keys, tweaks[index], source.at(unit), output + unit * run.unit_bytes, blocks);
  }
}

}  // namespace

namespace aesni {

__attribute__((noinline)) void check_expanded(const AesSchedule& first, const AesSchedule& second) {
  const __m128i a = _mm_load_si128(round_keys(first) + kAesRounds);
  const __m128i b = _mm_load_si128(round_keys(second) + kAesRounds);
  LK_CHECK_MSG(!_mm_testz_si128(a, a) && !_mm_testz_si128(b, b),
               "a key that this kernel did not expand");
}

void expand(Bytes raw, XtsKey& key) {
  aes256_expand_pair(raw.data(), raw.data() + kAesKeyBytes, key.encrypt, key.tweak);
  aes256_invert(key.encrypt, key.decrypt);
  wipe(key.raw);
}

void expand_name(Bytes raw, NameKey& key) {
  aes256_expand(raw.data(), key.encrypt);
  aes256_invert(key.encrypt, key.decrypt);
  wipe(key.raw);
}

void cbc_encrypt(const NameKey& key, MutableBytes blocks) {
  check_expanded(key.encrypt, key.decrypt);
  const __m128i* keys = round_keys(key.encrypt);
  __m128i chain = _mm_setzero_si128();
  for (std::size_t offset = 0; offset < blocks.size(); offset += kBlockBytes) {
    std::byte* at = blocks.data() + offset;
    chain = aes256_encrypt_block(keys, _mm_xor_si128(chain, load_block(at)));
    store_block(at, chain);
  }
}

void cbc_decrypt(const NameKey& key, MutableBytes blocks) {
  check_expanded(key.encrypt, key.decrypt);
  const __m128i* keys = round_keys(key.decrypt);
  __m128i chain = _mm_setzero_si128();
  for (std::size_t offset = 0; offset < blocks.size(); offset += kBlockBytes) {
    std::byte* at = blocks.data() + offset;
    const __m128i sealed = load_block(at);
    store_block(at, _mm_xor_si128(aes256_decrypt_block(keys, sealed), chain));
    chain = sealed;
  }
}

}  // namespace aesni

const Kernel kAesniKernel{
    "aesni",          cpu_has_aesni,      aesni::expand,      crypt_run<true>,
    crypt_run<false>, aesni::expand_name, aesni::cbc_encrypt, aesni::cbc_decrypt};

#else

const Kernel kAesniKernel{"aesni", cpu_has_aesni, nullptr, nullptr,
                          nullptr, nullptr,       nullptr, nullptr};

#endif

}  // namespace latchkey::crypto
