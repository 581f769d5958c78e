// Operations that are bytes: what an ioctl's argument says, and where it lies.

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/check.h"
#include "tests/support/conformance_world.h"
#include "tests/support/kernel_fscrypt.h"
#include "volume/fscrypt_abi.h"

namespace latchkey::tests {

using namespace volume;  // NOLINT: the whole file is about it

namespace {

constexpr const char* kStates[] = {"?", "ABSENT", "PRESENT", "INCOMPLETELY_REMOVED"};
constexpr std::byte kFilled{0x5a};
constexpr std::size_t kAddReservedAt = 48, kAddReservedWords = 8;  // the first: flags

template <class T>
MutableBytes bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

bool has(const std::vector<std::string>& words, std::string_view word) {
  return std::ranges::find(words, word) != words.end();
}

// "type=N", "spec_reserved=N", "tail=N": the last byte behind the identifier.
void set_spec(const std::vector<std::string>& words, fscrypt_key_specifier& spec) {
  spec.type = static_cast<u32>(option(words, "type", spec.type));
  spec.__reserved = static_cast<u32>(option(words, "spec_reserved", 0));
  spec.u.__reserved[std::size(spec.u.__reserved) - 1] = static_cast<u8>(option(words, "tail", 0));
}

template <std::size_t kCount>
void set_reserved(const std::vector<std::string>& words, u32 (&reserved)[kCount]) {
  reserved[0] = static_cast<u32>(option(words, "first_reserved", 0));
  reserved[kCount - 1] = static_cast<u32>(option(words, "last_reserved", 0));
}

Outcome outcome_of(int error) { return {error == 0 ? "0" : errno_name(error)}; }

template <class T>
Result<T> answer(int error, T value) {
  if (error != 0) return fail_os(Errc::io, error, "refused");
  return value;
}

}  // namespace

// What a caller's memory gives: as much of the key as the argument says and is there.
int ConformanceWorld::ask(Caller caller, u32 command, MutableBytes argument, Bytes raw_key,
                          std::optional<HandleId> handle) {
  const std::size_t wanted = std::min(fscrypt_raw_key_bytes(command, argument), raw_key.size());
  FscryptCall call{.command = command, .argument = argument};
  if (wanted != 0) call.raw_key = in_arena(raw_key.first(wanted));
  const FscryptAnswer answer = handle
                                   ? fscrypt_ioctl(*volume_, caller, *handle, std::move(call))
                                   : fscrypt_ioctl(*volume_, caller, kRootInode, std::move(call));
  LK_CHECK(answer.bytes <= argument.size() && (answer.error == 0 || answer.bytes == 0));
  return answer.error;
}

// --- the calls of Door::bytes --------------------------------------------------------------------

Result<crypto::KeyId> ConformanceWorld::add_bytes(Caller caller, const Heap& raw) {
  fscrypt_add_key_arg argument{};
  argument.key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
  argument.raw_size = static_cast<u32>(raw.size());
  const int error = ask(caller, FS_IOC_ADD_ENCRYPTION_KEY, bytes_of(argument), raw);
  crypto::KeyId id;
  std::memcpy(id.bytes.data(), argument.key_spec.u.identifier, id.bytes.size());
  return answer(error, id);
}

Result<ConformanceWorld::Removed> ConformanceWorld::remove_bytes(const crypto::KeyId& id,
                                                                 bool all_users) {
  auto argument = kernel::about<fscrypt_remove_key_arg>(id);
  const int error = ask(
      caller_, all_users ? FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS : FS_IOC_REMOVE_ENCRYPTION_KEY,
      bytes_of(argument));
  const u32 flags = argument.removal_status_flags;
  LK_CHECK((flags & ~3U) == 0);
  return answer(error, Removed{(flags & FSCRYPT_KEY_REMOVAL_STATUS_FLAG_FILES_BUSY) != 0,
                               (flags & FSCRYPT_KEY_REMOVAL_STATUS_FLAG_OTHER_USERS) != 0});
}

Outcome ConformanceWorld::status_bytes(const crypto::KeyId& id) {
  auto argument = kernel::about<fscrypt_get_key_status_arg>(id);
  const int error = ask(caller_, FS_IOC_GET_ENCRYPTION_KEY_STATUS, bytes_of(argument));
  LK_CHECK(argument.status < std::size(kStates) && (argument.status_flags & ~1U) == 0);
  return {outcome_of(error).result,
          status_text(kStates[argument.status], argument.status_flags != 0, argument.user_count)};
}

Result<void> ConformanceWorld::set_policy_bytes(InodeId directory, const crypto::KeyId& id) {
  fscrypt_policy_v2 policy = kernel::policy_of(id);
  const FscryptAnswer set = fscrypt_ioctl(
      *volume_, caller_, directory,
      {.command = FS_IOC_SET_ENCRYPTION_POLICY, .argument = bytes_of(policy), .raw_key = {}});
  if (set.error != 0) return fail_os(Errc::io, set.error, "refused");
  return {};
}

Outcome ConformanceWorld::get_policy_bytes(InodeId inode, const crypto::KeyId& id) {
  fscrypt_get_policy_ex_arg argument{};
  argument.policy_size = sizeof argument.policy;
  const FscryptAnswer got =
      fscrypt_ioctl(*volume_, caller_, inode,
                    {.command = static_cast<u32>(FS_IOC_GET_ENCRYPTION_POLICY_EX),
                     .argument = bytes_of(argument),
                     .raw_key = {}});
  const fscrypt_policy_v2& policy = argument.policy.v2;
  const bool matches =
      argument.policy_size == sizeof policy && policy.version == FSCRYPT_POLICY_V2 &&
      std::memcmp(policy.master_key_identifier, id.bytes.data(), id.bytes.size()) == 0;
  return {outcome_of(got.error).result, std::string("identifier_matches=") + (matches ? "1" : "0")};
}

Outcome ConformanceWorld::get_nonce_bytes(InodeId inode) {
  crypto::Nonce nonce;
  return outcome_of(
      fscrypt_ioctl(
          *volume_, caller_, inode,
          {.command = FS_IOC_GET_ENCRYPTION_NONCE, .argument = nonce.bytes, .raw_key = {}})
          .error);
}

// --- bytes of the table's own --------------------------------------------------------------------

// A key of its own for each; what was added is removed again.
Outcome ConformanceWorld::raw_add(const Words& words) {
  static constexpr std::size_t kBehind = 128;  // bytes that the caller has behind the argument
  const Heap raw = raw_key(++keys_made_, kBehind);
  fscrypt_add_key_arg argument{};
  argument.key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
  argument.raw_size = static_cast<u32>(option(words, "size", 64));
  argument.key_id = static_cast<u32>(option(words, "key_id", 0));
  set_spec(words, argument.key_spec);
  u32 reserved[kAddReservedWords]{};
  set_reserved(words, reserved);
  std::memcpy(bytes_of(argument).data() + kAddReservedAt, reserved, sizeof reserved);
  if (has(words, "filled")) std::memset(argument.key_spec.u.identifier, 0x5a, 16);
  std::optional<HandleId> handle;
  for (const std::string& word : words) {
    if (!word.starts_with("through=")) continue;
    const auto held = handles_.find(word.substr(word.find('=') + 1));
    handle = held == handles_.end() ? HandleId{~u64{0}} : held->second;
  }
  const MutableBytes bytes = has(words, "no_memory") ? MutableBytes{} : bytes_of(argument);
  const int error = ask(caller_, FS_IOC_ADD_ENCRYPTION_KEY, bytes, raw, handle);
  if (error != 0) return outcome_of(error);
  const crypto::KeyId id = needles_of(Heap(raw.begin(), raw.begin() + argument.raw_size)).id;
  if (std::memcmp(argument.key_spec.u.identifier, id.bytes.data(), id.bytes.size()) != 0)
    return {"another identifier"};
  return tests::outcome_of(remove_bytes(id, false));
}

Outcome ConformanceWorld::raw_remove(const Words& words) {
  auto argument = kernel::about<fscrypt_remove_key_arg>(key(words.at(2)).id);
  set_spec(words, argument.key_spec);
  set_reserved(words, argument.__reserved);
  if (has(words, "filled")) argument.removal_status_flags = std::to_integer<u32>(kFilled);
  const int error = ask(caller_, FS_IOC_REMOVE_ENCRYPTION_KEY,
                        has(words, "no_memory") ? MutableBytes{} : bytes_of(argument));
  raw_flags_ = argument.removal_status_flags;
  return outcome_of(error);
}

Outcome ConformanceWorld::raw_status(const Words& words) {
  auto argument = kernel::about<fscrypt_get_key_status_arg>(key(words.at(2)).id);
  set_spec(words, argument.key_spec);
  set_reserved(words, argument.__reserved);
  constexpr std::size_t kOut = offsetof(fscrypt_get_key_status_arg, status);
  if (has(words, "filled")) std::ranges::fill(bytes_of(argument).subspan(kOut), kFilled);
  if (has(words, "no_memory"))
    return outcome_of(ask(caller_, FS_IOC_GET_ENCRYPTION_KEY_STATUS, {}));
  const int error = ask(caller_, FS_IOC_GET_ENCRYPTION_KEY_STATUS, bytes_of(argument));
  const bool zero =
      std::ranges::all_of(argument.__out_reserved, [](u32 word) { return word == 0; });
  return {outcome_of(error).result,
          "status=" + std::to_string(argument.status) + " out_reserved_zero=" + (zero ? "1" : "0")};
}

Outcome ConformanceWorld::raw(const Words& words) {
  const std::string& what = words.at(1);
  if (what == "add") return raw_add(words);
  if (what == "remove") return raw_remove(words);
  if (what == "status") return raw_status(words);
  LK_CHECK(what == "flags");
  return {raw_flags_ == 0 ? "0" : "n=" + std::to_string(raw_flags_)};
}

// One descriptor, "latchkey"; `again`: other bytes under it.
Outcome ConformanceWorld::v1(const Words& words) {
  const auto name = [](fscrypt_key_specifier& spec) {
    spec.type = FSCRYPT_KEY_SPEC_TYPE_DESCRIPTOR;
    std::memcpy(spec.u.descriptor, "latchkey", FSCRYPT_KEY_DESCRIPTOR_SIZE);
  };
  if (words.at(1) == "add") {
    fscrypt_add_key_arg argument{};
    name(argument.key_spec);
    argument.raw_size = FSCRYPT_MAX_KEY_SIZE;
    const Heap raw(FSCRYPT_MAX_KEY_SIZE, std::byte{has(words, "again") ? u8{8} : u8{9}});
    return outcome_of(ask(caller_, FS_IOC_ADD_ENCRYPTION_KEY, bytes_of(argument), raw));
  }
  if (words.at(1) == "remove") {
    fscrypt_remove_key_arg argument{};
    name(argument.key_spec);
    return outcome_of(ask(caller_, FS_IOC_REMOVE_ENCRYPTION_KEY, bytes_of(argument)));
  }
  fscrypt_get_key_status_arg argument{};
  name(argument.key_spec);
  const int error = ask(caller_, FS_IOC_GET_ENCRYPTION_KEY_STATUS, bytes_of(argument));
  LK_CHECK(argument.status < std::size(kStates));
  return {outcome_of(error).result,
          status_text(kStates[argument.status], argument.status_flags != 0, argument.user_count)};
}

}  // namespace latchkey::tests
