#pragma once
// What every kernel on AES instructions shares with the AES-NI row: the key layout, and all that
// works on one block after the other and gains nothing from wider registers. Internal to crypto/.

#include "crypto/aes.h"
#include "crypto/names.h"
#include "crypto/xts.h"

namespace latchkey::crypto::aesni {

#if LK_HAVE_AESNI

// A schedule that was never expanded is zero; the last round key of a real one is not.
LK_AESNI_INLINE bool filled(const AesSchedule& schedule) {
  const __m128i last = _mm_load_si128(round_keys(schedule) + kAesRounds);
  return !_mm_testz_si128(last, last);
}

LK_AESNI void expand(Bytes raw, XtsKey& key);
LK_AESNI void expand_name(Bytes raw, NameKey& key);
LK_AESNI void cbc_encrypt(const NameKey& key, MutableBytes blocks);
LK_AESNI void cbc_decrypt(const NameKey& key, MutableBytes blocks);

#endif

}  // namespace latchkey::crypto::aesni
