#pragma once
// IMG and TARGET:PATH arguments, keys from files and descriptors, and a volume opened for one verb.

#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/secret.h"
#include "cli/report.h"
#include "engine/file_device.h"
#include "volume/volume.h"

namespace latchkey::cli {

struct Target {
  std::string image;
  std::string path;  // begins with '/'
};

// Splits at the last ":/"; nothing without one.
std::optional<Target> parse_target(const std::string& text);

// Where a raw key comes from; never from argv. At most one is set.
struct KeySource {
  std::string file;  // "-" is standard input
  int fd = -1;
  bool given() const { return !file.empty() || fd >= 0; }
  std::string name() const { return file.empty() ? "--key-fd" : file; }
};

// 32 to 64 raw bytes, read straight into the arena. Errc::invalid for another size.
Result<SecretBytes> read_key(const KeySource& source);

struct Opened {
  std::unique_ptr<engine::Device> device;
  std::unique_ptr<volume::Volume> volume;  // goes first
};
Result<std::unique_ptr<engine::Device>> open_image(const std::string& image,
                                                   const engine::OpenDeviceOptions& options);
// Opens device and volume; an absent device is wrong_device.
Result<Opened> open_volume(const std::string& image, const volume::VolumeOptions& options);
volume::Caller caller();

// Opens the image's volume, adds the key if one is given, runs work(volume, id), closes. The first
// error is said on standard error and decides the exit code.
template <class Work>
Exit with_volume(const Common& common, const std::string& image, const KeySource& key,
                 volume::VolumeOptions options, Work work) {
  options.discard = common.discard;
  std::optional<SecretBytes> secret;
  if (key.given()) {
    auto read = read_key(key);
    if (!read) return report_error(common, key.name(), read.error());
    secret.emplace(std::move(*read));
  }
  auto opened = open_volume(image, options);
  if (!opened) return report_image(common, image, opened.error());
  std::optional<crypto::KeyId> id;
  if (secret) {
    auto added = opened->volume->add_key(caller(), std::move(*secret));
    if (!added) return report_error(common, key.name(), added.error());
    id = *added;
  }
  const Exit exit = work(*opened->volume, id);
  if (auto closed = opened->volume->close(); !closed && exit == Exit::ok)
    return report_image(common, image, closed.error());
  return exit;
}

}  // namespace latchkey::cli
