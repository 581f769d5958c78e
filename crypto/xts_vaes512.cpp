// AES-256-XTS on VAES with 512-bit registers: four blocks in each.

#if defined(__GNUC__) && !defined(__clang__)
// g++-12's own _mm512_undefined() is a variable that is read uninitialized.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <algorithm>

#include "base/check.h"
#include "crypto/kernel.h"
#include "crypto/xts_aesni.h"

namespace latchkey::crypto {

#if LK_HAVE_AESNI

#define LK_VAES_TARGET "vaes,vpclmulqdq,avx512f,avx512bw,avx512vl,avx512dq,aes,pclmul,sse4.1"
#define LK_WIDE __attribute__((target(LK_VAES_TARGET)))
#define LK_WIDE_INLINE __attribute__((target(LK_VAES_TARGET), always_inline)) inline

namespace {

using Wide = __m512i;
constexpr std::size_t kLanes = 4;

bool usable() {
  static const bool has = cpu_has_aesni() && __builtin_cpu_supports("vaes") &&
                          __builtin_cpu_supports("vpclmulqdq") &&
                          __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
}

LK_WIDE_INLINE Wide load(const std::byte* from) { return _mm512_loadu_si512(from); }
LK_WIDE_INLINE void store(std::byte* to, Wide blocks) { _mm512_storeu_si512(to, blocks); }

LK_WIDE_INLINE void stream(std::byte* to, Wide blocks) {
  _mm512_stream_si512(reinterpret_cast<Wide*>(to), blocks);
}

LK_WIDE_INLINE __mmask8 mask_of(std::size_t blocks) {
  return static_cast<__mmask8>((1U << (2 * blocks)) - 1);
}
LK_WIDE_INLINE Wide load_some(const std::byte* from, std::size_t blocks) {
  return _mm512_maskz_loadu_epi64(mask_of(blocks), from);
}
LK_WIDE_INLINE void store_some(std::byte* to, Wide value, std::size_t blocks) {
  _mm512_mask_storeu_epi64(to, mask_of(blocks), value);
}

LK_WIDE_INLINE Wide spread(const __m128i* block) {
  return _mm512_broadcast_i32x4(_mm_load_si128(block));
}
LK_WIDE_INLINE Wide add(Wide a, Wide b) { return _mm512_xor_si512(a, b); }
LK_WIDE_INLINE Wide add3(Wide a, Wide b, Wide c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
LK_WIDE_INLINE Wide polynomial() { return _mm512_set1_epi64(0x87); }

template <int kBytes>
LK_WIDE_INLINE Wide shifted_bytes(Wide value) {
  return _mm512_bslli_epi128(value, kBytes);
}
template <int kBytes>
LK_WIDE_INLINE Wide fold_bytes(Wide value) {
  return _mm512_clmulepi64_epi128(_mm512_bsrli_epi128(value, 16 - kBytes), polynomial(), 0x00);
}

// Lane i times x^(kFirst + i), by multiplication: bit shifts would run on the port of the AES.
template <std::size_t kFirst>
LK_WIDE_INLINE Wide shifted_bits(Wide value) {
  constexpr long long n = 1LL << kFirst;
  const Wide factor = _mm512_set_epi64(0, 8 * n, 0, 4 * n, 0, 2 * n, 0, n);
  const Wide low = _mm512_clmulepi64_epi128(value, factor, 0x00);
  const Wide high = _mm512_clmulepi64_epi128(value, factor, 0x01);
  return add3(low, _mm512_bslli_epi128(high, 8),
              _mm512_clmulepi64_epi128(high, polynomial(), 0x01));
}

template <bool kSeal>
LK_WIDE_INLINE Wide round(Wide block, Wide key) {
  if constexpr (kSeal) return _mm512_aesenc_epi128(block, key);
  return _mm512_aesdec_epi128(block, key);
}
template <bool kSeal>
LK_WIDE_INLINE Wide last_round(Wide block, Wide key) {
  if constexpr (kSeal) return _mm512_aesenclast_epi128(block, key);
  return _mm512_aesdeclast_epi128(block, key);
}

}  // namespace

#include "crypto/xts_vaes.inc"

const Kernel kVaes512Kernel{"vaes512",          usable,
                            aesni::expand,      crypt_run<true>,
                            crypt_run<false>,   aesni::expand_name,
                            aesni::cbc_encrypt, aesni::cbc_decrypt};

#else

const Kernel kVaes512Kernel{"vaes512", cpu_has_aesni, nullptr, nullptr,
                            nullptr,   nullptr,       nullptr, nullptr};

#endif

}  // namespace latchkey::crypto
