#if defined(__GNUC__) && !defined(__clang__)
// g++-12's own _mm512_undefined() is a variable that is read uninitialized.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "crypto/hkdf_lanes.h"

#include "base/check.h"
#include "base/disk.h"
#include "crypto/aes.h"
#include "crypto/sha512_constants.h"

namespace latchkey::crypto {

#if LK_HAVE_AESNI

#define LK_LANES __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define LK_LANES_INLINE \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"), always_inline)) inline

namespace {

using Lanes = __m512i;  // one 64-bit word of each of eight computations
constexpr std::size_t kWords = 8, kBlockWords = 16, kRounds = 80;

// Three-input truth tables of VPTERNLOGQ.
constexpr int kXor3 = 0x96, kChoose = 0xca, kMajority = 0xe8;

LK_LANES_INLINE Lanes every(u64 word) { return _mm512_set1_epi64(static_cast<long long>(word)); }
LK_LANES_INLINE Lanes sum(Lanes a, Lanes b) { return _mm512_add_epi64(a, b); }

template <int kA, int kB, int kC>
LK_LANES_INLINE Lanes big_sigma(Lanes x) {
  return _mm512_ternarylogic_epi64(_mm512_ror_epi64(x, kA), _mm512_ror_epi64(x, kB),
                                   _mm512_ror_epi64(x, kC), kXor3);
}
template <int kA, int kB, int kShift>
LK_LANES_INLINE Lanes small_sigma(Lanes x) {
  return _mm512_ternarylogic_epi64(_mm512_ror_epi64(x, kA), _mm512_ror_epi64(x, kB),
                                   _mm512_srli_epi64(x, kShift), kXor3);
}

// FIPS 180-4, 6.4.2, in each lane. `schedule` holds the block's words and is used up.
LK_LANES_INLINE void compress(Lanes (&state)[kWords], Lanes (&schedule)[kBlockWords]) {
  Lanes s[kWords];
  LK_UNROLL for (std::size_t i = 0; i < kWords; ++i) s[i] = state[i];
  for (std::size_t first = 0; first < kRounds; first += kBlockWords) {
    LK_UNROLL for (std::size_t i = 0; i < kBlockWords; ++i) {
      const Lanes word = schedule[i];
      const Lanes t1 = sum(
          sum(sum(s[7], big_sigma<14, 18, 41>(s[4])), sum(every(kSha512Rounds[first + i]), word)),
          _mm512_ternarylogic_epi64(s[4], s[5], s[6], kChoose));
      const Lanes t2 =
          sum(big_sigma<28, 34, 39>(s[0]), _mm512_ternarylogic_epi64(s[0], s[1], s[2], kMajority));
      s[7] = s[6];
      s[6] = s[5];
      s[5] = s[4];
      s[4] = sum(s[3], t1);
      s[3] = s[2];
      s[2] = s[1];
      s[1] = s[0];
      s[0] = sum(t1, t2);
      // The word of the round sixteen further on; those of the last sixteen are not used.
      schedule[i] = sum(sum(word, small_sigma<1, 8, 7>(schedule[(i + 1) % kBlockWords])),
                        sum(schedule[(i + 9) % kBlockWords],
                            small_sigma<19, 61, 6>(schedule[(i + 14) % kBlockWords])));
    }
  }
  LK_UNROLL for (std::size_t i = 0; i < kWords; ++i) state[i] = sum(state[i], s[i]);
}

LK_LANES_INLINE void start_from(const std::array<u64, kWords>& words, Lanes (&state)[kWords]) {
  LK_UNROLL for (std::size_t i = 0; i < kWords; ++i) state[i] = every(words[i]);
}

// Words [first, 16) of a last block whose message ended before them: zeros and the length in bits
// of it and the block of HMAC pad ahead of it.
LK_LANES_INLINE void pad(Lanes (&block)[kBlockWords], std::size_t first, u64 message_bytes) {
  for (std::size_t i = first; i < kBlockWords - 1; ++i) block[i] = _mm512_setzero_si512();
  block[kBlockWords - 1] = every(8 * (128 + message_bytes));
}

// "fscrypt\0", the context's number, the nonce, the counter 1, and the padding's first bit.
constexpr std::size_t kMessageBytes = 8 + 1 + 16 + 1;
constexpr std::size_t kMessageWords = 4;
using MessageWords = std::array<std::array<u64, kHkdfLanes>, kMessageWords>;  // by word, by lane

void lay_out(const Nonce& nonce, std::size_t lane, MessageWords& words) {
  std::array<std::byte, kMessageWords * 8> bytes{};
  std::memcpy(bytes.data(), "fscrypt", 8);
  bytes[8] = static_cast<std::byte>(Context::per_extent);
  std::memcpy(bytes.data() + 9, nonce.bytes.data(), nonce.bytes.size());
  bytes[25] = std::byte{1};
  bytes[26] = std::byte{0x80};
  for (std::size_t word = 0; word < kMessageWords; ++word) {
    u64 value;
    std::memcpy(&value, bytes.data() + 8 * word, 8);
    words[word][lane] = __builtin_bswap64(value);
  }
}

// Words by lane become lanes by word, in big-endian bytes: row i is lane i's digest.
LK_LANES_INLINE void transpose(Lanes (&rows)[kWords]) {
  const Lanes swap = _mm512_broadcast_i32x4(_mm_set_epi64x(0x08090a0b0c0d0e0f, 0x0001020304050607));
  Lanes pairs[kWords], quads[kWords];
  LK_UNROLL for (std::size_t i = 0; i < kWords; i += 2) {
    const Lanes a = _mm512_shuffle_epi8(rows[i], swap);
    const Lanes b = _mm512_shuffle_epi8(rows[i + 1], swap);
    pairs[i] = _mm512_unpacklo_epi64(a, b);
    pairs[i + 1] = _mm512_unpackhi_epi64(a, b);
  }
  // 128-bit pieces: piece p of pairs[i + parity] is words i, i + 1 of lane 2 p + parity.
  LK_UNROLL for (std::size_t parity = 0; parity < 2; ++parity) {
    quads[parity] = _mm512_shuffle_i64x2(pairs[parity], pairs[2 + parity], 0x88);
    quads[2 + parity] = _mm512_shuffle_i64x2(pairs[parity], pairs[2 + parity], 0xdd);
    quads[4 + parity] = _mm512_shuffle_i64x2(pairs[4 + parity], pairs[6 + parity], 0x88);
    quads[6 + parity] = _mm512_shuffle_i64x2(pairs[4 + parity], pairs[6 + parity], 0xdd);
  }
  LK_UNROLL for (std::size_t parity = 0; parity < 2; ++parity) {
    rows[parity] = _mm512_shuffle_i64x2(quads[parity], quads[4 + parity], 0x88);
    rows[4 + parity] = _mm512_shuffle_i64x2(quads[parity], quads[4 + parity], 0xdd);
    rows[2 + parity] = _mm512_shuffle_i64x2(quads[2 + parity], quads[6 + parity], 0x88);
    rows[6 + parity] = _mm512_shuffle_i64x2(quads[2 + parity], quads[6 + parity], 0xdd);
  }
}

}  // namespace

bool hkdf_lanes_usable() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
}

