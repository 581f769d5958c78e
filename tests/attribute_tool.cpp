// attribute_tool IMAGE: makes a store with extended attributes of every kind, for a reader in
// another language (decryptor_test.py). The master key is 00 01 .. 3f.

#include <cstdio>

#include "base/check.h"
#include "engine/file_device.h"
#include "volume/paths.h"

namespace latchkey {
namespace {

std::vector<std::byte> pattern(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i % 251);
  return bytes;
}

Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

Result<void> set_all(volume::Volume& volume, const std::string& path) {
  LK_TRY(const auto handle, volume::open_path(volume, {}, path, {.write = true, .create = true}));
  LK_TRYV(volume.set_xattr(handle, "user.name", bytes_of("a value")));
  LK_TRYV(volume.set_xattr(handle, "user.empty", {}));
  LK_TRYV(volume.set_xattr(handle, "user.long", pattern(60'000)));
  LK_TRYV(volume.set_xattr(handle, "trusted.plain", bytes_of("for all to see")));
  LK_TRYV(volume.set_attributes(handle, {.atime_ns = -1, .mtime_ns = 1'000'000'001}));
  return volume.close_handle(handle);
}

Result<void> make(const char* image) {
  LK_TRY(const auto device, engine::open_device(image, {.create_size = 64 * kMiB}));
  LK_TRYV(volume::Volume::mkfs(*device, {}, system_env()));
  LK_TRY(const auto volume, volume::Volume::open(*device, {}, system_env()));
  LK_TRY(SecretBytes key, SecretBytes::create(64));
  for (std::size_t i = 0; i < 64; ++i) key.bytes()[i] = static_cast<std::byte>(i);
  LK_TRY(const auto id, volume->add_key({}, std::move(key)));
  LK_TRY(const auto vault, volume::make_directory(*volume, {}, "/vault"));
  LK_TRYV(volume->set_policy({}, vault, id));
  LK_TRYV(set_all(*volume, "/vault/file"));
  LK_TRYV(set_all(*volume, "/file"));
  LK_TRY(const auto file, volume::resolve(*volume, "/vault/file"));
  LK_TRYV(volume->close());
  LK_TRY(const auto locked, volume::Volume::open(*device, {.compat_fscrypt = true}, system_env()));
  LK_TRYV(locked->set_xattr(file, "user.clear", bytes_of("without the key")));
  return locked->close();
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  if (argc != 2) return 1;
  const auto made = latchkey::make(argv[1]);
  if (!made) std::fprintf(stderr, "attribute_tool: %s\n", made.error().what);
  return made ? 0 : 1;
}
