#include "tests/support/image_opening.h"

#include <random>
#include <string>

#include "base/check.h"
#include "tests/support/keys.h"
#include "tests/support/sim_device.h"
#include "volume/paths.h"

namespace latchkey::tests {

namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr Caller kCaller{1000};
constexpr u64 kKeySeed = 7;
constexpr std::size_t kDirectoriesMax = 64;  // a damaged tree may lead in circles
constexpr std::size_t kFilesMax = 64;
constexpr std::size_t kReadBytes = 40000;

// Time and chance that repeat, so that an input does the same again.
class RepeatingEnv final : public Env {
 public:
  u64 monotonic_ns() override { return ++now_; }
  u64 realtime_ns() override { return u64{1'800'000'000} * 1'000'000'000 + ++now_; }
  void random(MutableBytes bytes) override {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
  }

 private:
  u64 now_ = 0;
  std::mt19937_64 random_{1};
};

VolumeOptions options_for(bool read_only) {
  VolumeOptions options;
  options.read_only = read_only;
  options.inline_writeback = true;
  options.commit_interval_ms = 0;
  options.dirty_bytes_max = kMiB;
  options.key_slots = 8;
  return options;
}

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

Found walk(Volume& volume) {
  Found found;
  found.directories.push_back(kRootInode);
  for (std::size_t i = 0; i < found.directories.size(); ++i) {
    const InodeId directory = found.directories[i];
    (void)volume.stat(directory);
    auto entries = volume.read_directory(directory);
    if (!entries) continue;
    for (DirEntry& entry : *entries) {
      (void)volume.lookup(directory, entry.name);
      (void)volume.stat(entry.inode);
      if (entry.kind == FileKind::directory && found.directories.size() < kDirectoriesMax)
        found.directories.push_back(entry.inode);
      else if (found.files.size() < kFilesMax)
        found.files.push_back({directory, std::move(entry.name)});
    }
  }
  return found;
}

bool read_file(Volume& volume, const Found::File& file) {
  auto handle = volume.open_file(kCaller, file.directory, file.name, {}, 0, file.name);
  if (!handle) return false;
  static std::vector<std::byte> buffer(kReadBytes);
  const auto stat = volume.stat(*handle);
  bool whole = stat && stat->size <= buffer.size();
  const auto read = volume.read(*handle, 0, buffer);
  whole = whole && read && *read == stat->size;
  if (stat && stat->size > buffer.size()) {
    (void)volume.read(*handle, stat->size - 5000, buffer);
    (void)volume.read(*handle, stat->size / 2 + 1, buffer);
  }
  (void)volume.map(*handle);
  (void)volume.close_handle(*handle);
  return whole;
}

u32 read_everything(engine::Device& device, bool unlocked) {
  RepeatingEnv env;
  auto volume = Volume::open(device, options_for(true), env);
  if (!volume) return 0;
  if (unlocked) (void)(*volume)->add_key(kCaller, in_arena(raw_key(kKeySeed)));
  const Found found = walk(**volume);
  u32 files = 0;
  for (const Found::File& file : found.files) files += read_file(**volume, file) ? 1 : 0;
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
  auto opened = Volume::open(device, options_for(false), env);
  if (!opened) return;
  Volume& volume = **opened;
  const auto key = volume.add_key(kCaller, in_arena(raw_key(kKeySeed)));
  const Found found = walk(volume);
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

u32 open_everything(const StoreImage& image) {
  if (image.device_blocks == 0) return 0;
  SimDevice device(device_of(image.device_blocks));
  device.restore(image.to_sim());
  check_everything(device);
  (void)read_everything(device, false);
  const u32 files = read_everything(device, true);
  change_everything(device);
  check_everything(device);
  return files;
}

bool repair_everything(const StoreImage& image) {
  if (image.device_blocks == 0) return false;
  RepeatingEnv env;
  SimDevice device(device_of(image.device_blocks));
  device.restore(image.to_sim());
  const auto findings = [&] {
    const auto checked = check_volume(device, {.data = true, .progress = {}}, env);
    return checked ? checked->findings.size() : ~std::size_t{0};
  };
  const std::size_t findings_before = findings();
  const u32 files_before = read_everything(device, true);
  const auto repaired = repair_volume(device, env);
  LK_CHECK(findings() <= findings_before);
  LK_CHECK(read_everything(device, true) >= files_before);
  if (!repaired) return false;
  const u64 writes = device.counters().writes;
  const auto again = repair_volume(device, env);
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

StoreImage make_seed(const SeedOptions& options) {
  RepeatingEnv env;
  SimDevice device(device_of(options.device_bytes / engine::kBlockBytes));
  MkfsOptions mkfs;
  mkfs.node_bytes = options.node_bytes;
  mkfs.label = "seed";
  LK_CHECK(Volume::mkfs(device, mkfs, env).has_value());
  auto opened = Volume::open(device, options_for(false), env);
  LK_CHECK(opened.has_value());
  Volume& volume = **opened;
  if (options.plain) {
    LK_CHECK(make_directory(volume, kCaller, "/plain").has_value());
    fill(volume, "/plain", options.files);
  }
  LK_CHECK(volume.sync().has_value());
  if (options.encrypted) {
    const auto key = volume.add_key(kCaller, in_arena(raw_key(kKeySeed)));
    const auto directory = make_directory(volume, kCaller, "/vault");
    LK_CHECK(key.has_value() && directory.has_value());
    LK_CHECK(volume.set_policy(kCaller, *directory, *key).has_value());
    fill(volume, "/vault", options.files);
  }
  LK_CHECK(volume.sync().has_value());
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
      make_seed({.node_bytes = 16384, .plain = true, .encrypted = true}),
      make_seed({.device_bytes = 140 * kMiB, .plain = true, .orphan = true}),
  };
}

}  // namespace latchkey::tests
