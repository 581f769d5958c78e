#include "crypto/names.h"

#include <openssl/sha.h>

#include <algorithm>

#include "base/check.h"
#include "base/secret_work.h"
#include "crypto/cts.h"

namespace latchkey::crypto {
namespace {

constexpr std::size_t kPadding = 32;

// A no-key name before base64: dirhash, then the stored name, or its front and a digest of the
// rest.
constexpr std::size_t kDirhashBytes = 8;
constexpr std::size_t kFrontBytesMax = 149;
constexpr std::size_t kRawBytesMax = kDirhashBytes + kFrontBytesMax + SHA256_DIGEST_LENGTH;
static_assert(kRawBytesMax == 189 && kNoKeyNameBytesMax == 189 / 3 * 4);

MutableBytes bytes_of(std::string& text) { return std::as_writable_bytes(std::span<char>(text)); }

constexpr std::string_view kDigits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

std::string base64url(std::string_view raw) {
  std::string text;
  text.reserve(kNoKeyNameBytesMax);
  u32 bits = 0;
  u32 bit_count = 0;
  for (const char byte : raw) {
    bits = bits << 8 | static_cast<u8>(byte);
    bit_count += 8;
    while (bit_count >= 6) {
      bit_count -= 6;
      text.push_back(kDigits[bits >> bit_count & 63]);
    }
  }
  if (bit_count != 0) text.push_back(kDigits[bits << (6 - bit_count) & 63]);
  return text;
}

// The length of what `text` encodes; nothing where no encoder writes such a text (a foreign digit,
// a digit too many, bits left over that are not zero).
std::optional<std::size_t> decoded_bytes(std::string_view text) {
  if (text.empty() || text.size() % 4 == 1) return std::nullopt;
  std::size_t last_digit = 0;
  for (const char digit : text) {
    last_digit = kDigits.find(digit);
    if (last_digit == std::string_view::npos) return std::nullopt;
  }
  const std::size_t bits = 6 * text.size();
  const std::size_t left_over = bits % 8;
  if ((last_digit & ((std::size_t{1} << left_over) - 1)) != 0) return std::nullopt;
  return bits / 8;
}

std::string encrypt(const NameKey& key, std::string_view plain, std::size_t stored_bytes_max) {
  LK_CHECK(!plain.empty() && plain.size() <= stored_bytes_max);
  const std::size_t padded = (plain.size() + kPadding - 1) / kPadding * kPadding;
  // In its full length from the start: what a string outgrows is freed with the plaintext in it.
  std::string stored(std::min(padded, stored_bytes_max), '\0');
  plain.copy(stored.data(), plain.size());
  const SecretWork work;
  cts_encrypt(key, bytes_of(stored));
  return stored;
}

// Inside of the caller's secret work.
std::string decrypt(const NameKey& key, std::string_view stored) {
  std::string plain(stored);
  cts_decrypt(key, bytes_of(plain));
  plain.resize(std::min(plain.find('\0'), plain.size()));
  return plain;
}

}  // namespace

std::string encrypt_name(const NameKey& key, std::string_view name) {
  return encrypt(key, name, kNameBytesMax);
}

Result<std::string> decrypt_name(const NameKey& key, std::string_view stored) {
  if (stored.size() < kCtsBytesMin || stored.size() > kNameBytesMax)
    return fail(Errc::malformed, "an encrypted name of impossible length");
  const SecretWork work;
  std::string name = decrypt(key, stored);
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
    return fail(Errc::malformed, "an encrypted name that decrypts to no name");
  return name;
}

std::string encrypt_target(const NameKey& key, std::string_view target) {
  return encrypt(key, target, kTargetBytesMax);
}

Result<std::string> decrypt_target(const NameKey& key, std::string_view stored) {
  if (stored.size() < kCtsBytesMin || stored.size() > kTargetBytesMax)
    return fail(Errc::malformed, "an encrypted target of impossible length");
  const SecretWork work;
  std::string target = decrypt(key, stored);
  if (target.empty()) return fail(Errc::malformed, "an encrypted target that decrypts to nothing");
  return target;
}

std::string no_key_name(std::string_view stored) {
  std::string raw(kDirhashBytes, '\0');
  raw.append(stored.substr(0, kFrontBytesMax));
  if (stored.size() > kFrontBytesMax) {
    const std::string_view rest = stored.substr(kFrontBytesMax);
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256(reinterpret_cast<const unsigned char*>(rest.data()), rest.size(), digest);
    raw.append(reinterpret_cast<const char*>(digest), sizeof digest);
  }
  return base64url(raw);
}

bool matches_no_key_name(std::string_view text, std::string_view stored) {
  return text == no_key_name(stored);
}

bool could_be_no_key_name(std::string_view text) {
  if (text.size() > kNoKeyNameBytesMax) return false;
  const std::optional<std::size_t> raw = decoded_bytes(text);
  if (!raw || *raw <= kDirhashBytes) return false;
  return *raw <= kDirhashBytes + kFrontBytesMax || *raw == kRawBytesMax;
}

std::optional<std::string> stored_in_no_key_name(std::string_view text) {
  const std::optional<std::size_t> size = decoded_bytes(text);
  if (!size || *size <= kDirhashBytes || *size > kDirhashBytes + kFrontBytesMax)
    return std::nullopt;
  std::string raw;
  u32 bits = 0;
  u32 bit_count = 0;
  for (const char digit : text) {
    bits = bits << 6 | static_cast<u32>(kDigits.find(digit));
    bit_count += 6;
    if (bit_count < 8) continue;
    bit_count -= 8;
    raw.push_back(static_cast<char>(bits >> bit_count & 255));
  }
  if (raw.find_first_not_of('\0') < kDirhashBytes) return std::nullopt;
  return raw.substr(kDirhashBytes);
}

}  // namespace latchkey::crypto
