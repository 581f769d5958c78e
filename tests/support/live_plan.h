#pragma once
// A short sequence of calls that a kernel's fscrypt and we both understand: four users, three keys,
// four directories under them, six files. Made from a seed, or read from its own text, so that what
// a comparison prints can be pasted back in.
//
//   add A k0; open A h0 a0 rwc; write A h0 0 100 7; remove A k0; status B k0; close A h0

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "crypto/ids.h"
#include "volume/types.h"

namespace latchkey::tests {

enum class LiveVerb : u8 {
  add,
  remove,
  remove_all,
  key_status,
  open,
  read,
  write,
  truncate,
  fsync,
  close,
  unlink,
  rename,
  rename_new,  // refuses to replace
  exchange,
  link,
  stat,
  list,
  open_directory,
  list_open,  // by its handle
};

// In the same order as on disk of both: two directories under the first key, one under each other.
inline constexpr std::string_view kLiveDirectories = "abcd";
inline constexpr std::array<u32, 4> kLiveKeyOf = {0, 0, 1, 2};
inline constexpr u32 kLiveKeys = 3;
inline constexpr u32 kLiveNames = 6;  // n0 to n5, in each directory
inline constexpr u32 kLiveSlots = 6;  // that open files lie in
inline constexpr std::array<u32, 4> kLiveUids = {0, 1001, 1002, 1003};  // root, A, B, C

struct LivePath {
  u32 directory = 0;
  u32 name = 0;
  bool operator==(const LivePath&) const = default;
};
inline std::string name_in_directory(LivePath path) { return "n" + std::to_string(path.name); }
// The no-key names of a sequence's directories, by directory and name: each system has its own.
using LiveNoKeyNames = std::array<std::array<std::string, kLiveNames>, kLiveDirectories.size()>;

struct LiveOp {
  LiveVerb verb{};
  u32 user = 0;  // of kLiveUids
  u32 key = 0;
  u32 slot = 0;
  LivePath path, to;
  bool by_no_key_name = false;  // `path`, as a locked directory lists it: ~a0
  volume::OpenFlags flags;
  u64 offset = 0, size = 0;
  u64 fill = 0;  // what is written
  u32 uid() const { return kLiveUids[user]; }
  std::string name(const LiveNoKeyNames& no_key) const {
    return by_no_key_name ? no_key[path.directory][path.name] : name_in_directory(path);
  }
};

using LivePlan = std::vector<LiveOp>;

LivePlan make_live_plan(u64 seed);
std::string text_of(const LiveOp& op);
std::string text_of(const LivePlan& plan);
std::optional<LivePlan> live_plan_from(std::string_view text);  // none: it cannot be read
bool wants_no_key_names(const LivePlan& plan);

// What both sides say, so that it can be compared as text.
std::vector<std::byte> live_data(const LiveOp& op);
std::vector<std::byte> live_key(u32 key);
std::string live_error(int error);   // "0", "ENOKEY"
std::string live_bytes(Bytes data);  // how many, and their hash
std::string live_names(std::vector<std::string> names);

}  // namespace latchkey::tests
