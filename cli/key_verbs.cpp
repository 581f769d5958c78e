// key generate, key id, policy set of an image.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "cli/control_policy.h"
#include "cli/verbs.h"
#include "keymgr/keyring.h"
#include "volume/paths.h"

namespace latchkey::cli {

namespace {

Result<void> save(int fd, Bytes key) {
  LK_TRYV(write_all(fd, key, "the key file cannot be written"));
  if (::fsync(fd) != 0 && errno != EINVAL)
    return fail_os(Errc::io, errno, "the key file cannot be made durable");
  return {};
}

}  // namespace

Exit run_key_generate(const Common& common, const std::string& file) {
  auto secret = SecretBytes::create(crypto::kMasterKeyBytesMax);
  if (!secret) return report_error(common, "secrets", secret.error());
  const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) {
    if (errno != EEXIST)
      return report_error(common, file, host_error("the key file cannot be made"));
    return report_error(
        common, file,
        Error{Errc::exists, "exists already; a key file is never overwritten", kNowhere, EEXIST});
  }
  system_env().random(secret->bytes());
  const auto written = save(fd, secret->bytes());
  ::close(fd);
  if (!written) {
    ::unlink(file.c_str());
    return report_error(common, file, written.error());
  }
  auto id = keymgr::Keyring::identify(std::move(*secret));
  if (!id) return report_error(common, file, id.error());
  if (common.json)
    print_json(common, {{"file", file}, {"identifier", to_hex(id->span())}});
  else if (!common.quiet)
    fmt::print("{}: a new key, identifier {}\n", file, to_hex(id->span()));
  return Exit::ok;
}

Exit run_key_id(const Common& common, const KeySource& key) {
  if (!key.given()) return report_usage(common, "key id", "needs --key-file or --key-fd");
  auto secret = read_key(key);
  if (!secret) return report_error(common, key.name(), secret.error());
  auto id = keymgr::Keyring::identify(std::move(*secret));
  if (!id) return report_error(common, key.name(), id.error());
  if (common.json)
    print_json(common, {{"identifier", to_hex(id->span())}});
  else
    fmt::print("{}\n", to_hex(id->span()));
  return Exit::ok;
}

Exit run_policy_set(const Common& common, const PathArgs& args) {
  if (is_mounted_path(args.target))
    return set_mounted_policy(common, args.target, args.key, args.key_id);
  const auto target = parse_target(args.target);
  if (!args.key.given()) return report_usage(common, "policy set", "needs --key-file or --key-fd");
  std::string identifier;
  const Exit exit =
      with_volume(common, target->image, args.key, {},
                  [&](volume::Volume& volume, const std::optional<crypto::KeyId>& id) {
                    auto directory = volume::resolve(volume, target->path);
                    if (!directory && directory.error().code == Errc::not_found)
                      directory = volume::make_directory(volume, caller(), target->path);
                    if (!directory) return report_error(common, target->path, directory.error());
                    if (auto set = volume.set_policy(caller(), *directory, *id); !set)
                      return report_error(common, target->path, set.error());
                    identifier = to_hex(id->span());
                    return Exit::ok;
                  });
  if (exit != Exit::ok) return exit;
  if (common.json)
    print_json(common, {{"path", target->path}, {"identifier", identifier}});
  else if (!common.quiet)
    fmt::print("{}: encrypted under {}\n", target->path, identifier);
  return exit;
}

}  // namespace latchkey::cli
