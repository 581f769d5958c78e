#include "volume/paths.h"

namespace latchkey::volume {

namespace {

// The words between slashes.
std::vector<std::string> split(std::string_view path) {
  std::vector<std::string> words;
  while (!path.empty()) {
    const std::size_t slash = std::min(path.find('/'), path.size());
    if (slash != 0) words.emplace_back(path.substr(0, slash));
    path.remove_prefix(std::min(slash + 1, path.size()));
  }
  return words;
}

}  // namespace

Result<ParentAndName> resolve_parent(Volume& volume, std::string_view path) {
  const std::vector<std::string> words = split(path);
  ParentAndName found{kRootInode, {}};
  for (std::size_t i = 0; i + 1 < words.size(); ++i) {
    LK_TRY(found.directory, volume.lookup(found.directory, words[i]));
  }
  if (!words.empty()) found.name = words.back();
  return found;
}

Result<InodeId> resolve(Volume& volume, std::string_view path) {
  LK_TRY(const ParentAndName found, resolve_parent(volume, path));
  if (found.name.empty()) return found.directory;
  return volume.lookup(found.directory, found.name);
}

Result<HandleId> open_path(Volume& volume, Caller caller, std::string_view path, OpenFlags flags,
                           u32 mode) {
  LK_TRY(const ParentAndName found, resolve_parent(volume, path));
  if (found.name.empty()) return fail(Errc::is_dir, "is a directory");
  return volume.open_file(caller, found.directory, found.name, flags, mode, std::string(path));
}

Result<InodeId> make_directory(Volume& volume, Caller caller, std::string_view path, u32 mode) {
  LK_TRY(const ParentAndName found, resolve_parent(volume, path));
  if (found.name.empty()) return fail(Errc::exists, "the root directory is always there");
  return volume.mkdir(caller, found.directory, found.name, mode);
}

namespace {

// Depth first with a stack of our own: trees of any depth.
struct Frame {
  InodeId directory;
  InodeId parent;
  std::string name;
  std::vector<DirEntry> entries;
};

}  // namespace

Result<void> remove_tree(Volume& volume, std::string_view path) {
  LK_TRY(const ParentAndName top, resolve_parent(volume, path));
  if (top.name.empty()) return fail(Errc::invalid, "the root directory cannot be removed");
  LK_TRY(const InodeId inode, volume.lookup(top.directory, top.name));
  LK_TRY(const Stat stat, volume.stat(inode));
  if (stat.kind != FileKind::directory) return volume.unlink(top.directory, top.name);
  if (inode.number == kRootNumber) return volume.rmdir(top.directory, top.name);  // refuses
  std::vector<Frame> stack;
  LK_TRY(auto first, volume.read_directory(inode));
  stack.push_back({inode, top.directory, top.name, std::move(first)});
  while (!stack.empty()) {
    Frame& frame = stack.back();
    if (frame.entries.empty()) {
      LK_TRYV(volume.rmdir(frame.parent, frame.name));
      stack.pop_back();
      continue;
    }
    DirEntry entry = std::move(frame.entries.back());
    frame.entries.pop_back();
    if (entry.kind == FileKind::subvolume) return volume.rmdir(frame.directory, entry.name);
    if (entry.kind != FileKind::directory) {
      LK_TRYV(volume.unlink(frame.directory, entry.name));
      continue;
    }
    const InodeId parent = frame.directory;
    LK_TRY(auto entries, volume.read_directory(entry.inode));
    stack.push_back({entry.inode, parent, std::move(entry.name), std::move(entries)});
  }
  return {};
}

}  // namespace latchkey::volume
