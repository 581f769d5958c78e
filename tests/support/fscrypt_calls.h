#pragma once
// fscrypt's ioctls with arguments by chance: right but for a few fields and cut off anywhere, by
// three users, about keys, directories and files. Left out is what we do not have and say so
// (docs/limits.md): keys and policies by descriptor where the kernel would take them, and other
// ciphers.

#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/hex.h"
#include "tests/support/kernel_fscrypt.h"
#include "tests/support/keys.h"
#include "volume/fscrypt_abi.h"

namespace latchkey::tests {

inline constexpr u32 kUids[] = {0, 1001, 1002};
inline constexpr u32 kOwner = 1001;
inline constexpr u32 kCommands[] = {
    FS_IOC_ADD_ENCRYPTION_KEY,    FS_IOC_REMOVE_ENCRYPTION_KEY,
    FS_IOC_SET_ENCRYPTION_POLICY, FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS,
    FS_IOC_GET_ENCRYPTION_POLICY, FS_IOC_GET_ENCRYPTION_KEY_STATUS,
    FS_IOC_GET_ENCRYPTION_NONCE,  FS_IOC_GET_ENCRYPTION_POLICY_EX};
inline constexpr std::size_t kAddWordsAt = 48;

// Memory of which a system call can read and write the first bytes, and not one more.
class EndingMemory {
 public:
  EndingMemory() {
    void* const at =
        ::mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    LK_CHECK(at != MAP_FAILED);
    page_ = static_cast<std::byte*>(at);
    LK_CHECK(::mprotect(page_ + kPage, kPage, PROT_NONE) == 0);
  }
  ~EndingMemory() { ::munmap(page_, 2 * kPage); }
  EndingMemory(const EndingMemory&) = delete;
  EndingMemory& operator=(const EndingMemory&) = delete;

  MutableBytes hold(Bytes bytes) {
    std::byte* const begin = page_ + kPage - bytes.size();
    std::memcpy(begin, bytes.data(), bytes.size());
    return {begin, bytes.size()};
  }

 private:
  static constexpr std::size_t kPage = 4096;
  std::byte* page_ = nullptr;
};

struct Call {
  u32 command = 0;
  u32 uid = 0;
  std::string target;
  Heap memory;  // from the argument on, to the end of what can be read
};

inline std::string to_text(const Call& call) {
  return std::to_string(call.command & 0xff) + " by " + std::to_string(call.uid) + " on " +
         call.target + ": " + to_hex(call.memory);
}

inline std::string errno_text(int error) { return error == 0 ? "0" : ::strerrorname_np(error); }

struct Seen {
  int error = 0;
  Heap memory;
};

// Calls by chance.
class Calls {
 public:
  explicit Calls(u64 seed) : random_(seed) {}

  Call next(const std::vector<crypto::KeyId>& known) {
    Call call;
    call.command = pick(kCommands);
    call.uid = pick(kUids);
    call.target = std::string(pick(kTargets));
    if (call.command == FS_IOC_ADD_ENCRYPTION_KEY)
      add(call);
    else if (call.command == FS_IOC_SET_ENCRYPTION_POLICY)
      set_policy(call, known);
    else
      other(call, known);
    if (chance(8)) call.memory.resize(below(call.memory.size() + 1));
    return call;
  }
  u64 below(u64 end) { return random_() % end; }
  bool chance(u64 one_in) { return below(one_in) == 0; }

 private:
  static constexpr std::string_view kTargets[] = {"vault", "full", "fresh", "file"};
  template <class T, std::size_t kCount>
  const T& pick(const T (&values)[kCount]) {
    return values[below(kCount)];
  }
  crypto::KeyId some_key(const std::vector<crypto::KeyId>& known) {
    if (!chance(6)) return known[below(known.size())];
    return needles_of(raw_key(1000 + below(3))).id;  // nobody's
  }
  void change_spec(fscrypt_key_specifier& spec, bool may_be_descriptor) {
    if (chance(10)) spec.type = static_cast<u32>(below(5));
    if (spec.type == FSCRYPT_KEY_SPEC_TYPE_DESCRIPTOR && !may_be_descriptor) spec.type = 0;
    if (chance(12)) spec.__reserved = 1U << below(32);
    if (chance(6)) spec.u.__reserved[16 + below(16)] = 1;
  }
  template <std::size_t kCount>
  void change_reserved(u32 (&words)[kCount]) {
    if (chance(8)) words[below(kCount)] = 1U << below(32);
  }
  template <class T>
  static void append(Call& call, const T& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    call.memory.insert(call.memory.end(), bytes.begin(), bytes.end());
  }

