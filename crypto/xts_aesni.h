#pragma once
// What every kernel on AES instructions shares with the AES-NI row: the key layout, and all that
// works on one block after the other and gains nothing from wider registers. Internal to crypto/.

#include "crypto/aes.h"
#include "crypto/names.h"
#include "crypto/xts.h"

namespace latchkey::crypto::aesni {

#if LK_HAVE_AESNI

// Stops the process unless both schedules were expanded: one that was not is zero, and the last
// round key of a real one is not. That it was is all that is ever told of a key: no kernel looks at
// key bytes itself, and the tests of constant time know this exception by the function's name, so
// it is never inlined.
LK_AESNI void check_expanded(const AesSchedule& first, const AesSchedule& second);

LK_AESNI void expand(Bytes raw, XtsKey& key);
LK_AESNI void expand_name(Bytes raw, NameKey& key);
LK_AESNI void cbc_encrypt(const NameKey& key, MutableBytes blocks);
LK_AESNI void cbc_decrypt(const NameKey& key, MutableBytes blocks);

#endif

}  // namespace latchkey::crypto::aesni
