#include "crypto/cts.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "crypto/aes.h"
#include "crypto/kernel.h"

namespace latchkey::crypto {
namespace {

// The text in whole blocks: `blocks` of them, `tail` bytes (1 to 16) of the last one in use.
struct Layout {
  explicit Layout(std::size_t size)
      : blocks((size + kBlockBytes - 1) / kBlockBytes), tail(size - (blocks - 1) * kBlockBytes) {
    LK_CHECK(size >= kCtsBytesMin && size <= kCtsBytesMax);
  }
  std::size_t bytes() const { return blocks * kBlockBytes; }
  std::size_t last() const { return bytes() - kBlockBytes; }
  std::size_t last_but_one() const { return bytes() - 2 * kBlockBytes; }

  std::size_t blocks;
  std::size_t tail;
};

// Only as much of it as the text needs is touched: names are short.
using Buffer = std::array<std::byte, kCtsBytesMax>;

MutableBytes in_blocks(Buffer& buffer, const Layout& layout, Bytes text) {
  std::memcpy(buffer.data(), text.data(), text.size());
  std::memset(buffer.data() + text.size(), 0, layout.bytes() - text.size());
  return MutableBytes(buffer).first(layout.bytes());
}

}  // namespace

void cts_encrypt(const NameKey& key, MutableBytes text) {
  const Layout layout(text.size());
  Buffer buffer;
  kernel().cbc_encrypt(key, in_blocks(buffer, layout, text));
  if (layout.blocks > 1) {
    // Of the last block but one only the tail is sent: the rest comes back from the last.
    std::swap_ranges(buffer.data() + layout.last(), buffer.data() + layout.bytes(),
                     buffer.data() + layout.last_but_one());
  }
  std::memcpy(text.data(), buffer.data(), text.size());
}

void cts_decrypt(const NameKey& key, MutableBytes text) {
  const Layout layout(text.size());
  Buffer buffer;
  const MutableBytes blocks = in_blocks(buffer, layout, text);
  if (layout.blocks > 1) {
    std::byte* sent_last = buffer.data() + layout.last_but_one();
    std::byte* sent_tail = buffer.data() + layout.last();
    // The last block's plaintext was padded with zeros, so behind the tail its decryption is the
    // missing rest of the block before it.
    std::array<std::byte, kBlockBytes> rest;
    std::memcpy(rest.data(), sent_last, kBlockBytes);
    kernel().cbc_decrypt(key, rest);
    std::memcpy(sent_tail + layout.tail, rest.data() + layout.tail, kBlockBytes - layout.tail);
    std::swap_ranges(sent_tail, sent_tail + kBlockBytes, sent_last);
    wipe(rest);
  }
  kernel().cbc_decrypt(key, blocks);
  std::memcpy(text.data(), buffer.data(), text.size());
  wipe(blocks);
}

}  // namespace latchkey::crypto
