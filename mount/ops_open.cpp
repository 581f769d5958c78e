// Files while they are open.

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

// Pages that are left of earlier opens the kernel drops itself before each direct write.
void note_open(OpenFile& file, int flags) {
  const bool direct = (flags & O_DIRECT) != 0;
  if (!direct) file.shared->has_pages = true;
  if (direct && (flags & O_ACCMODE) != O_RDONLY) file.shared->written_directly = true;
}

}  // namespace

// Without memory for it the handle is closed: nobody else would, and it keeps its key.
OpenFile& FileSystem::keep_handle(volume::InodeId inode, volume::HandleId handle,
                                  const std::optional<crypto::KeyId>& key) {
  try {
    return pages_.open_files().add(inode, handle, key);
  } catch (const std::bad_alloc&) {
    (void)volume_.close_handle(handle);
    throw;
  }
}

OpenFile& FileSystem::add_open(u64 node, volume::HandleId handle, int flags) {
  OpenFile& file = keep_handle(inode_of(node), handle, pages_.nodes().key_of(node));
  note_open(file, flags);
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

Result<volume::HandleId> FileSystem::open_node(const volume::Caller& caller, fuse_ino_t node,
                                               volume::OpenFlags flags) {
  const volume::InodeId inode = inode_of(node);
  auto handle = volume_.open(caller, inode, flags, {});
  if (handle || handle.error().code != Errc::not_found) return handle;
  const auto other = pages_.open_files().any_handle_of(inode);
  if (!other) return handle;
  auto again = volume_.open_again(caller, *other, flags, {});
  // Closed in that moment: then the inode is gone.
  return !again && again.error().code == Errc::bad_handle ? handle : again;
}

void FileSystem::open(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) {
  const auto handle = open_node(caller_of(req), node, to_flags(info->flags));
  if (!handle) return reply_error(req, handle.error());
  OpenFile& file = add_open(node, *handle, info->flags);
  info->fh = OpenFiles::word(file);
  info->keep_cache = options_.keeps_pages;  // nobody changes a file but through this kernel
  info->noflush = (info->flags & O_ACCMODE) == O_RDONLY;  // it has nothing to be told of by close
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
  OpenFile& file = add_open(entry->ino, *handle, info->flags);
  info->fh = OpenFiles::word(file);
  info->keep_cache = options_.keeps_pages;
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
    made.file = OpenFiles::word(add_open(made.entry.ino, handle, flags));
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
void FileSystem::release(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
  OpenFile& file = OpenFiles::at(info->fh);
  pages_.release(
      node_of(file.inode).value_or(0),
      [&] { return file.key && volume_.key_is_leaving(file.handle); },
      [this, req, &file] { reply_done(req, end(file)); });
}

void FileSystem::fsync(fuse_req_t req, fuse_ino_t, int, fuse_file_info* info) {
  reply_done(req, volume_.fsync(OpenFiles::at(info->fh).handle));
}

}  // namespace latchkey::mount
