#pragma once
// The real kernel's fscrypt: its ioctls on a descriptor of ext4, as any user. Errors are errnos.

#include <linux/fscrypt.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "crypto/ids.h"

namespace latchkey::tests::kernel {

// What a system call of that user answers: its result, or minus an errno. This thread's effective
// uid, with the capabilities that it has; the library call would change all threads.
template <class Call>
long as(u32 uid, const Call& call) {
  const auto become = [](u32 other) {
    constexpr auto kSame = static_cast<uid_t>(-1);
    LK_CHECK(::syscall(SYS_setresuid, kSame, other, kSame) == 0);
  };
  if (uid != 0) become(uid);
  const long result = call();
  const int error = errno;
  if (uid != 0) become(0);
  return result < 0 ? -error : result;
}

// Of an ioctl that names a key by its identifier; all else is zero.
template <class Argument>
Argument about(const crypto::KeyId& id) {
  Argument argument{};
  argument.key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
  std::memcpy(argument.key_spec.u.identifier, id.bytes.data(), id.bytes.size());
  return argument;
}

// 0 or an errno.
inline int add_key(int fd, Bytes raw, crypto::KeyId& id) {
  std::vector<std::byte> memory(sizeof(fscrypt_add_key_arg) + raw.size());
  auto* const argument = new (memory.data()) fscrypt_add_key_arg{};
  argument->key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
  argument->raw_size = static_cast<u32>(raw.size());
  std::ranges::copy(raw, memory.begin() + sizeof(fscrypt_add_key_arg));  // may be none
  if (::ioctl(fd, FS_IOC_ADD_ENCRYPTION_KEY, argument) != 0) return errno;
  std::memcpy(id.bytes.data(), argument->key_spec.u.identifier, id.bytes.size());
  return 0;
}

// 0, and `flags` are the removal's; or an errno.
inline int remove_key(int fd, const crypto::KeyId& id, bool all_users, u32& flags) {
  auto argument = about<fscrypt_remove_key_arg>(id);
  const unsigned long verb =
      all_users ? FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS : FS_IOC_REMOVE_ENCRYPTION_KEY;
  const int error = ::ioctl(fd, verb, &argument) == 0 ? 0 : errno;
  flags = argument.removal_status_flags;
  return error;
}

inline fscrypt_get_key_status_arg key_status(int fd, const crypto::KeyId& id) {
  auto argument = about<fscrypt_get_key_status_arg>(id);
  LK_CHECK(::ioctl(fd, FS_IOC_GET_ENCRYPTION_KEY_STATUS, &argument) == 0);
  return argument;
}

// AES-256-XTS and AES-256-CTS.
inline fscrypt_policy_v2 policy_of(const crypto::KeyId& id,
                                   u8 padding_flags = FSCRYPT_POLICY_FLAGS_PAD_32) {
  fscrypt_policy_v2 policy{};
  policy.version = FSCRYPT_POLICY_V2;
  policy.contents_encryption_mode = FSCRYPT_MODE_AES_256_XTS;
  policy.filenames_encryption_mode = FSCRYPT_MODE_AES_256_CTS;
  policy.flags = padding_flags;
  std::memcpy(policy.master_key_identifier, id.bytes.data(), id.bytes.size());
  return policy;
}

// 0 or an errno.
inline int set_policy(int fd, const fscrypt_policy_v2& policy) {
  return ::ioctl(fd, FS_IOC_SET_ENCRYPTION_POLICY, &policy) == 0 ? 0 : errno;
}

// Why this machine's ext4 cannot be asked, of add_key()'s answer; or nothing.
inline const char* missing(int refused) {
  if (refused == EOPNOTSUPP || refused == ENOTTY)
    return "this kernel's ext4 has no encryption (CONFIG_FS_ENCRYPTION)";
  if (refused == ENOENT || refused == ENOPKG)
    return "this kernel cannot load hmac(sha512), which a key's identifier needs";
  return nullptr;
}

}  // namespace latchkey::tests::kernel
