#include "engine/device_identity.h"

#include <blkid/blkid.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string_view>

#include "engine/fd.h"
#include "engine/file_device.h"

namespace latchkey::engine {
namespace {

constexpr unsigned kLoopMajor = 7;
constexpr u64 kSectorBytes = 512;
// libblkid's return values of blkid_do_safeprobe().
constexpr int kProbeFound = 0;
constexpr int kProbeNothing = 1;
constexpr int kProbeAmbivalent = -2;

std::string sysfs_folder(const struct stat& device) {
  return fmt::format("/sys/dev/block/{}:{}", major(device.st_rdev), minor(device.st_rdev));
}

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line.empty()) return std::nullopt;
  return line;
}

struct ProbeDeleter {
  void operator()(blkid_probe probe) const { ::blkid_free_probe(probe); }
};
using Probe = std::unique_ptr<std::remove_pointer_t<blkid_probe>, ProbeDeleter>;

std::string_view value_of(blkid_probe probe, const char* name) {
  const char* value = nullptr;
  if (::blkid_probe_lookup_value(probe, name, &value, nullptr) != 0) return {};
  return value;
}

std::string describe(blkid_probe probe) {
  const std::string_view type = value_of(probe, "TYPE");
  const std::string_view usage = value_of(probe, "USAGE");
  if (type.empty()) {
    const std::string_view table = value_of(probe, "PTTYPE");
    return table.empty() ? "an unnamed signature" : fmt::format("{} partition table", table);
  }
  if (usage == "filesystem") return fmt::format("{} file system", type);
  if (usage == "raid") return fmt::format("{} member", type);
  if (usage == "crypto") return fmt::format("{} encrypted volume", type);
  if (type == "swap") return "swap area";
  return fmt::format("{} signature", type);
}

Result<Probe> make_probe(int fd) {
  Probe probe(::blkid_new_probe());
  if (probe == nullptr) return fail(Errc::no_memory, "no memory to look for signatures");
  const bool ready = ::blkid_probe_set_device(probe.get(), fd, 0, 0) == 0 &&
                     ::blkid_probe_enable_superblocks(probe.get(), 1) == 0 &&
                     ::blkid_probe_set_superblocks_flags(
                         probe.get(), BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE) == 0 &&
                     ::blkid_probe_enable_partitions(probe.get(), 1) == 0;
  if (!ready) return fail_os(Errc::io, errno, "the device cannot be searched for signatures");
  return probe;
}

Errc errc_of_open(int os_errno) {
  switch (os_errno) {
    case ENOENT:
    case ENOTDIR:
      return Errc::not_found;
    case EACCES:
    case EPERM:
      return Errc::permission;
    default:
      return Errc::io;
  }
}

}  // namespace

bool is_loop_device(const struct stat& device) {
  return S_ISBLK(device.st_mode) && major(device.st_rdev) == kLoopMajor;
}

std::optional<std::string> loop_device_of(const struct stat& file) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block", error)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("loop")) continue;
    const auto backing = first_line(entry.path() / "loop/backing_file");
    struct stat found{};
    if (!backing || ::stat(backing->c_str(), &found) != 0) continue;
    if (found.st_dev == file.st_dev && found.st_ino == file.st_ino) return "/dev/" + name;
  }
  return std::nullopt;
}

std::optional<std::string> backing_file_of(const struct stat& loop_device) {
  return first_line(sysfs_folder(loop_device) + "/loop/backing_file");
}

bool is_mounted(const struct stat& block_device) {
  const std::string number =
      fmt::format("{}:{}", major(block_device.st_rdev), minor(block_device.st_rdev));
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    // "36 35 98:0 /root /point options [fields] - type source options" (proc_pid_mountinfo(5)).
    std::istringstream words(line);
    std::string mount, parent, device, word, type, source;
    words >> mount >> parent >> device;
    if (device == number) return true;
    while (words >> word && word != "-") {
    }
    words >> type >> source;
    // btrfs and others mount under a number of their own.
    struct stat found{};
    if (source.starts_with('/') && ::stat(source.c_str(), &found) == 0 && S_ISBLK(found.st_mode) &&
        found.st_rdev == block_device.st_rdev)
      return true;
  }
  return false;
}

u64 queue_limit(const struct stat& device, const char* name) {
  const std::string folder = sysfs_folder(device);
  auto line = first_line(fmt::format("{}/queue/{}", folder, name));
  if (!line) line = first_line(fmt::format("{}/../queue/{}", folder, name));  // a partition
  u64 value = 0;
  if (line) std::from_chars(line->data(), line->data() + line->size(), value);
  return value;
}

Result<std::string> foreign_signature(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) {
    return fail_os(errc_of_open(errno), errno, "the device cannot be found");
  }
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return fail(Errc::wrong_device, "neither a file nor a block device");
  }
  if (S_ISREG(status.st_mode) && static_cast<u64>(status.st_size) < kSectorBytes) return "";
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return fail_os(errc_of_open(errno), errno, "the device cannot be opened");

  LK_TRY(const Probe probe, make_probe(fd.get()));
  switch (::blkid_do_safeprobe(probe.get())) {
    case kProbeFound:
      return describe(probe.get());
    case kProbeNothing:
      return "";
    case kProbeAmbivalent:
      return "several conflicting signatures";
    default:
      return fail_os(Errc::io, errno, "the device cannot be searched for signatures");
  }
}

}  // namespace latchkey::engine
