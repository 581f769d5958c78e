#include "tests/support/image_opening.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>

#include "base/check.h"
#include "tests/support/keys.h"
#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {

namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr Caller kCaller{1000};
constexpr std::size_t kDirectoriesMax = 64;  // a damaged tree may lead in circles
constexpr std::size_t kFilesMax = 64;
constexpr std::size_t kAll = 4000;  // more than any of the seeds has
constexpr std::size_t kReadBytes = 40000;

SimConfig device_of(u64 blocks) {
  return {.size_bytes = blocks * engine::kBlockBytes, .shuffle = false};
}

struct Found {
  std::vector<InodeId> directories;
  struct File {
    InodeId directory;
    std::string name;
  };
  std::vector<File> files;
};

Found walk(Volume& volume, std::size_t directories_max, std::size_t files_max) {
  Found found;
  std::set<InodeId> seen{kRootInode};
  found.directories.push_back(kRootInode);
  for (std::size_t i = 0; i < found.directories.size(); ++i) {
    const InodeId directory = found.directories[i];
    (void)volume.stat(directory);
    auto entries = volume.read_directory(directory);
    if (!entries) continue;
    for (DirEntry& entry : *entries) {
      (void)volume.lookup(directory, entry.name);
      (void)volume.stat(entry.inode);
      if (entry.kind == FileKind::directory || entry.kind == FileKind::subvolume) {
        if (found.directories.size() < directories_max && seen.insert(entry.inode).second)
          found.directories.push_back(entry.inode);
      } else if (found.files.size() < files_max) {
        found.files.push_back({directory, std::move(entry.name)});
      }
    }
  }
  return found;
}

using Files = std::map<InodeId, u64>;  // read without an error, so many bytes of them

std::optional<std::pair<InodeId, u64>> read_file(Volume& volume, const Found::File& file,
                                                 const Files* before) {
  auto handle = volume.open_file(kCaller, file.directory, file.name, {}, 0, file.name);
  if (!handle) return std::nullopt;
  static std::vector<std::byte> buffer(kReadBytes);
  const auto stat = volume.stat(*handle);
  u64 size = stat ? std::min<u64>(stat->size, buffer.size()) : buffer.size();
  // A file that became longer is there if all that could be read before can be.
  if (before != nullptr && stat)
    if (const auto it = before->find(stat->inode); it != before->end())
      size = std::min(size, it->second);
  const auto read = volume.read(*handle, 0, MutableBytes(buffer).first(size));
  const bool whole = stat && read && *read == size;
  if (stat && stat->size > buffer.size()) {
    (void)volume.read(*handle, stat->size - 5000, buffer);
    (void)volume.read(*handle, stat->size / 2 + 1, buffer);
  }
  (void)volume.map(*handle);
  (void)volume.close_handle(*handle);
  return whole ? std::optional(std::pair(stat->inode, size)) : std::nullopt;
}

void read_further(Volume& volume, InodeId inode) {
  (void)volume.read_link(inode);
  if (const auto names = volume.list_xattrs(inode))
    for (const std::string& name : *names) (void)volume.get_xattr(inode, name);
}

// `before`: of these files not more than could be read then.
Files read_everything(engine::Device& device, bool unlocked, std::size_t files_max = kFilesMax,
                      const Files* before = nullptr) {
  RepeatingEnv env;
  Files files;
  auto volume = Volume::open(device, image_options(true), env);
  if (!volume) return files;
  if (unlocked) (void)(*volume)->add_key(kCaller, in_arena(raw_key(kImageKeySeed)));
  const Found found = walk(**volume, std::min(files_max, kDirectoriesMax), files_max);
  for (const Found::File& file : found.files) {
    if (const auto read = read_file(**volume, file, before)) files.insert(*read);
    if (const auto inode = (*volume)->lookup(file.directory, file.name))
      read_further(**volume, *inode);
  }
  for (const InodeId directory : found.directories)
    if (auto handle = (*volume)->open_directory(kCaller, directory, "")) {
      (void)(*volume)->read_directory(*handle);
      (void)(*volume)->close_handle(*handle);
    }
  (void)(*volume)->facts();
  (void)(*volume)->close();
  return files;
}

void change_file(Volume& volume, const Found::File& file, Bytes data) {
  auto handle = volume.open_file(kCaller, file.directory, file.name, {.write = true}, 0, file.name);
  if (!handle) return;
  (void)volume.write(*handle, 1000, data);
  (void)volume.append(*handle, data);
  (void)volume.fsync(*handle);
  (void)volume.truncate(*handle, 5000);
  (void)volume.write(*handle, 30000, data.first(10));
  (void)volume.close_handle(*handle);
}

