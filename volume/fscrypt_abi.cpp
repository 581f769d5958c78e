#include "volume/fscrypt_abi.h"

#include <linux/fscrypt.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace latchkey::volume {

namespace {

// --- layout: numbers, sizes and places are the kernel's for good ---------------------------------

// Of fscrypt_add_key_arg: what older headers call the first of eight reserved words.
constexpr std::size_t kAddFlagsAt = 48;
constexpr std::size_t kAddWords = 8;
constexpr u32 kAddHardwareWrapped = 1;
// The kernel's own bounds; a volume's may be narrower.
constexpr u32 kRawBytesMin = 16, kRawBytesMax = 64, kWrappedBytesMax = 128;

static_assert(sizeof(fscrypt_key_specifier) == 40 && offsetof(fscrypt_key_specifier, u) == 8);
static_assert(sizeof(fscrypt_add_key_arg) == 80 && offsetof(fscrypt_add_key_arg, raw_size) == 40 &&
              offsetof(fscrypt_add_key_arg, key_id) == 44 &&
              kAddFlagsAt + kAddWords * sizeof(u32) == sizeof(fscrypt_add_key_arg));
static_assert(sizeof(fscrypt_remove_key_arg) == 64 &&
              offsetof(fscrypt_remove_key_arg, removal_status_flags) == 40);
static_assert(sizeof(fscrypt_get_key_status_arg) == 128 &&
              offsetof(fscrypt_get_key_status_arg, status) == 64);
static_assert(sizeof(fscrypt_policy_v1) == 12 && sizeof(fscrypt_policy_v2) == 24 &&
              offsetof(fscrypt_policy_v2, master_key_identifier) == 8);
static_assert(sizeof(fscrypt_get_policy_ex_arg) == 32 &&
              offsetof(fscrypt_get_policy_ex_arg, policy) == 8);
static_assert(sizeof(crypto::KeyId) == FSCRYPT_KEY_IDENTIFIER_SIZE);
static_assert(FS_IOC_ADD_ENCRYPTION_KEY == 0xc0506617 &&
              FS_IOC_REMOVE_ENCRYPTION_KEY == 0xc0406618);
static_assert(FS_IOC_GET_ENCRYPTION_KEY_STATUS == 0xc080661a &&
              FS_IOC_SET_ENCRYPTION_POLICY == 0x800c6613);

constexpr std::size_t kPolicyKindBytes = offsetof(fscrypt_policy_v2, master_key_identifier);

// False: the caller's memory ends before.
template <class T>
bool take(Bytes argument, T& value) {
  if (argument.size() < sizeof value) return false;
  std::memcpy(&value, argument.data(), sizeof value);
  return true;
}

// The whole of `value`, or its first bytes.
template <class T>
FscryptAnswer give(MutableBytes argument, const T& value, std::size_t bytes = sizeof(T)) {
  if (argument.size() < bytes) return {EFAULT};
  std::memcpy(argument.data(), &value, bytes);
  return {0, bytes};
}

FscryptAnswer refuse(const Error& error) { return {posix_errno(error)}; }

template <std::size_t kCount>
bool all_zero(const __u32 (&words)[kCount]) {
  return std::ranges::all_of(words, [](__u32 word) { return word == 0; });
}

bool by_descriptor(const fscrypt_key_specifier& spec) {
  return spec.type == FSCRYPT_KEY_SPEC_TYPE_DESCRIPTOR;
}

bool well_formed(const fscrypt_key_specifier& spec) {
  return spec.__reserved == 0 &&
         (by_descriptor(spec) || spec.type == FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER);
}

// What lies behind the identifier is nobody's.
crypto::KeyId key_of(const fscrypt_key_specifier& spec) {
  crypto::KeyId id;
  std::memcpy(id.bytes.data(), spec.u.identifier, id.bytes.size());
  return id;
}

bool is_privileged(Caller caller) { return caller.uid == 0; }

// --- keys ----------------------------------------------------------------------------------------

struct AddArgument {
  fscrypt_key_specifier spec;
  u32 raw_size;
  u32 key_id;
  u32 flags;
  u32 reserved[kAddWords - 1];
};
static_assert(sizeof(AddArgument) == sizeof(fscrypt_add_key_arg) &&
              offsetof(AddArgument, flags) == kAddFlagsAt);

// 0, or why it is refused before its key is looked at.
int refusal(const AddArgument& argument, bool privileged) {
  if (!well_formed(argument.spec) || !all_zero(argument.reserved)) return EINVAL;
  if (by_descriptor(argument.spec) && !privileged) return EACCES;
  const bool wrapped = argument.flags == kAddHardwareWrapped;
  if (argument.flags != 0 && (!wrapped || by_descriptor(argument.spec))) return EINVAL;
  if (argument.key_id != 0) return argument.raw_size != 0 ? EINVAL : ENOKEY;
  const u32 most = wrapped ? kWrappedBytesMax : kRawBytesMax;
  return argument.raw_size < kRawBytesMin || argument.raw_size > most ? EINVAL : 0;
}

// The identifier is derived from the key: what the caller put in its place says nothing.
FscryptAnswer add_key(Volume& volume, Caller caller, FscryptCall& call) {
  AddArgument argument;
  if (!take(call.argument, argument)) return {EFAULT};
  if (const int error = refusal(argument, is_privileged(caller))) return {error};
  if (call.raw_key.bytes().size() != argument.raw_size) return {EFAULT};
  if (by_descriptor(argument.spec) || argument.flags != 0) return {EOPNOTSUPP};
  const auto id = volume.add_key(caller, std::move(call.raw_key));
  if (!id) return refuse(id.error());
  std::memcpy(argument.spec.u.identifier, id->bytes.data(), id->bytes.size());
  return give(call.argument, argument.spec,
              offsetof(fscrypt_key_specifier, u) + FSCRYPT_KEY_IDENTIFIER_SIZE);
}

FscryptAnswer remove_key(Volume& volume, Caller caller, bool all_users, MutableBytes bytes) {
  if (all_users && !is_privileged(caller)) return {EACCES};
  fscrypt_remove_key_arg argument;
  if (!take(bytes, argument)) return {EFAULT};
  if (!well_formed(argument.key_spec) || !all_zero(argument.__reserved)) return {EINVAL};
  if (by_descriptor(argument.key_spec)) return {is_privileged(caller) ? ENOKEY : EACCES};
  const auto report =
      volume.remove_key(caller, key_of(argument.key_spec), keymgr::RemovalMode::soft, all_users);
  argument.removal_status_flags = 0;
  if (report && report->files_busy)
    argument.removal_status_flags |= FSCRYPT_KEY_REMOVAL_STATUS_FLAG_FILES_BUSY;
  if (report && report->other_users)
    argument.removal_status_flags |= FSCRYPT_KEY_REMOVAL_STATUS_FLAG_OTHER_USERS;
  // Of a removal and then an add nothing is left, either.
  if (!report && report.error().code != Errc::canceled) return refuse(report.error());
  return give(bytes, argument, offsetof(fscrypt_remove_key_arg, __reserved));
}

u32 status_of(keymgr::KeyState state) {
  switch (state) {
    case keymgr::KeyState::absent:
      return FSCRYPT_KEY_STATUS_ABSENT;
    case keymgr::KeyState::present:
      return FSCRYPT_KEY_STATUS_PRESENT;
    case keymgr::KeyState::incompletely_removed:
      return FSCRYPT_KEY_STATUS_INCOMPLETELY_REMOVED;
  }
  return 0;
}

FscryptAnswer key_status(Volume& volume, Caller caller, MutableBytes bytes) {
  fscrypt_get_key_status_arg argument;
  if (!take(bytes, argument)) return {EFAULT};
  if (!well_formed(argument.key_spec) || !all_zero(argument.__reserved)) return {EINVAL};
  KeyReport report;
  if (!by_descriptor(argument.key_spec))
    report = volume.key_status(caller, key_of(argument.key_spec));
  argument.status = status_of(report.state);
  argument.status_flags = report.added_by_self ? FSCRYPT_KEY_STATUS_FLAG_ADDED_BY_SELF : 0;
  argument.user_count = report.user_count;
  std::ranges::fill(argument.__out_reserved, 0);
  return give(bytes, argument);
}

// --- policies ------------------------------------------------------------------------------------

FscryptAnswer set_policy(Volume& volume, Caller caller, InodeId inode, Bytes bytes) {
  PolicyFields fields;
  if (!take(bytes, fields.version)) return {EFAULT};
  if (fields.version != FSCRYPT_POLICY_V1 && fields.version != FSCRYPT_POLICY_V2) return {EINVAL};
  crypto::KeyId id;
  if (fields.version == FSCRYPT_POLICY_V1) {
    fscrypt_policy_v1 policy;
    if (!take(bytes, policy)) return {EFAULT};
  } else {
    fscrypt_policy_v2 policy;
    if (!take(bytes, policy)) return {EFAULT};
    fields.contents_mode = policy.contents_encryption_mode;
    fields.names_mode = policy.filenames_encryption_mode;
    fields.flags = policy.flags;
    std::memcpy(fields.rest.data(), &bytes[kPolicyKindBytes - fields.rest.size()],
                fields.rest.size());
    std::memcpy(id.bytes.data(), policy.master_key_identifier, id.bytes.size());
  }
  const auto set = volume.set_policy(caller, inode, id, fields);
  return set ? FscryptAnswer{} : refuse(set.error());
}

fscrypt_policy_v2 policy_of(const crypto::KeyId& id) {
  fscrypt_policy_v2 policy{};
  policy.version = kPolicyFields.version;
  policy.contents_encryption_mode = kPolicyFields.contents_mode;
  policy.filenames_encryption_mode = kPolicyFields.names_mode;
  policy.flags = kPolicyFields.flags;
  std::memcpy(policy.master_key_identifier, id.bytes.data(), id.bytes.size());
  return policy;
}

FscryptAnswer get_policy_ex(const crypto::KeyId& id, MutableBytes bytes) {
  fscrypt_get_policy_ex_arg argument{};
  if (!take(bytes, argument.policy_size)) return {EFAULT};
  if (argument.policy_size < sizeof(fscrypt_policy_v2)) return {EOVERFLOW};
  argument.policy_size = sizeof(fscrypt_policy_v2);
  argument.policy.v2 = policy_of(id);
  return give(bytes, argument);
}

FscryptAnswer call_inode(Volume& volume, Caller caller, const Stat& stat, FscryptCall& call) {
  switch (call.command) {
    case FS_IOC_ADD_ENCRYPTION_KEY:
      return add_key(volume, caller, call);
    case FS_IOC_REMOVE_ENCRYPTION_KEY:
      return remove_key(volume, caller, false, call.argument);
    case FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS:
      return remove_key(volume, caller, true, call.argument);
    case FS_IOC_GET_ENCRYPTION_KEY_STATUS:
      return key_status(volume, caller, call.argument);
    case FS_IOC_SET_ENCRYPTION_POLICY:
      return set_policy(volume, caller, stat.inode, call.argument);
    default:
      break;
  }
  if (fscrypt_argument_bytes(call.command) == 0) return {ENOTTY};
  if (!stat.key_id) return {ENODATA};
  if (call.command == FS_IOC_GET_ENCRYPTION_POLICY_EX)
    return get_policy_ex(*stat.key_id, call.argument);
  if (call.command == FS_IOC_GET_ENCRYPTION_NONCE) return give(call.argument, stat.nonce);
  return {EINVAL};  // FS_IOC_GET_ENCRYPTION_POLICY: of v1 alone
}

template <class Place>
FscryptAnswer call_place(Volume& volume, Caller caller, Place place, FscryptCall& call) {
  const auto stat = volume.stat(place);
  return stat ? call_inode(volume, caller, *stat, call) : refuse(stat.error());
}

}  // namespace

