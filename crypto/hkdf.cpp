// HMAC-SHA512 from precomputed states: two compressions for a derived key, and no byte of it
// outside the arena but registers and dead stack. OpenSSL's EVP_KDF and EVP_MAC keep keys in heap
// contexts of their own and take four to seven times as long; its low-level compression works where
// we tell it.

#define OPENSSL_SUPPRESS_DEPRECATED  // SHA512_Transform: deprecated, but the only one without a
                                     // heap

#include "crypto/hkdf.h"

#include <openssl/sha.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/secret_work.h"
#include "base/wait.h"
#include "crypto/aes.h"
#include "crypto/hkdf_lanes.h"
#include "crypto/kernel.h"

namespace latchkey::crypto {
namespace {

constexpr std::size_t kShaBlockBytes = 128;
constexpr std::size_t kDigestBytes = 64;
constexpr std::byte kInnerPad{0x36};
constexpr std::byte kOuterPad{0x5c};

struct alignas(64) Scratch {
  SHA512_CTX sha;  // only its chaining value, h, is used
  std::array<std::byte, kShaBlockBytes> block;
  std::array<std::byte, kDigestBytes> digest;
};

// The pool of scratches: one allocation in the arena, made by the first caller and never given
// back, so that a later derivation cannot fail for lack of memory. A set bit of `taken` is a slot
// in use; a slot is zero while it is not. Lock free but for the 33rd concurrent caller, who waits
// for a slot.
constexpr u32 kSlots = 32;
constexpr u32 kAllTaken = ~u32{0};
std::atomic<SecretBytes*> pool{nullptr};
std::atomic<u32> taken{0};

Result<Scratch*> first_slot() {
  SecretBytes* slots = pool.load(std::memory_order_acquire);
  if (slots == nullptr) {
    LK_TRY(SecretBytes fresh, SecretBytes::create(kSlots * sizeof(Scratch)));
    auto mine = std::make_unique<SecretBytes>(std::move(fresh));
    // Pairs with the acquire above: who sees the pointer sees zeroed slots. The loser of the race
    // gives its memory back and takes the winner's.
    if (pool.compare_exchange_strong(slots, mine.get(), std::memory_order_acq_rel))
      slots = mine.release();
  }
  return reinterpret_cast<Scratch*>(slots->bytes().data());
}

class ScratchLease {
 public:
  ScratchLease() {
    Result<Scratch*> slots = first_slot();
    LK_CHECK_MSG(slots.has_value(), "no locked memory for key derivation");
    index_ = take();
    scratch_ = *slots + index_;
  }
  ~ScratchLease() {
    wipe(scratch_, sizeof *scratch_);
    // Pairs with the acquire in take(): the next owner finds the slot wiped.
    if (taken.fetch_and(~(u32{1} << index_), std::memory_order_release) == kAllTaken)
      wake_one(taken);
  }
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;

  Scratch* operator->() { return scratch_; }
  Scratch& operator*() { return *scratch_; }

 private:
  static u32 take() {
    u32 seen = taken.load(std::memory_order_relaxed);
    for (;;) {
      if (seen == kAllTaken) {
        wait_on(taken, kAllTaken);
        seen = taken.load(std::memory_order_relaxed);
        continue;
      }
      const auto index = static_cast<u32>(std::countr_one(seen));
      if (taken.compare_exchange_weak(seen, seen | u32{1} << index, std::memory_order_acquire,
                                      std::memory_order_relaxed))
        return index;
    }
  }

