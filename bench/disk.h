#pragma once
// A store for a benchmark and its volume, opened with one set of options after the other.
//
// It lies on the device that LATCHKEY_BENCH_DEVICE names, and what is there is lost; else in a file
// made in the folder LATCHKEY_BENCH_PATH, TMPDIR or /var/tmp, which decides the figures: "direct"
// in the counters says whether O_DIRECT was in force.

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "bench/counted_device.h"
#include "engine/file_device.h"
#include "tests/support/keys.h"
#include "tests/support/temp_file.h"
#include "volume/paths.h"

namespace latchkey::bench {

inline std::string setting(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

inline std::string folder() {
  const std::string chosen = setting("LATCHKEY_BENCH_PATH");
  return chosen.empty() ? tests::TempFolder::disk_folder() : chosen;
}

class Disk {
 public:
  static constexpr volume::Caller kUser{1000};

  // A new store of `size` bytes for extents up to 1 MiB. A file is written once from front to back,
  // so that no benchmark pays for the first write of a block.
  static Result<std::unique_ptr<Disk>> create(u64 size) {
    const std::string device = setting("LATCHKEY_BENCH_DEVICE");
    if (!device.empty()) return create_on(device);
    std::unique_ptr<Disk> disk(new Disk);
    disk->folder_ = std::make_unique<tests::TempFolder>(folder());
    const std::string image = disk->folder_->file("image");
    fill(image, size);
    LK_TRY(auto opened, engine::open_device(image, {.create_size = size}));
    disk->device_ = std::make_unique<CountedDevice>(std::move(opened));
    LK_TRYV(disk->format());
    return disk;
  }
  // On this device; exists: there is something else on it.
  static Result<std::unique_ptr<Disk>> create_on(const std::string& device) {
    LK_TRY(const std::string foreign, engine::foreign_signature(device));
    if (!foreign.empty()) return fail(Errc::exists, "something else is on the device");
    LK_TRY(auto opened, engine::open_device(device, {}));
    return create_on(std::move(opened));
  }
  static Result<std::unique_ptr<Disk>> create_on(std::unique_ptr<engine::Device> device) {
    std::unique_ptr<Disk> disk(new Disk);
    disk->device_ = std::make_unique<CountedDevice>(std::move(device));
    LK_TRYV(disk->format());
    return disk;
  }
  // On this device, which create_on() has formatted.
  static Result<std::unique_ptr<Disk>> open_on(const std::string& device) {
    LK_TRY(auto opened, engine::open_device(device, {}));
    std::unique_ptr<Disk> disk(new Disk);
    disk->device_ = std::make_unique<CountedDevice>(std::move(opened));
    return disk;
  }
  // An empty store again.
  Result<void> format() {
    return volume::Volume::mkfs(*device_, {.extent_bytes_max = static_cast<u32>(kMiB), .label = {}},
                                system_env());
  }

  // The volume, its key added, an encrypted directory /vault.
  Result<std::unique_ptr<volume::Volume>> open(const volume::VolumeOptions& options) {
    LK_TRY(auto volume, volume::Volume::open(*device_, options, system_env()));
    LK_TRYV(add_key(*volume));
    const auto there = volume::resolve(*volume, "/vault");
    if (there) return volume;
    LK_TRY(const auto vault, volume::make_directory(*volume, kUser, "/vault"));
    LK_TRYV(volume->set_policy(kUser, vault, id_));
    return volume;
  }
  Result<void> add_key(volume::Volume& volume) {
    LK_TRY(id_, volume.add_key(kUser, tests::in_arena(raw_)));
    return {};
  }

  // Writes a file once from front to back.
  static void fill(const std::string& image, u64 size) {
    const std::vector<char> zeros(kMiB);
    std::ofstream out(image, std::ios::binary);
    for (u64 done = 0; done < size; done += zeros.size())
      out.write(zeros.data(), static_cast<std::streamsize>(zeros.size()));
  }

  const crypto::KeyId& key_id() const { return id_; }
  Result<volume::CheckFindings> check() { return volume::check_volume(*device_, {}, system_env()); }
  u64 bytes_written() const { return device_->bytes_written(); }
  bool direct() const { return device_->info().direct; }

 private:
  Disk() = default;

  const tests::Heap raw_ = tests::raw_key(1);
  crypto::KeyId id_;
  std::unique_ptr<tests::TempFolder> folder_;
  std::unique_ptr<CountedDevice> device_;
};

}  // namespace latchkey::bench
