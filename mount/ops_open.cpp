// Files and directories while they are open.

#include <fcntl.h>

#include "mount/attributes.h"
#include "mount/file_system.h"
#include "mount/replies.h"

namespace latchkey::mount {
namespace {

// Where an O_APPEND write goes is decided by the kernel, which sends the offset.
volume::OpenFlags to_flags(int flags) {
  const int access = flags & O_ACCMODE;
  return {.read = access != O_WRONLY,
          .write = access != O_RDONLY,
          .append = false,
          .create = false,
          .exclusive = false,
          .truncate = (flags & O_TRUNC) != 0 && access != O_RDONLY};
}

constexpr unsigned kDotEntries = 2;         // "." and ".."
constexpr u64 kUnknownNumber = 0xffffffff;  // of "..", as libfuse's high-level interface has it

}  // namespace

OpenFile& FileSystem::add_open(u64 node, volume::HandleId handle) {
  OpenFile& file = pages_.open_files().add(inode_of(node), handle, pages_.nodes().key_of(node));
  pages_.nodes().opened(node);
  return file;
}

Result<void> FileSystem::close(OpenFile& file) {
  pages_.nodes().closed(node_of(file.inode).value_or(0));
  return end(file);
}

Result<void> FileSystem::end(OpenFile& file) {
  const volume::HandleId handle = file.handle;
  pages_.open_files().remove(file);
  return volume_.close_handle(handle);
}

void FileSystem::open(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) {
  const auto handle = volume_.open(caller_of(req), inode_of(node), to_flags(info->flags), {});
  if (!handle) return reply_error(req, handle.error());
  OpenFile& file = add_open(node, *handle);
  info->fh = OpenFiles::word(file);
  info->keep_cache = 1;  // nobody changes a file but through this kernel
  // Interrupted: there will be no release.
  if (fuse_reply_open(req, info) == -ENOENT) (void)close(file);
}

void FileSystem::create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode,
                        fuse_file_info* info) {
  volume::OpenFlags flags = to_flags(info->flags);
  flags.create = true;
  flags.exclusive = (info->flags & O_EXCL) != 0;
  const auto handle =
      volume_.open_file(caller_of(req), inode_of(parent), name, flags, mode & kPermissionBits, {});
  if (!handle) return reply_error(req, handle.error());
  const auto entry = [&]() -> Result<fuse_entry_param> {
    LK_TRY(const volume::Stat stat, volume_.stat(*handle));
    LK_TRY(const fuse_entry_param made, to_entry(stat));
    pages_.nodes().looked_up(made.ino, stat);
    return made;
  }();
  if (!entry) {
    (void)volume_.close_handle(*handle);
    return reply_error(req, entry.error());
  }
  OpenFile& file = add_open(entry->ino, *handle);
  info->fh = OpenFiles::word(file);
  info->keep_cache = 1;
  if (fuse_reply_create(req, &*entry, info) != -ENOENT) return;
  (void)close(file);
  pages_.nodes().forgotten(entry->ino, 1);
}

Result<FileSystem::Unnamed> FileSystem::make_unnamed(const volume::Caller& caller,
                                                     fuse_ino_t parent, mode_t mode, int flags) {
  volume::OpenFlags open_flags = to_flags(flags);
  open_flags.exclusive = (flags & O_EXCL) != 0;
  LK_TRY(const volume::HandleId handle,
         volume_.open_unnamed(caller, inode_of(parent), open_flags, mode & kPermissionBits, {}));
  Unnamed made;
  const auto described = [&]() -> Result<void> {
    LK_TRY(const volume::Stat stat, volume_.stat(handle));
    LK_TRY(made.entry, to_entry(stat));
    pages_.nodes().looked_up(made.entry.ino, stat);
    made.file = OpenFiles::word(add_open(made.entry.ino, handle));
    return {};
  }();
  if (!described) {
    (void)volume_.close_handle(handle);
    return std::unexpected(described.error());
  }
  return made;
}

void FileSystem::forget_unnamed(const Unnamed& made) {
  (void)close(OpenFiles::at(made.file));
  pages_.nodes().forgotten(made.entry.ino, 1);
}

// close(2) says what its caller has not heard yet; the kernel drops what release answers.
void FileSystem::flush(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
  reply_done(req, volume_.take_errors(OpenFiles::at(info->fh).handle));
}

// The last handle of a key that is leaving takes the key along, so the kernel's pages go before.
// Closed first, asked then: a removal that commits in between finds the node closed.
void FileSystem::release(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) {
  OpenFile& file = OpenFiles::at(info->fh);
  pages_.nodes().closed(node_of(file.inode).value_or(0));
  if (!file.key || !volume_.key_is_leaving(file.handle)) return reply_done(req, end(file));
  pages_.drop_then_close(node, [this, req, &file] { reply_done(req, end(file)); });
}

void FileSystem::fsync(fuse_req_t req, fuse_ino_t, int, fuse_file_info* info) {
  reply_done(req, volume_.fsync(OpenFiles::at(info->fh).handle));
}

// --- directories --------------------------------------------------------------------------------

void FileSystem::opendir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) {
  const volume::InodeId inode = inode_of(node);
  const auto handle = volume_.open_directory(caller_of(req), inode, {});
  if (!handle) return reply_error(req, handle.error());
  const auto stat = volume_.stat(*handle);
  OpenFile& file = pages_.open_files().add(inode, *handle, stat ? stat->key_id : std::nullopt);
  info->fh = OpenFiles::word(file);
  if (fuse_reply_open(req, info) == -ENOENT) (void)close(file);
}

void FileSystem::releasedir(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
  reply_done(req, close(OpenFiles::at(info->fh)));
}

void FileSystem::fsyncdir(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* info) {
  fsync(req, node, data_only, info);
}

Result<void> FileSystem::list(OpenFile& directory, bool anew) {
  const bool stale = directory.stale.exchange(false);
  if (directory.listed && !anew && !stale) return {};
  LK_TRY(directory.entries, volume_.read_directory(directory.handle));
  directory.listed = true;
  return {};
}

// An offset is the number of entries before it, the two dots included.
void FileSystem::readdir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                         fuse_file_info* info) {
  OpenFile& directory = OpenFiles::at(info->fh);
  std::vector<char> reply(size);
  std::size_t used = 0;
  {
    Lock lock(directory.mutex);
    if (const auto listed = list(directory, offset == 0); !listed)
      return reply_error(req, listed.error());
    const std::size_t count = directory.entries.size() + kDotEntries;
    for (auto i = static_cast<std::size_t>(offset); i < count; ++i) {
      const char* name = i == 0 ? "." : "..";
      struct stat described{};
      described.st_mode = S_IFDIR;
      if (i >= kDotEntries) {
        const volume::DirEntry& entry = directory.entries[i - kDotEntries];
        name = entry.name.c_str();
        described.st_mode = type_bits(entry.kind);
        described.st_ino = number_of(entry.inode).value_or(0);
      } else {
        described.st_ino = i == 0 ? number_of(inode_of(node)).value_or(0) : kUnknownNumber;
      }
      const std::size_t need = fuse_add_direntry(req, reply.data() + used, size - used, name,
                                                 &described, static_cast<off_t>(i + 1));
      if (need > size - used) break;
      used += need;
    }
  }
  fuse_reply_buf(req, reply.data(), used);
}

}  // namespace latchkey::mount
