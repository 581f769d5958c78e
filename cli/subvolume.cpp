// subvolume create, snapshot, snapshot list, snapshot rm.

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/verbs.h"
#include "volume/paths.h"

namespace latchkey::cli {

namespace {

using nlohmann::json;

json describe(const volume::SubvolumeInfo& info) {
  return {{"id", info.id},
          {"path", info.removed ? json() : json(printable(info.path))},
          {"parent", info.parent != 0 ? json(info.parent) : json()},
          {"snapshot_of", info.origin != 0 ? json(info.origin) : json()},
          {"created_ns", info.created_ns},
          {"read_only", info.read_only},
          {"removed", info.removed}};
}

void print(const volume::SubvolumeInfo& info) {
  std::string more;
  if (info.origin != 0) more += fmt::format("  snapshot of {}", info.origin);
  if (info.read_only) more += "  read-only";
  fmt::print("{:6}  {}  {}{}\n", info.id, rfc3339(static_cast<u64>(info.created_ns)),
             info.removed ? "(being freed)" : printable(info.path), more);
}

Exit tell_made(const Common& common, const std::string& path, volume::InodeId made) {
  if (common.json)
    print_json(common, {{"path", path}, {"id", made.subvolume}});
  else if (!common.quiet)
    fmt::print("{}: subvolume {}\n", path, made.subvolume);
  return Exit::ok;
}

}  // namespace

Exit run_subvolume_create(const Common& common, const SubvolumeArgs& args) {
  const auto target = parse_target(args.target);
  if (!target) return report_usage(common, args.target, "is not of the form IMG:/path");
  return with_volume(common, target->image, args.key, {},
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                       const auto parent = volume::resolve_parent(volume, target->path);
                       if (!parent) return report_error(common, target->path, parent.error());
                       const auto made =
                           volume.create_subvolume(caller(), parent->directory, parent->name, 0755);
                       if (!made) return report_error(common, target->path, made.error());
                       return tell_made(common, target->path, *made);
                     });
}

Exit run_snapshot_create(const Common& common, const SubvolumeArgs& args) {
  const auto source = parse_target(args.target), target = parse_target(args.destination);
  if (args.destination.empty())
    return report_usage(common, "snapshot", "wants IMG:/path of a subvolume and one that is new");
  if (!source) return report_usage(common, args.target, "is not of the form IMG:/path");
  if (!target) return report_usage(common, args.destination, "is not of the form IMG:/path");
  if (source->image != target->image)
    return report_usage(common, args.destination, "is not in the same store");
  return with_volume(common, target->image, args.key, {},
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                       const auto root = volume::resolve(volume, source->path);
                       if (!root) return report_error(common, source->path, root.error());
                       const auto parent = volume::resolve_parent(volume, target->path);
                       if (!parent) return report_error(common, target->path, parent.error());
                       const auto made = volume.snapshot(caller(), *root, parent->directory,
                                                         parent->name, args.read_only);
                       if (!made) return report_error(common, target->path, made.error());
                       return tell_made(common, target->path, *made);
                     });
}

Exit run_snapshot_list(const Common& common, const SubvolumeArgs& args) {
  volume::VolumeOptions options;
  options.read_only = true;
  return with_volume(common, args.image, args.key, options,
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                       const auto list = volume.list_subvolumes();
                       if (!list) return report_image(common, args.image, list.error());
                       json rows = json::array();
                       for (const volume::SubvolumeInfo& info : *list) {
                         if (common.json)
                           rows.push_back(describe(info));
                         else
                           print(info);
                       }
                       if (common.json) print_json(common, {{"subvolumes", rows}});
                       return Exit::ok;
                     });
}

// With what it held freed: a process that ends would leave that to the next one.
Exit run_snapshot_rm(const Common& common, const SubvolumeArgs& args) {
  const auto target = parse_target(args.target);
  if (!target) return report_usage(common, args.target, "is not of the form IMG:/path");
  return with_volume(
      common, target->image, args.key, {},
      [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
        const auto parent = volume::resolve_parent(volume, target->path);
        if (!parent) return report_error(common, target->path, parent.error());
        const u64 before = volume.facts().space.blocks_used;
        const auto removed = volume.remove_subvolume(parent->directory, parent->name);
        if (!removed) return report_error(common, target->path, removed.error());
        Progress progress(common, "snapshot rm");
        const auto freed =
            volume.finish_removals([&](u64 steps) { progress.update(steps, steps, "steps"); });
        progress.finish();
        if (!freed) return report_error(common, target->path, freed.error());
        const u64 after = volume.facts().space.blocks_used;
        const u64 bytes = (before - std::min(before, after)) * engine::kBlockBytes;
        if (common.json)
          print_json(common, {{"path", target->path}, {"bytes_freed", bytes}});
        else if (!common.quiet)
          fmt::print("{}: {} freed\n", target->path, format_bytes(bytes));
        return Exit::ok;
      });
}

}  // namespace latchkey::cli