LK_LANES void derive_lanes(const HkdfState& state,
                           const std::array<const Nonce*, kHkdfLanes>& nonces,
                           const std::array<XtsKey*, kHkdfLanes>& keys) {
  alignas(64) MessageWords words;
  for (std::size_t lane = 0; lane < kHkdfLanes; ++lane) lay_out(*nonces[lane], lane, words);

  Lanes hash[kWords], block[kBlockWords];
  for (std::size_t i = 0; i < kMessageWords; ++i) block[i] = _mm512_load_si512(words[i].data());
  pad(block, kMessageWords, kMessageBytes);
  start_from(state.inner, hash);
  compress(hash, block);

  for (std::size_t i = 0; i < kWords; ++i) block[i] = hash[i];
  block[kWords] = every(u64{1} << 63);
  pad(block, kWords + 1, kWords * 8);
  start_from(state.outer, hash);
  compress(hash, block);

  transpose(hash);
  for (std::size_t lane = 0; lane < kHkdfLanes; ++lane)
    _mm512_storeu_si512(keys[lane]->raw.data(), hash[lane]);
}

#else

bool hkdf_lanes_usable() { return false; }
void derive_lanes(const HkdfState&, const std::array<const Nonce*, kHkdfLanes>&,
                  const std::array<XtsKey*, kHkdfLanes>&) {
  LK_CHECK_MSG(false, "there are no lanes in this build");
}

#endif

}  // namespace latchkey::crypto
