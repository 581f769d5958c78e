// AES-256-XTS and CBC made of OpenSSL's AES-256-ECB: native's kernel for CPUs without AES-NI.
//
// Not OpenSSL's own XTS and CBC: without AES-NI those expand keys and encrypt tweaks with look-ups
// by secret bytes (bsaes, which is bitsliced for the data alone), while ECB is vpaes, in constant
// time throughout. vpaes needs SSSE3; on a CPU without it OpenSSL has nothing but tables. On a CPU
// with AES-NI OpenSSL uses that here, too: this kernel runs everywhere.

#include <algorithm>

#include "base/disk.h"
#include "crypto/aes.h"
#include "crypto/evp.h"
#include "crypto/kernel.h"

namespace latchkey::crypto {
namespace {

const EVP_CIPHER* cipher() {
  static const EVP_CIPHER* const ecb = evp::fetched("AES-256-ECB");
  return ecb;
}

struct Block {
  u64 low = 0;
  u64 high = 0;
};
static_assert(sizeof(Block) == kBlockBytes);

// tweak * x (IEEE 1619, 5.2), without a branch on the bit that falls out.
Block times_x(Block tweak) {
  const u64 fallen = tweak.high >> 63;
  return {(tweak.low << 1) ^ (0x87 & (0 - fallen)), (tweak.high << 1) | (tweak.low >> 63)};
}

// to = from ^ with; from may be to.
void add_blocks(const std::byte* from, std::span<const Block> with, std::byte* to) {
  for (const Block& block : with) {
    Block sum;
    std::memcpy(&sum, from, kBlockBytes);
    sum.low ^= block.low;
    sum.high ^= block.high;
    std::memcpy(to, &sum, kBlockBytes);
    from += kBlockBytes;
    to += kBlockBytes;
  }
}

constexpr std::size_t kAbreast = 32;  // blocks for one call of EVP

void crypt_unit(EVP_CIPHER_CTX* context, Block tweak, const std::byte* input, std::byte* output,
                std::size_t blocks) {
  std::array<Block, kAbreast> tweaks;
  while (blocks != 0) {
    const std::size_t count = std::min(blocks, kAbreast);
    for (std::size_t i = 0; i < count; ++i) {
      tweaks[i] = tweak;
      tweak = times_x(tweak);
    }
    const auto with = std::span<const Block>(tweaks).first(count);
    const MutableBytes here(output, count * kBlockBytes);
    add_blocks(input, with, output);
    evp::update(context, here, here);
    add_blocks(output, with, output);
    input += here.size();
    output += here.size();
    blocks -= count;
  }
  wipe(tweaks.data(), sizeof tweaks);
}

template <bool kSeal>
void crypt_run(const XtsKey& key, XtsRun run, const UnitSource& source, std::byte* output) {
  raw_key::check_expanded(key.raw);
  const evp::Context context = evp::keyed(cipher(), Bytes(key.raw).first(kAesKeyBytes), kSeal);
  const evp::Context tweak_context = evp::keyed(cipher(), Bytes(key.raw).last(kAesKeyBytes), true);
  for (std::size_t unit = 0; unit < source.units; ++unit) {
    Block tweak{run.first_unit + unit, 0};
    const MutableBytes bytes = std::as_writable_bytes(std::span(&tweak, 1));
    evp::update(tweak_context.get(), bytes, bytes);
    crypt_unit(context.get(), tweak, source.at(unit), output + unit * run.unit_bytes,
               run.unit_bytes / kBlockBytes);
    wipe(bytes);
  }
}

Block block_at(Bytes blocks, std::size_t offset) {
  Block block;
  std::memcpy(&block, blocks.data() + offset, kBlockBytes);
  return block;
}

void cbc_encrypt(const NameKey& key, MutableBytes blocks) {
  raw_key::check_expanded(key.raw);
  const evp::Context context = evp::keyed(cipher(), key.raw, true);
  Block chain;
  for (std::size_t offset = 0; offset < blocks.size(); offset += kBlockBytes) {
    const MutableBytes here = blocks.subspan(offset, kBlockBytes);
    add_blocks(here.data(), std::span(&chain, 1), here.data());
    evp::update(context.get(), here, here);
    chain = block_at(blocks, offset);
  }
}

void cbc_decrypt(const NameKey& key, MutableBytes blocks) {
  raw_key::check_expanded(key.raw);
  const evp::Context context = evp::keyed(cipher(), key.raw, false);
  Block chain;
  for (std::size_t offset = 0; offset < blocks.size(); offset += kBlockBytes) {
    const MutableBytes here = blocks.subspan(offset, kBlockBytes);
    const Block sealed = block_at(blocks, offset);
    evp::update(context.get(), here, here);
    add_blocks(here.data(), std::span(&chain, 1), here.data());
    chain = sealed;
  }
}

bool usable() { return true; }

}  // namespace

const Kernel kPortableKernel{"portable",      usable,           raw_key::expand,
                             crypt_run<true>, crypt_run<false>, raw_key::expand_name,
                             cbc_encrypt,     cbc_decrypt};

}  // namespace latchkey::crypto
