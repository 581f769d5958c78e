#pragma once
// Encrypted names and targets of symlinks: AES-256-CBC-CTS (CS3: the last two blocks always
// swapped; one block is plain CBC), zero IV, zero padding to a multiple of 32, as fscrypt with
// PAD_32. And the no-key form in which a locked directory is listed. Source: fs/crypto/fname.c.
// Thread-safe; what uses a key is a SecretWork.

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/secret.h"
#include "crypto/hkdf.h"

namespace latchkey::crypto {

inline constexpr std::size_t kNameBytesMax = 255;
inline constexpr std::size_t kNoKeyNameBytesMax = 252;

// Expanded schedules of a directory's name key; in the arena only.
struct alignas(64) NameKey {
  std::array<std::byte, 15 * 16> encrypt;
  std::array<std::byte, 15 * 16> decrypt;
  std::array<std::byte, 32> raw;  // used without schedules of ours only, else zero
};

void derive_name_key(const HkdfState& state, const Nonce& directory_nonce, NameKey& key);

// Stored bytes of a name of 1 to 255 bytes (never "." or ".."): 32 to 255 of them.
std::string encrypt_name(const NameKey& key, std::string_view name);
// Errc::malformed when `stored` is shorter than 16 or longer than 255 bytes, or decrypts to nothing
// or to something with a '/', or to "." or "..".
Result<std::string> decrypt_name(const NameKey& key, std::string_view stored);

// The target of a symlink, of 1 to 4093 bytes, under the key of the symlink itself: as a name is
// encrypted, but for the length. Source: fs/crypto/hooks.c, fscrypt_prepare_symlink() for blocks of
// 4096 bytes.
inline constexpr std::size_t kTargetBytesMax = 4093;
std::string encrypt_target(const NameKey& key, std::string_view target);
// Errc::malformed when `stored` has an impossible length or decrypts to nothing.
Result<std::string> decrypt_target(const NameKey& key, std::string_view stored);

// base64url of dirhash (two zero words) || stored, or of its first 149 bytes and SHA-256 of the
// rest.
std::string no_key_name(std::string_view stored);
// True when `text` is the no-key form of `stored`.
bool matches_no_key_name(std::string_view text, std::string_view stored);
// False for a text that cannot be a no-key name of anything.
bool could_be_no_key_name(std::string_view text);
// The stored name that `text` is the no-key form of. Nothing where it has only a digest of it (more
// than 149 stored bytes), or is no such form.
std::optional<std::string> stored_in_no_key_name(std::string_view text);

}  // namespace latchkey::crypto
