#pragma once
// fscrypt's ioctls (linux/fscrypt.h): the bytes of their arguments as calls of a Volume, with the
// checks, the order and the errors of Linux's fs/crypto/keyring.c and policy.c. Only decodes: who
// can reach a caller's memory hands over its bytes, and writes back what comes out.
//
// What a volume answers otherwise than the kernel it answers here, too (docs/conformance.md).
// Beyond that: keys by descriptor (v1) and keys that hardware wraps are EOPNOTSUPP, a policy of
// theirs EINVAL; a key_id is ENOKEY, as if no keyring had it; a removal is `soft`, and one that the
// caller's own add overtook is 0; a directory that was removed is ENOENT before anything else.

#include "base/secret.h"
#include "volume/volume.h"

namespace latchkey::volume {

struct FscryptCall {
  u32 command = 0;  // FS_IOC_ADD_ENCRYPTION_KEY, ...
  // From the address that the caller gave: fscrypt_argument_bytes() of his bytes, or fewer if his
  // memory ends before. The answer is written into them.
  MutableBytes argument;
  // What follows the argument of an add: fscrypt_raw_key_bytes() of it, or nothing if his memory
  // ends before. Wiped in every case.
  SecretBytes raw_key = {};
};

struct FscryptAnswer {
  int error = 0;          // an errno, or 0
  std::size_t bytes = 0;  // of the argument, from its first on: what goes back to the caller
};

// 0: not one of these ioctls (ENOTTY).
std::size_t fscrypt_argument_bytes(u32 command);
// 0: this call takes no key, or fails before it does.
std::size_t fscrypt_raw_key_bytes(u32 command, Bytes argument);

// Through an open handle: any will do for what is about keys; policies are the handle's inode's.
FscryptAnswer fscrypt_ioctl(Volume& volume, Caller caller, HandleId handle, FscryptCall call);
FscryptAnswer fscrypt_ioctl(Volume& volume, Caller caller, InodeId inode, FscryptCall call);

}  // namespace latchkey::volume
