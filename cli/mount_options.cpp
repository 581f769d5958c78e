#include "cli/mount_options.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <sstream>
#include <string_view>

#include "base/text.h"

namespace latchkey::cli {
namespace {

// What the kernel or libfuse does with them is theirs.
constexpr std::array<std::string_view, 13> kKernels = {
    "allow_other", "allow_root", "suid",  "nosuid", "dev",     "nodev",  "exec",
    "noexec",      "sync",       "async", "atime",  "dirsync", "noatime"};

// What fstab has for others, and what mount(8) passes that is so here anyway.
constexpr std::array<std::string_view, 22> kIgnored = {
    "defaults",   "auto",   "noauto",  "user",     "users",      "nouser",   "owner",
    "noowner",    "group",  "nogroup", "nofail",   "_netdev",    "_rnetdev", "lazytime",
    "nolazytime", "silent", "loud",    "iversion", "noiversion", "nomand"};
// The same with a value.
constexpr std::array<std::string_view, 6> kIgnoredBeginnings = {
    "x-", "X-", "comment=", "helper=", "uhelper=", "user="};

template <class T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && !text.empty();
}

// `commit=5` and its like; false: there is no such option, or not with this value.
bool take_value(std::string_view name, std::string_view value, volume::VolumeOptions& volume) {
  if (name == "compat") {
    volume.compat_fscrypt = true;
    return value == "fscrypt";
  }
  if (name == "commit") {
    u32 seconds = 0;
    if (!parse_number(value, seconds) || seconds > 86400) return false;
    volume.commit_interval_ms = seconds * 1000;
    return true;
  }
  if (name == "dirty") {
    const auto size = parse_size(std::string(value));
    if (!size || *size < kMiB) return false;
    volume.dirty_bytes_max = *size;
    return true;
  }
  if (name == "key_slots") return parse_number(value, volume.key_slots) && volume.key_slots >= 64;
  if (name == "parked") return parse_number(value, volume.parked_max) && volume.parked_max <= 60000;
  return false;
}

// Of several the last one counts, as with mount(8).
bool take_atime(const std::string& word, volume::VolumeOptions& volume,
                mount::MountOptions& mount) {
  using volume::Atime;
  if (word == "diratime" || word == "nodiratime") {
    volume.directory_atime = word == "diratime";
    return true;
  }
  if (word != "atime" && word != "noatime" && word != "relatime" && word != "norelatime" &&
      word != "strictatime" && word != "nostrictatime")
    return false;
  volume.atime = word == "noatime"       ? Atime::none
                 : word == "strictatime" ? Atime::strict
                                         : Atime::relative;
  mount.file_system.keeps_pages = volume.atime != Atime::strict;
  return true;
}

bool take_word(const std::string& word, volume::VolumeOptions& volume, mount::MountOptions& mount) {
  if (word == "ro" || word == "rw") {
    volume.read_only = mount.session.read_only = word == "ro";
    return true;
  }
  if (word == "discard" || word == "nodiscard") {
    volume.discard = word == "discard";
    return true;
  }
  if (word == "status_public") return volume.status_public = true;
  if (word == "companion" || word == "nocompanion") {
    mount.session.companion = word == "companion";
    return true;
  }
  if (word == "caller_memory") return mount.file_system.caller_memory = true;
  const bool is_atime = take_atime(word, volume, mount);
  if (std::ranges::find(kKernels, word) != kKernels.end()) {
    mount.session.kernel.push_back(word);
    return true;
  }
  if (is_atime || std::ranges::find(kIgnored, word) != kIgnored.end()) return true;
  if (std::ranges::any_of(kIgnoredBeginnings,
                          [&](std::string_view beginning) { return word.starts_with(beginning); }))
    return true;
  const std::size_t split = word.find('=');
  if (split == std::string::npos) return false;
  return take_value(std::string_view(word).substr(0, split),
                    std::string_view(word).substr(split + 1), volume);
}

}  // namespace

Result<void> parse_mount_options(const std::string& words, volume::VolumeOptions& volume,
                                 mount::MountOptions& mount, std::string& unknown) {
  std::istringstream list(words);
  for (std::string word; std::getline(list, word, ',');) {
    if (word.empty() || take_word(word, volume, mount)) continue;
    unknown = word;
    return fail(Errc::invalid, "there is no such mount option, or not with this value");
  }
  return {};
}

}  // namespace latchkey::cli