void change_everything(engine::Device& device) {
  RepeatingEnv env;
  auto opened = Volume::open(device, image_options(false), env);
  if (!opened) return;
  Volume& volume = **opened;
  const auto key = volume.add_key(kCaller, in_arena(raw_key(kImageKeySeed)));
  const Found found = walk(volume, kDirectoriesMax, kFilesMax);
  const std::vector<std::byte> data(9000, std::byte{42});
  for (std::size_t i = 0; i < found.files.size() && i < 6; ++i)
    change_file(volume, found.files[i], data);
  for (std::size_t i = 0; i < found.directories.size() && i < 6; ++i) {
    change_file(volume, {found.directories[i], "new"}, data);
    const auto made = volume.mkdir(kCaller, found.directories[i], "made", 0755);
    if (made && key) (void)volume.set_policy(kCaller, *made, *key);
    const Found::File file{made.value_or(kRootInode), "file"};
    auto handle = volume.open_file(kCaller, file.directory, file.name,
                                   {.write = true, .create = true}, 0644, file.name);
    if (handle) {
      (void)volume.write(*handle, 0, data);
      (void)volume.close_handle(*handle);
    }
  }
  (void)volume.sync();
  for (std::size_t i = 0; i < found.files.size(); i += 2)
    (void)volume.unlink(found.files[i].directory, found.files[i].name);
  if (auto entries = volume.read_directory(kRootInode))
    for (const DirEntry& entry : *entries) (void)remove_tree(volume, "/" + entry.name);
  if (key) (void)volume.remove_key(kCaller, *key, keymgr::RemovalMode::soft);
  (void)volume.sync();
  (void)volume.close();
}

void check_everything(engine::Device& device) {
  RepeatingEnv env;
  engine::CheckOptions options;
  options.data = true;
  (void)check_volume(device, options, env);
}

}  // namespace

VolumeOptions image_options(bool read_only) {
  VolumeOptions options;
  options.read_only = read_only;
  options.inline_writeback = true;
  options.commit_interval_ms = 0;
  options.dirty_bytes_max = kMiB;
  options.key_slots = 8;
  return options;
}

u32 open_everything(const StoreImage& image) {
  if (image.device_blocks == 0) return 0;
  SimDevice device(device_of(image.device_blocks));
  device.restore(image.to_sim());
  check_everything(device);
  (void)read_everything(device, false);
  const auto files = read_everything(device, true).size();
  change_everything(device);
  check_everything(device);
  return static_cast<u32>(files);
}

namespace {

std::vector<std::string> lines(const std::vector<engine::Finding>& findings) {
  std::vector<std::string> all;
  for (const engine::Finding& finding : findings)
    all.push_back(finding.where + ": " + finding.what);
  return all;
}

void tell(const char* what, const std::vector<std::string>& all) {
  for (const std::string& line : all) std::fprintf(stderr, "%s: %s\n", what, line.c_str());
}

}  // namespace

bool repair_everything(const StoreImage& image) {
  if (image.device_blocks == 0) return false;
  RepeatingEnv env;
  SimDevice device(device_of(image.device_blocks));
  device.restore(image.to_sim());
  // As many as there can be where it cannot be opened.
  const auto findings = [&] {
    const auto checked = check_volume(device, {.data = true, .progress = {}}, env);
    return checked ? lines(checked->findings) : std::vector<std::string>(1'000'000);
  };
  const std::vector<std::string> findings_before = findings();
  const Files files_before = read_everything(device, true, kAll);
  const auto repaired = repair_volume(device, env);
  const std::vector<std::string> findings_after = findings();
  std::vector<std::string> lost;
  const Files left = read_everything(device, true, kAll, &files_before);
  for (const auto& [inode, size] : files_before)
    if (const auto it = left.find(inode); it == left.end() || it->second < size)
      lost.push_back(to_text(inode));
  if (findings_after.size() > findings_before.size() || !lost.empty()) {
    tell("before", findings_before);
    if (repaired) tell("mended", lines(repaired->mended));
    tell("after", findings_after);
    tell("lost", lost);
  }
  LK_CHECK(findings_after.size() <= findings_before.size());
  LK_CHECK(lost.empty());
  if (!repaired) return false;
  const u64 writes = device.counters().writes;
  const auto again = repair_volume(device, env);
  if (again && !again->mended.empty()) {
    tell("mended", lines(repaired->mended));
    tell("and again", lines(again->mended));
  }
  if (!again) std::fprintf(stderr, "again: %s\n", again.error().what);
  LK_CHECK(again && again->mended.empty() && device.counters().writes == writes);
  return !repaired->mended.empty();
}

// --- seeds -------------------------------------------------------------------------------------

