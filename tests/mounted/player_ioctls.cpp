// What only the bytes of fscrypt's ioctls can say.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/check.h"
#include "tests/mounted/player.h"
#include "tests/support/conformance_world.h"
#include "tests/support/kernel_fscrypt.h"

namespace latchkey::tests {
namespace {

constexpr const char* kStates[] = {"?", "ABSENT", "PRESENT", "INCOMPLETELY_REMOVED"};
constexpr std::size_t kAddReservedAt = 48, kAddReservedWords = 8;  // the first: flags
constexpr unsigned char kFilled = 0x5a;

bool has(const std::vector<std::string>& words, std::string_view word) {
  return std::ranges::find(words, word) != words.end();
}

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

int ioctl_or_errno(int fd, unsigned long command, void* argument) {
  return ::ioctl(fd, command, argument) == 0 ? 0 : errno;
}

mount::UniqueFd open_root(const std::string& root) {
  return mount::UniqueFd(::open(root.c_str(), O_RDONLY | O_CLOEXEC));
}

// One descriptor, "latchkey".
void set_descriptor(fscrypt_key_specifier& spec) {
  spec.type = FSCRYPT_KEY_SPEC_TYPE_DESCRIPTOR;
  std::memcpy(spec.u.descriptor, "latchkey", FSCRYPT_KEY_DESCRIPTOR_SIZE);
}

}  // namespace

// A key of its own for each; what was added is removed again.
Outcome Player::raw_add(const Words& words) {
  static constexpr std::size_t kBehind = 128;  // bytes that the caller has behind the argument
  std::string name;
  for (const std::string& word : words) name += word;
  const Heap key_bytes = raw_key(std::hash<std::string>{}(name), kBehind);
  std::vector<std::byte> memory(sizeof(fscrypt_add_key_arg) + kBehind);
  auto* const argument = new (memory.data()) fscrypt_add_key_arg{};
  argument->key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
  argument->raw_size = static_cast<u32>(option(words, "size", 64));
  argument->key_id = static_cast<u32>(option(words, "key_id", 0));
  set_spec(words, argument->key_spec);
  u32 reserved[kAddReservedWords]{};
  set_reserved(words, reserved);
  std::memcpy(memory.data() + kAddReservedAt, reserved, sizeof reserved);
  std::ranges::copy(key_bytes, memory.begin() + sizeof(fscrypt_add_key_arg));
  if (has(words, "filled")) std::memset(argument->key_spec.u.identifier, kFilled, 16);

  const mount::UniqueFd root = open_root(root_);
  int fd = root.get();
  for (const std::string& word : words) {
    if (!word.starts_with("through=")) continue;
    const auto held = handles_.find(word.substr(word.find('=') + 1));
    fd = held == handles_.end() ? -1 : held->second;
  }
  const int error = ioctl_or_errno(fd, FS_IOC_ADD_ENCRYPTION_KEY,
                                   has(words, "no_memory") ? nullptr : memory.data());
  if (error != 0) return outcome_of_errno(error);
  const crypto::KeyId id =
      needles_of(Heap(key_bytes.begin(), key_bytes.begin() + argument->raw_size)).id;
  if (std::memcmp(argument->key_spec.u.identifier, id.bytes.data(), id.bytes.size()) != 0)
    return {"another identifier"};
  return outcome_of_errno(remove_key(id, false).error);
}

Outcome Player::raw_remove(const Words& words) {
  auto argument = kernel::about<fscrypt_remove_key_arg>(key(words.at(2)).id);
  set_spec(words, argument.key_spec);
  set_reserved(words, argument.__reserved);
  if (has(words, "filled")) argument.removal_status_flags = kFilled;
  const int error = ioctl_or_errno(open_root(root_).get(), FS_IOC_REMOVE_ENCRYPTION_KEY,
                                   has(words, "no_memory") ? nullptr : &argument);
  raw_flags_ = argument.removal_status_flags;
  return outcome_of_errno(error);
}

Outcome Player::raw_status(const Words& words) {
  auto argument = kernel::about<fscrypt_get_key_status_arg>(key(words.at(2)).id);
  set_spec(words, argument.key_spec);
  set_reserved(words, argument.__reserved);
  constexpr std::size_t kOut = offsetof(fscrypt_get_key_status_arg, status);
  if (has(words, "filled"))
    std::memset(reinterpret_cast<char*>(&argument) + kOut, kFilled, sizeof argument - kOut);
  const int error = ioctl_or_errno(open_root(root_).get(), FS_IOC_GET_ENCRYPTION_KEY_STATUS,
                                   has(words, "no_memory") ? nullptr : &argument);
  if (has(words, "no_memory")) return outcome_of_errno(error);
  const bool zero =
      std::ranges::all_of(argument.__out_reserved, [](u32 word) { return word == 0; });
  return {outcome_of_errno(error).result,
          "status=" + std::to_string(argument.status) + " out_reserved_zero=" + (zero ? "1" : "0")};
}

Outcome Player::raw(const Words& words) {
  const std::string& what = words.at(1);
  if (what == "add") return raw_add(words);
  if (what == "remove") return raw_remove(words);
  if (what == "status") return raw_status(words);
  LK_CHECK(what == "flags");
  return {raw_flags_ == 0 ? "0" : "n=" + std::to_string(raw_flags_)};
}

// `again`: other bytes under the same descriptor.
Outcome Player::v1(const Words& words) {
  const mount::UniqueFd root = open_root(root_);
  if (words.at(1) == "add") {
    std::vector<std::byte> memory(sizeof(fscrypt_add_key_arg) + FSCRYPT_MAX_KEY_SIZE);
    auto* const argument = new (memory.data()) fscrypt_add_key_arg{};
    set_descriptor(argument->key_spec);
    argument->raw_size = FSCRYPT_MAX_KEY_SIZE;
    std::memset(argument->raw, has(words, "again") ? 8 : 9, FSCRYPT_MAX_KEY_SIZE);
    return outcome_of_errno(ioctl_or_errno(root.get(), FS_IOC_ADD_ENCRYPTION_KEY, argument));
  }
  if (words.at(1) == "remove") {
    fscrypt_remove_key_arg argument{};
    set_descriptor(argument.key_spec);
    return outcome_of_errno(ioctl_or_errno(root.get(), FS_IOC_REMOVE_ENCRYPTION_KEY, &argument));
  }
  fscrypt_get_key_status_arg argument{};
  set_descriptor(argument.key_spec);
  const int error = ioctl_or_errno(root.get(), FS_IOC_GET_ENCRYPTION_KEY_STATUS, &argument);
  LK_CHECK(argument.status < std::size(kStates));
  return {outcome_of_errno(error).result,
          status_text(kStates[argument.status], argument.status_flags != 0, argument.user_count)};
}

Outcome Player::get_nonce(const Words& words) {
  crypto::Nonce nonce;
  const mount::UniqueFd fd(::open(path(words.at(1)).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return outcome_of_errno(errno);
  return outcome_of_errno(
      ioctl_or_errno(fd.get(), FS_IOC_GET_ENCRYPTION_NONCE, nonce.bytes.data()));
}

}  // namespace latchkey::tests