  u32 index_ = 0;
  Scratch* scratch_ = nullptr;
};

void compress(Scratch& scratch) {
  SHA512_Transform(&scratch.sha, reinterpret_cast<const unsigned char*>(scratch.block.data()));
}

void start_from(Scratch& scratch, const std::array<u64, 8>& state) {
  static_assert(sizeof scratch.sha.h == sizeof state);
  std::memcpy(scratch.sha.h, state.data(), sizeof state);
}

// SHA-512's padding behind the `filled` bytes of the last block of a message that began with one
// block of HMAC pad. It fits: filled <= 111.
void finish_block(Scratch& scratch, std::size_t filled) {
  std::byte* block = scratch.block.data();
  block[filled] = std::byte{0x80};
  std::memset(block + filled + 1, 0, kShaBlockBytes - filled - 1);
  const std::size_t bits = 8 * (kShaBlockBytes + filled);
  block[kShaBlockBytes - 2] = static_cast<std::byte>(bits >> 8);
  block[kShaBlockBytes - 1] = static_cast<std::byte>(bits);
}

void store_digest(Scratch& scratch) {
  for (std::size_t word = 0; word < 8; ++word)
    for (std::size_t i = 0; i < 8; ++i)
      scratch.digest[8 * word + i] = static_cast<std::byte>(scratch.sha.h[word] >> (56 - 8 * i));
}

// The state after one block of `key` (at most 128 bytes, zero padded) xor `pad`.
void absorb_pad(Scratch& scratch, Bytes key, std::byte pad, std::array<u64, 8>& state) {
  SHA512_Init(&scratch.sha);
  scratch.block.fill(pad);
  for (std::size_t i = 0; i < key.size(); ++i) scratch.block[i] ^= key[i];
  compress(scratch);
  std::memcpy(state.data(), scratch.sha.h, sizeof state);
}

// scratch.digest = HMAC of the first `message_bytes` bytes of scratch.block, at most 111.
void hmac(Scratch& scratch, const HkdfState& state, std::size_t message_bytes) {
  start_from(scratch, state.inner);
  finish_block(scratch, message_bytes);
  compress(scratch);
  store_digest(scratch);
  std::memcpy(scratch.block.data(), scratch.digest.data(), kDigestBytes);
  start_from(scratch, state.outer);
  finish_block(scratch, kDigestBytes);
  compress(scratch);
  store_digest(scratch);
}

constexpr char kLabel[] = "fscrypt";  // with its terminating NUL: 8 bytes
static_assert(sizeof kLabel == 8);

// scratch.digest = the first block of expand for label || context || info.
void expand_context(Scratch& scratch, const HkdfState& state, Context context, Bytes info) {
  LK_CHECK(info.size() <= kInfoBytesMax - sizeof kLabel - 1);
  std::byte* at = scratch.block.data();
  std::memcpy(at, kLabel, sizeof kLabel);
  at += sizeof kLabel;
  *at++ = static_cast<std::byte>(context);
  if (!info.empty()) std::memcpy(at, info.data(), info.size());
  at += info.size();
  *at++ = std::byte{1};  // RFC 5869's block counter
  hmac(scratch, state, static_cast<std::size_t>(at - scratch.block.data()));
}

}  // namespace

Result<void> hkdf_prepare() {
  LK_TRY([[maybe_unused]] Scratch * slots, first_slot());
  return {};
}

void hkdf_extract(Bytes master, HkdfState& state) {
  LK_CHECK(master.size() >= kShortKeyBytesMin && master.size() <= kMasterKeyBytesMax);
  const SecretWork work;
  ScratchLease scratch;
  // The salt is 64 zero bytes: HMAC pads it with zeros to a block.
  absorb_pad(*scratch, {}, kInnerPad, state.inner);
  absorb_pad(*scratch, {}, kOuterPad, state.outer);
  std::memcpy(scratch->block.data(), master.data(), master.size());
  hmac(*scratch, state, master.size());
  absorb_pad(*scratch, scratch->digest, kInnerPad, state.inner);
  absorb_pad(*scratch, scratch->digest, kOuterPad, state.outer);
}

void hkdf_expand_info(const HkdfState& state, Bytes info, MutableBytes output) {
  LK_CHECK(info.size() <= kInfoBytesMax && output.size() <= kDigestBytes);
  const SecretWork work;
  ScratchLease scratch;
  if (!info.empty()) std::memcpy(scratch->block.data(), info.data(), info.size());
  scratch->block[info.size()] = std::byte{1};
  hmac(*scratch, state, info.size() + 1);
  std::memcpy(output.data(), scratch->digest.data(), output.size());
}

void hkdf_expand(const HkdfState& state, Context context, Bytes info, MutableBytes output) {
  LK_CHECK(output.size() <= kDigestBytes);
  const SecretWork work;
  ScratchLease scratch;
  expand_context(*scratch, state, context, info);
  std::memcpy(output.data(), scratch->digest.data(), output.size());
}

KeyId key_identifier(const HkdfState& state) {
  KeyId id;
  hkdf_expand(state, Context::key_identifier, {}, id.bytes);
  return id;
}

void derive_extent_key(const HkdfState& state, const Nonce& nonce, XtsKey& key) {
  ScratchLease scratch;
  expand_context(*scratch, state, Context::per_extent, nonce.bytes);
  xts_expand(scratch->digest, key);
}

void derive_extent_keys(const HkdfState& state, std::span<const Nonce> nonces,
                        std::span<XtsKey> keys) {
  LK_CHECK(nonces.size() == keys.size());
  // Eight lanes take as long as two keys one by one; idle lanes derive the last key again.
  constexpr std::size_t kWorthwhile = 3;
  while (nonces.size() >= kWorthwhile && hkdf_lanes_usable()) {
    const std::size_t count = std::min(kHkdfLanes, nonces.size());
    std::array<const Nonce*, kHkdfLanes> lane_nonces;
    std::array<XtsKey*, kHkdfLanes> lane_keys;
    for (std::size_t i = 0; i < kHkdfLanes; ++i) {
      lane_nonces[i] = &nonces[std::min(i, count - 1)];
      lane_keys[i] = &keys[std::min(i, count - 1)];
    }
    derive_lanes(state, lane_nonces, lane_keys);
    for (XtsKey& key : keys.first(count)) xts_expand(key.raw, key);
    nonces = nonces.subspan(count);
    keys = keys.subspan(count);
  }
  for (std::size_t i = 0; i < nonces.size(); ++i) derive_extent_key(state, nonces[i], keys[i]);
}

void derive_name_key(const HkdfState& state, const Nonce& directory_nonce, NameKey& key) {
  const SecretWork work;
  ScratchLease scratch;
  expand_context(*scratch, state, Context::per_file, directory_nonce.bytes);
  kernel().expand_name(Bytes(scratch->digest).first(kAesKeyBytes), key);
}

}  // namespace latchkey::crypto