  void add(Call& call) {
    fscrypt_add_key_arg argument{};
    argument.key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
    constexpr u32 kSizes[] = {64, 64, 64, 32, 16, 15, 65, 128, 129, 0, 1, ~u32{0}};
    argument.raw_size = pick(kSizes);
    if (chance(6)) argument.raw_size = static_cast<u32>(14 + below(4));
    if (chance(8)) argument.key_id = 0x7ffffff0;  // nobody has such a one
    if (chance(16)) argument.raw_size = 0;
    change_spec(argument.key_spec, call.uid != 0);
    std::array<u32, 8> words{};
    if (chance(6)) words[0] = static_cast<u32>(below(4));
    if (chance(10)) words[1 + below(7)] = 1;
    append(call, argument);
    std::memcpy(call.memory.data() + kAddWordsAt, words.data(), sizeof words);
    const Heap raw = raw_key(1 + below(3), 64);
    call.memory.insert(call.memory.end(), raw.begin(), raw.end());
    call.memory.resize(call.memory.size() + 80);  // as long as a wrapped one may be, and more
  }

  void set_policy(Call& call, const std::vector<crypto::KeyId>& known) {
    fscrypt_policy_v2 policy = kernel::policy_of(some_key(known));
    // What ext4 would take and we do not is for directories that cannot have it.
    const bool any = call.target != "fresh";
    constexpr u8 kWrongModes[] = {0, 2, 3, 11, 200};
    constexpr u8 kWrongFlags[] = {0x20, 0x40, 0x83, 0x18, 0x1b, 0x0c};
    if (chance(8)) policy.version = static_cast<u8>(any ? below(4) : 1 + 2 * below(2));
    if (chance(8))
      policy.contents_encryption_mode = any ? static_cast<u8>(below(256)) : pick(kWrongModes);
    if (chance(8))
      policy.filenames_encryption_mode = any ? static_cast<u8>(below(256)) : pick(kWrongModes);
    if (chance(8)) policy.flags = any ? static_cast<u8>(below(256)) : pick(kWrongFlags);
    append(call, policy);
    if (chance(8)) call.memory[5 + below(3)] = std::byte{1};
    if (chance(8)) call.memory[4] = std::byte(any ? below(256) : 1 + below(8));
  }

  void other(Call& call, const std::vector<crypto::KeyId>& known) {
    const crypto::KeyId id = some_key(known);
    if (call.command == FS_IOC_GET_ENCRYPTION_KEY_STATUS) {
      auto argument = kernel::about<fscrypt_get_key_status_arg>(id);
      change_spec(argument.key_spec, true);
      change_reserved(argument.__reserved);
      append(call, argument);
      for (std::size_t at = 64; at < call.memory.size(); ++at)
        call.memory[at] = std::byte(below(256));
    } else if (call.command == FS_IOC_REMOVE_ENCRYPTION_KEY ||
               call.command == FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS) {
      auto argument = kernel::about<fscrypt_remove_key_arg>(id);
      change_spec(argument.key_spec, true);
      change_reserved(argument.__reserved);
      argument.removal_status_flags = static_cast<u32>(below(5));
      append(call, argument);
    } else if (call.command == FS_IOC_GET_ENCRYPTION_POLICY_EX) {
      fscrypt_get_policy_ex_arg argument{};
      constexpr u64 kSizes[] = {0, 12, 23, 24, 25, 32, u64{1} << 40, ~u64{0}};
      argument.policy_size = pick(kSizes);
      append(call, argument);
    } else {
      call.memory.resize(volume::fscrypt_argument_bytes(call.command), std::byte{0xa5});
    }
  }

  std::mt19937_64 random_;
};

}  // namespace latchkey::tests