std::size_t fscrypt_argument_bytes(u32 command) {
  switch (command) {
    case FS_IOC_ADD_ENCRYPTION_KEY:
      return sizeof(fscrypt_add_key_arg);
    case FS_IOC_REMOVE_ENCRYPTION_KEY:
    case FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS:
      return sizeof(fscrypt_remove_key_arg);
    case FS_IOC_GET_ENCRYPTION_KEY_STATUS:
      return sizeof(fscrypt_get_key_status_arg);
    case FS_IOC_SET_ENCRYPTION_POLICY:
      return sizeof(fscrypt_policy_v2);
    case FS_IOC_GET_ENCRYPTION_POLICY:
      return sizeof(fscrypt_policy_v1);
    case FS_IOC_GET_ENCRYPTION_POLICY_EX:
      return sizeof(fscrypt_get_policy_ex_arg);
    case FS_IOC_GET_ENCRYPTION_NONCE:
      return sizeof(crypto::Nonce);
    default:
      return 0;
  }
}

std::size_t fscrypt_raw_key_bytes(u32 command, Bytes argument) {
  AddArgument add;
  if (command != FS_IOC_ADD_ENCRYPTION_KEY || !take(argument, add)) return 0;
  return refusal(add, true) == 0 ? add.raw_size : 0;
}

FscryptAnswer fscrypt_ioctl(Volume& volume, Caller caller, HandleId handle, FscryptCall call) {
  return call_place(volume, caller, handle, call);
}

FscryptAnswer fscrypt_ioctl(Volume& volume, Caller caller, InodeId inode, FscryptCall call) {
  return call_place(volume, caller, inode, call);
}

}  // namespace latchkey::volume