namespace {

struct SeedOptions {
  u64 device_bytes = 16 * kMiB;
  u32 node_bytes = 4096;
  u32 files = 4;  // in each directory
  bool plain = false, encrypted = false, orphan = false;
  bool sharing = false;  // of everything: links, attributes, a subvolume in another, snapshots
  bool compat = false;   // compat_fscrypt, and an attribute as it leaves them
};

void fill(Volume& volume, const std::string& directory, u32 files) {
  std::mt19937_64 random(files);
  for (u32 i = 0; i < files; ++i) {
    const std::string name = directory + "/a file of the number " + std::to_string(i);
    auto handle = open_path(volume, kCaller, name, {.write = true, .create = true});
    LK_CHECK(handle.has_value());
    // One of several pieces with a hole, small ones, empty ones.
    const std::vector<std::byte> data(i == 0 ? 9000 : i < 3 ? 100 : 0, std::byte(i + 1));
    if (!data.empty()) {
      LK_CHECK(volume.write(*handle, 0, data).has_value());
      if (i == 0) LK_CHECK(volume.write(*handle, 24000, data).has_value());
    }
    LK_CHECK(volume.close_handle(*handle).has_value());
  }
  LK_CHECK(make_directory(volume, kCaller, directory + "/below").has_value());
}

void share(Volume& volume) {
  const auto must = [](const auto& result) { LK_CHECK(result.has_value()); };
  must(volume.create_subvolume(kCaller, kRootInode, "area", 0755));
  const InodeId area = *resolve(volume, "/area");
  fill(volume, "/area", 3);
  must(volume.create_subvolume(kCaller, *resolve(volume, "/area/below"), "inner", 0755));
  fill(volume, "/area/below/inner", 1);
  const std::string first = "a file of the number 0";
  const InodeId file = *volume.lookup(area, first);
  must(volume.link(file, *resolve(volume, "/area/below"), "another name"));
  must(volume.symlink(kCaller, area, "link", std::string(2000, 'l')));
  must(volume.make_node(kCaller, area, "fifo", {}));
  must(volume.set_xattr(file, "user.long", std::vector<std::byte>(5000, std::byte{1})));
  must(volume.set_xattr(area, "trusted.short", {}));
  must(volume.snapshot(kCaller, area, kRootInode, "frozen", true));
  must(volume.unlink(area, first));
  must(volume.snapshot(kCaller, area, kRootInode, "copy", false));
  const InodeId vault = *resolve(volume, "/vault");
  must(volume.symlink(kCaller, vault, "link", "in secret"));
  must(volume.set_xattr(*volume.lookup(vault, first), "user.secret",
                        std::vector<std::byte>(100, std::byte{1})));
}

StoreImage make_seed(const SeedOptions& options) {
  RepeatingEnv env;
  SimDevice device(device_of(options.device_bytes / engine::kBlockBytes));
  MkfsOptions mkfs;
  mkfs.node_bytes = options.node_bytes;
  mkfs.label = "seed";
  LK_CHECK(Volume::mkfs(device, mkfs, env).has_value());
  VolumeOptions volume_options = image_options(false);
  volume_options.compat_fscrypt = options.compat;
  auto opened = Volume::open(device, volume_options, env);
  LK_CHECK(opened.has_value());
  Volume& volume = **opened;
  if (options.plain) {
    LK_CHECK(make_directory(volume, kCaller, "/plain").has_value());
    fill(volume, "/plain", options.files);
  }
  LK_CHECK(volume.sync().has_value());
  if (options.encrypted) {
    const auto key = volume.add_key(kCaller, in_arena(raw_key(kImageKeySeed)));
    const auto directory = make_directory(volume, kCaller, "/vault");
    LK_CHECK(key.has_value() && directory.has_value());
    LK_CHECK(volume.set_policy(kCaller, *directory, *key).has_value());
    fill(volume, "/vault", options.files);
    if (options.compat)
      LK_CHECK(volume.set_xattr(*directory, "user.clear", std::vector<std::byte>(50)).has_value());
  }
  LK_CHECK(volume.sync().has_value());
  if (options.sharing) share(volume);
  if (options.orphan) {
    const std::string name = "/open and unlinked";
    auto handle = open_path(volume, kCaller, name, {.write = true, .create = true});
    LK_CHECK(handle.has_value());
    LK_CHECK(volume.write(*handle, 0, std::vector<std::byte>(6000)).has_value());
    LK_CHECK(volume.fsync(*handle).has_value());
    LK_CHECK(volume.unlink(kRootInode, name.substr(1)).has_value());
    LK_CHECK(volume.sync().has_value());
    return StoreImage::from_sim(device.snapshot(), options.device_bytes);
  }
  LK_CHECK(volume.close().has_value());
  return StoreImage::from_sim(device.snapshot(), options.device_bytes);
}

}  // namespace

std::vector<StoreImage> seed_images() {
  return {
      make_seed({}),
      make_seed({.plain = true}),
      make_seed({.encrypted = true}),
      make_seed({.plain = true, .encrypted = true, .orphan = true}),
      make_seed({.files = 60, .plain = true, .encrypted = true, .orphan = true}),
      make_seed({.node_bytes = 16384, .plain = true, .encrypted = true, .compat = true}),
      make_seed({.device_bytes = 140 * kMiB, .plain = true, .orphan = true}),
      make_seed({.plain = true, .encrypted = true, .orphan = true, .sharing = true}),
  };
}

}  // namespace latchkey::tests
