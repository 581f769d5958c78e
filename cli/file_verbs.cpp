// ls, rm, map.

#include <fmt/format.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "cli/verbs.h"
#include "volume/paths.h"

namespace latchkey::cli {

using nlohmann::json;

namespace {

struct Kind {
  volume::FileKind kind;
  char letter;
  const char* name;
};
constexpr Kind kKinds[] = {{volume::FileKind::regular, '-', "regular"},
                           {volume::FileKind::directory, 'd', "directory"},
                           {volume::FileKind::symlink, 'l', "symlink"},
                           {volume::FileKind::fifo, 'p', "fifo"},
                           {volume::FileKind::socket, 's', "socket"},
                           {volume::FileKind::char_device, 'c', "character_device"},
                           {volume::FileKind::block_device, 'b', "block_device"},
                           {volume::FileKind::subvolume, 'd', "subvolume"}};

const Kind& kind_of(volume::FileKind kind) { return *std::ranges::find(kKinds, kind, &Kind::kind); }

json describe_entry(const volume::DirEntry& entry, const volume::Stat& stat,
                    const std::string& target) {
  json object = {{"name", entry.name},
                 {"inode", entry.inode.number},
                 {"subvolume", entry.inode.subvolume},
                 {"kind", kind_of(entry.kind).name},
                 {"mode", stat.mode},
                 {"uid", stat.uid},
                 {"gid", stat.gid},
                 {"links", stat.links},
                 {"size", stat.size},
                 {"mtime_ns", stat.mtime_ns},
                 {"ctime_ns", stat.ctime_ns},
                 {"atime_ns", stat.atime_ns},
                 {"btime_ns", stat.btime_ns},
                 {"locked", stat.locked}};
  object["key_identifier"] = stat.key_id ? json(to_hex(stat.key_id->span())) : json();
  if (entry.kind == volume::FileKind::symlink) object["target"] = target;
  if (volume::is_device(entry.kind))
    object["device"] = {{"major", ::major(stat.device)}, {"minor", ::minor(stat.device)}};
  return object;
}

void print_entry(const volume::DirEntry& entry, const volume::Stat& stat, const std::string& target,
                 bool detailed) {
  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  std::string name = terminal ? printable(entry.name) : entry.name;
  if (!detailed) return fmt::print("{}\n", name);
  if (entry.kind == volume::FileKind::symlink)
    name += " -> " + (terminal ? printable(target) : target);
  const std::string size = volume::is_device(entry.kind)
                               ? fmt::format("{}, {}", ::major(stat.device), ::minor(stat.device))
                               : std::to_string(stat.size);
  std::string mode(1, kind_of(entry.kind).letter);
  for (int bit = 8; bit >= 0; --bit) mode += (stat.mode >> bit) & 1 ? "xwr"[bit % 3] : '-';
  fmt::print("{} {:3} {:5} {:5} {:>12} {} {}{}\n", mode, stat.links, stat.uid, stat.gid, size,
             rfc3339(static_cast<u64>(stat.mtime_ns)), name, stat.locked ? "  (locked)" : "");
}

Result<std::vector<volume::DirEntry>> entries_of(volume::Volume& volume, const std::string& path) {
  LK_TRY(const volume::InodeId inode, volume::resolve(volume, path));
  LK_TRY(const volume::Stat stat, volume.stat(inode));
  if (stat.kind == volume::FileKind::directory) return volume.read_directory(inode);
  return std::vector<volume::DirEntry>{{path.substr(path.rfind('/') + 1), inode, stat.kind}};
}

}  // namespace

Exit run_ls(const Common& common, const PathArgs& args) {
  const auto target = parse_target(args.target);
  if (!target) return report_usage(common, args.target, "is not of the form IMG:/path");
  volume::VolumeOptions options;
  options.read_only = true;
  return with_volume(common, target->image, args.key, options,
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                       auto entries = entries_of(volume, target->path);
                       if (!entries) return report_error(common, target->path, entries.error());
                       std::ranges::sort(*entries, {}, &volume::DirEntry::name);
                       json list = json::array();
                       for (const volume::DirEntry& entry : *entries) {
                         auto stat = volume.stat(entry.inode);
                         if (!stat) return report_error(common, entry.name, stat.error());
                         std::string text;
                         if (entry.kind == volume::FileKind::symlink) {
                           auto read = volume.read_link(entry.inode);
                           if (!read) return report_error(common, entry.name, read.error());
                           text = std::move(*read);
                         }
                         if (common.json)
                           list.push_back(describe_entry(entry, *stat, text));
                         else
                           print_entry(entry, *stat, text, args.detailed);
                       }
                       if (common.json)
                         print_json(common, {{"path", target->path}, {"entries", list}});
                       return Exit::ok;
                     });
}

Exit run_rm(const Common& common, const PathArgs& args) {
  const auto target = parse_target(args.target);
  if (!target) return report_usage(common, args.target, "is not of the form IMG:/path");
  const Exit exit = with_volume(
      common, target->image, args.key, {},
      [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
        Result<void> removed;
        if (args.recursive) {
          removed = volume::remove_tree(volume, target->path);
        } else {
          auto parent = volume::resolve_parent(volume, target->path);
          if (!parent) return report_error(common, target->path, parent.error());
          removed = volume.unlink(parent->directory, parent->name);
        }
        if (!removed && removed.error().code == Errc::is_dir)
          return report_usage(common, target->path, "is a directory; -r removes it and all below");
        if (!removed) return report_error(common, target->path, removed.error());
        return Exit::ok;
      });
  if (exit == Exit::ok && common.json) print_json(common, {{"path", target->path}});
  return exit;
}

Exit run_map(const Common& common, const PathArgs& args) {
  const auto target = parse_target(args.target);
  if (!target) return report_usage(common, args.target, "is not of the form IMG:/path");
  volume::VolumeOptions options;
  options.read_only = true;
  return with_volume(common, target->image, args.key, options,
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                       auto handle = volume::open_path(volume, caller(), target->path, {});
                       if (!handle) return report_error(common, target->path, handle.error());
                       auto stat = volume.stat(*handle);
                       auto rows = volume.map(*handle);
                       if (auto closed = volume.close_handle(*handle); !closed)
                         return report_error(common, target->path, closed.error());
                       if (!stat) return report_error(common, target->path, stat.error());
                       if (!rows) return report_error(common, target->path, rows.error());
                       json extents = json::array();
                       for (const volume::MapRow& row : *rows) {
                         const std::string key = row.key_id ? to_hex(row.key_id->span()) : "";
                         const std::string nonce = row.key_id ? to_hex(row.nonce.span()) : "";
                         if (common.json)
                           extents.push_back({{"file_offset", row.file_offset},
                                              {"device_offset", row.device_offset},
                                              {"length", row.length},
                                              {"nonce", nonce},
                                              {"key_identifier", key},
                                              {"mode", static_cast<int>(row.mode)},
                                              {"first_unit", row.first_unit}});
                         else
                           fmt::print("{:12} {:14} {:9} {} unit {}\n", row.file_offset,
                                      row.device_offset, row.length,
                                      nonce.empty() ? "clear" : nonce, row.first_unit);
                       }
                       if (common.json)
                         print_json(common, {{"size", stat->size}, {"extents", extents}});
                       return Exit::ok;
                     });
}

}  // namespace latchkey::cli
