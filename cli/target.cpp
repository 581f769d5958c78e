#include "cli/target.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/secret_work.h"

namespace latchkey::cli {

std::optional<Target> parse_target(const std::string& text) {
  const std::size_t split = text.rfind(":/");
  if (split == std::string::npos || split == 0) return std::nullopt;
  return Target{text.substr(0, split), text.substr(split + 1)};
}

namespace {

// Closes what was opened here; leaves the caller's descriptors alone.
struct KeyDescriptor {
  int fd = -1;
  bool ours = false;
  ~KeyDescriptor() {
    if (ours && fd >= 0) ::close(fd);
  }
};

Result<void> open_key(const KeySource& source, KeyDescriptor& descriptor) {
  if (source.fd >= 0) {
    descriptor.fd = source.fd;
  } else if (source.file == "-") {
    descriptor.fd = STDIN_FILENO;
  } else {
    descriptor.fd = ::open(source.file.c_str(), O_RDONLY | O_CLOEXEC);
    descriptor.ours = true;
  }
  if (descriptor.fd >= 0) return {};
  const int error = errno;
  if (error == ENOENT)
    return fail_os(Errc::not_found, error, "there is no such key file; key generate makes one");
  return fail_os(error == EACCES ? Errc::permission : Errc::invalid, error,
                 "the key file cannot be opened");
}

}  // namespace

Result<SecretBytes> read_key(const KeySource& source) {
  KeyDescriptor descriptor;
  LK_TRYV(open_key(source, descriptor));
  // One byte more than the largest key, so that a longer file is seen as such.
  LK_TRY(SecretBytes buffer, SecretBytes::create(crypto::kMasterKeyBytesMax + 1));
  std::size_t size = 0;
  while (size < buffer.bytes().size()) {
    const ssize_t got =
        ::read(descriptor.fd, buffer.bytes().data() + size, buffer.bytes().size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const bool usage = errno == EISDIR || errno == EBADF;
      return fail_os(usage ? Errc::invalid : Errc::io, errno,
                     errno == EISDIR  ? "is a directory; a key is a file of 32 to 64 raw bytes"
                     : errno == EBADF ? "is not open for reading"
                                      : "the key cannot be read");
    }
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  if (size == 0) return fail(Errc::invalid, "the key file is empty; a key is 32 to 64 raw bytes");
  if (size < crypto::kMasterKeyBytesMin)
    return fail(Errc::invalid, "the key is shorter than 32 bytes; a key is 32 to 64 raw bytes");
  if (size > crypto::kMasterKeyBytesMax)
    return fail(Errc::invalid, "the key is longer than 64 bytes; a key is 32 to 64 raw bytes");
  LK_TRY(SecretBytes key, SecretBytes::create(size));
  const SecretWork work;
  std::memcpy(key.bytes().data(), buffer.bytes().data(), size);
  return key;
}

Result<std::unique_ptr<engine::Device>> open_image(const std::string& image,
                                                   const engine::OpenDeviceOptions& options) {
  auto device = engine::open_device(image, options);
  if (!device && device.error().code == Errc::not_found && options.create_size != 0)
    return fail_os(Errc::wrong_device, ENOENT, "there is no such folder to make it in");
  if (!device && device.error().code == Errc::not_found)
    return fail_os(Errc::wrong_device, ENOENT,
                   "there is no such device or image; mkfs --size makes one");
  return device;
}

Result<Opened> open_volume(const std::string& image, const volume::VolumeOptions& options) {
  Opened opened;
  engine::OpenDeviceOptions device_options;
  device_options.read_only = options.read_only;
  LK_TRY(opened.device, open_image(image, device_options));
  LK_TRY(opened.volume, volume::Volume::open(*opened.device, options, system_env()));
  warn_if_stepped_back(image, opened.volume->facts().store.stepped_back);
  return opened;
}

volume::Caller caller() { return volume::Caller{static_cast<u32>(::geteuid())}; }

}  // namespace latchkey::cli
