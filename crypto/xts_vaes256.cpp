// AES-256-XTS on VAES with 256-bit registers: two blocks in each.

#include <algorithm>

#include "base/check.h"
#include "crypto/kernel.h"
#include "crypto/xts_aesni.h"

namespace latchkey::crypto {

#if LK_HAVE_AESNI

#define LK_VAES_TARGET "vaes,vpclmulqdq,avx2,aes,pclmul,sse4.1"
#define LK_WIDE __attribute__((target(LK_VAES_TARGET)))
#define LK_WIDE_INLINE __attribute__((target(LK_VAES_TARGET), always_inline)) inline

namespace {

using Wide = __m256i;
constexpr std::size_t kLanes = 2;

bool usable() {
  static const bool has = cpu_has_aesni() && __builtin_cpu_supports("vaes") &&
                          __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx2");
  return has;
}

LK_WIDE_INLINE Wide load(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const Wide*>(from));
}
LK_WIDE_INLINE void store(std::byte* to, Wide blocks) {
  _mm256_storeu_si256(reinterpret_cast<Wide*>(to), blocks);
}

LK_WIDE_INLINE void stream(std::byte* to, Wide blocks) {
  _mm256_stream_si256(reinterpret_cast<Wide*>(to), blocks);
}

LK_WIDE_INLINE Wide load_some(const std::byte* from, std::size_t blocks) {
  if (blocks == kLanes) return load(from);
  return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
LK_WIDE_INLINE void store_some(std::byte* to, Wide value, std::size_t blocks) {
  if (blocks == kLanes) return store(to, value);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(value));
}

LK_WIDE_INLINE Wide spread(const __m128i* block) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(block));
}
LK_WIDE_INLINE Wide add(Wide a, Wide b) { return _mm256_xor_si256(a, b); }
LK_WIDE_INLINE Wide add3(Wide a, Wide b, Wide c) { return add(a, add(b, c)); }
LK_WIDE_INLINE Wide polynomial() { return _mm256_set1_epi64x(0x87); }

template <int kBytes>
LK_WIDE_INLINE Wide shifted_bytes(Wide value) {
  return _mm256_bslli_epi128(value, kBytes);
}
template <int kBytes>
LK_WIDE_INLINE Wide fold_bytes(Wide value) {
  return _mm256_clmulepi64_epi128(_mm256_bsrli_epi128(value, 16 - kBytes), polynomial(), 0x00);
}

// Lane i times x^(kFirst + i).
template <std::size_t kFirst>
LK_WIDE_INLINE Wide shifted_bits(Wide value) {
  constexpr long long n = kFirst;
  const Wide left = _mm256_set_epi64x(n + 1, n + 1, n, n);
  const Wide right = _mm256_sub_epi64(_mm256_set1_epi64x(64), left);
  const Wide carries = _mm256_srlv_epi64(value, right);  // a count of 64 gives 0
  return add3(_mm256_sllv_epi64(value, left), _mm256_bslli_epi128(carries, 8),
              _mm256_clmulepi64_epi128(carries, polynomial(), 0x01));
}

template <bool kSeal>
LK_WIDE_INLINE Wide round(Wide block, Wide key) {
  if constexpr (kSeal) return _mm256_aesenc_epi128(block, key);
  return _mm256_aesdec_epi128(block, key);
}
template <bool kSeal>
LK_WIDE_INLINE Wide last_round(Wide block, Wide key) {
  if constexpr (kSeal) return _mm256_aesenclast_epi128(block, key);
  return _mm256_aesdeclast_epi128(block, key);
}

}  // namespace

#include "crypto/xts_vaes.inc"

const Kernel kVaes256Kernel{"vaes256",          usable,
                            aesni::expand,      crypt_run<true>,
                            crypt_run<false>,   aesni::expand_name,
                            aesni::cbc_encrypt, aesni::cbc_decrypt};

#else

const Kernel kVaes256Kernel{"vaes256", cpu_has_aesni, nullptr, nullptr,
                            nullptr,   nullptr,       nullptr, nullptr};

#endif

}  // namespace latchkey::crypto
