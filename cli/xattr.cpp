// xattr list, get, set, rm.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "cli/verbs.h"
#include "volume/paths.h"
#include "volume/xattr_records.h"

namespace latchkey::cli {

namespace {

using nlohmann::json;

// work(volume, inode) with what the target names.
template <class Work>
Exit with_inode(const Common& common, const XattrArgs& args, bool changes, Work work) {
  const auto target = parse_target(args.target);
  if (!target) return report_usage(common, args.target, "is not of the form IMG:/path");
  volume::VolumeOptions options;
  options.read_only = !changes;
  return with_volume(common, target->image, args.key, options,
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                       const auto inode = volume::resolve(volume, target->path);
                       if (!inode) return report_error(common, target->path, inode.error());
                       const Result<void> done = work(volume, *inode);
                       if (!done) return report_error(common, target->path, done.error());
                       return Exit::ok;
                     });
}

// At most one byte more than a value has, so that a longer one is seen as such.
Result<std::vector<std::byte>> read_value(const std::string& file) {
  const bool standard = file == "-";
  const int fd = standard ? STDIN_FILENO : ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::unexpected(host_error("cannot be read"));
  std::vector<std::byte> value(volume::kXattrValueBytesMax + 1);
  std::size_t size = 0;
  Result<void> done;
  while (size < value.size()) {
    const ssize_t got = ::read(fd, value.data() + size, value.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) done = std::unexpected(host_error("cannot be read"));
    if (got <= 0) break;
    size += static_cast<std::size_t>(got);
  }
  if (!standard) ::close(fd);
  LK_TRYV(done);
  value.resize(size);
  return value;
}

}  // namespace

Exit run_xattr_list(const Common& common, const XattrArgs& args) {
  return with_inode(common, args, false,
                    [&](volume::Volume& volume, volume::InodeId inode) -> Result<void> {
                      LK_TRY(auto names, volume.list_xattrs(inode));
                      std::ranges::sort(names);
                      if (common.json) print_json(common, {{"names", names}});
                      const bool terminal = ::isatty(STDOUT_FILENO) == 1;
                      for (const std::string& name : names)
                        if (!common.json) fmt::print("{}\n", terminal ? printable(name) : name);
                      return {};
                    });
}

Exit run_xattr_get(const Common& common, const XattrArgs& args) {
  return with_inode(common, args, false,
                    [&](volume::Volume& volume, volume::InodeId inode) -> Result<void> {
                      LK_TRY(const auto value, volume.get_xattr(inode, args.name));
                      if (!common.json)
                        return write_all(STDOUT_FILENO, value, "standard output cannot be written");
                      print_json(common, {{"name", args.name}, {"value_hex", to_hex(value)}});
                      return {};
                    });
}

Exit run_xattr_set(const Common& common, const XattrArgs& args) {
  if (args.value_file == "-" && args.key.file == "-")
    return report_usage(common, args.target, "standard input cannot be both key and value");
  const auto value = read_value(args.value_file);
  if (!value) return report_error(common, args.value_file, value.error());
  return with_inode(common, args, true,
                    [&](volume::Volume& volume, volume::InodeId inode) -> Result<void> {
                      LK_TRYV(volume.set_xattr(inode, args.name, *value));
                      if (common.json) print_json(common, {{"name", args.name}});
                      return {};
                    });
}

Exit run_xattr_rm(const Common& common, const XattrArgs& args) {
  return with_inode(common, args, true,
                    [&](volume::Volume& volume, volume::InodeId inode) -> Result<void> {
                      LK_TRYV(volume.remove_xattr(inode, args.name));
                      if (common.json) print_json(common, {{"name", args.name}});
                      return {};
                    });
}

}  // namespace latchkey::cli
