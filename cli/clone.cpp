// clone: a file of the store gets a second name's worth of its own, as cp --reflink=always does.

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/copy.h"

namespace latchkey::cli {

namespace {

struct Cloned {
  u64 bytes = 0;
  std::string failed;  // the name that an error is about
};

Result<void> clone_file(volume::Volume& volume, const std::string& source,
                        const std::string& target, Cloned& cloned) {
  cloned.failed = source;
  LK_TRY(const volume::HandleId from, volume::open_path(volume, caller(), source, {}));
  LK_TRY(const volume::Stat stat, volume.stat(from));
  cloned.failed = target;
  const bool there = volume::resolve(volume, target).has_value();
  volume::OpenFlags flags{.read = false, .write = true, .create = true};
  LK_TRY(const volume::HandleId to, volume::open_path(volume, caller(), target, flags, stat.mode));
  LK_TRY(const volume::Stat old, volume.stat(to));
  // The source's last block may end the target only. What cannot be cloned overwrites nothing.
  Result<void> done;
  if (old.size > stat.size && old.key_id == stat.key_id) done = volume.truncate(to, stat.size);
  if (done) done = volume.clone_range(from, 0, to, 0, 0);
  LK_TRYV(volume.close_handle(from));
  LK_TRYV(volume.close_handle(to));
  if (!done && !there) {
    LK_TRY(const auto parent, volume::resolve_parent(volume, target));
    LK_TRYV(volume.unlink(parent.directory, parent.name));
  }
  if (done) cloned.bytes = stat.size;
  return done;
}

}  // namespace

Exit run_clone(const Common& common, const CopyArgs& args) {
  const auto source = parse_target(args.source);
  if (!source) return report_usage(common, args.source, "is not of the form IMG:/path");
  const auto target = parse_target(args.destination);
  if (!target) return report_usage(common, args.destination, "is not of the form IMG:/path");
  if (source->image != target->image)
    return report_usage(common, args.destination, "is in another image than the source");
  Cloned cloned;
  const Exit exit =
      with_volume(common, source->image, args.key, {},
                  [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                    std::string path = target->path;
                    const auto there = volume::resolve(volume, path);
                    if (there) {
                      const auto stat = volume.stat(*there);
                      if (!stat) return report_error(common, path, stat.error());
                      if (stat->kind == volume::FileKind::directory)
                        path = join(path, source->path.substr(source->path.rfind('/') + 1));
                    }
                    auto done = clone_file(volume, source->path, path, cloned);
                    if (done) done = volume.sync();
                    if (!done) return report_error(common, cloned.failed, done.error());
                    return Exit::ok;
                  });
  if (exit == Exit::ok && common.json)
    print_json(common, {{"source", source->path}, {"path", target->path}, {"bytes", cloned.bytes}});
  else if (exit == Exit::ok && !common.quiet)
    fmt::print("cloned {}\n", format_bytes(cloned.bytes));
  return exit;
}

}  // namespace latchkey::cli
