// Names: what is found, made and removed by them.

#include <sys/sysmacros.h>

#include <cstdio>

#include <span>

#include "base/secret.h"
#include "mount/attributes.h"
#include "mount/file_system.h"
#include "mount/replies.h"

namespace latchkey::mount {

void FileSystem::reply_entry(fuse_req_t req, const Result<volume::InodeId>& inode,
                             std::optional<fuse_ino_t> found_in) {
  if (!inode) return reply_error(req, inode.error());
  const auto stat = volume_.stat(*inode);
  if (!stat) return reply_error(req, stat.error());
  auto entry = to_entry(*stat);
  if (!entry) return reply_error(req, entry.error());
  entry->attr_timeout = attributes_kept_s(*stat);
  if (found_in && S_ISDIR(entry->attr.st_mode) && stat->key_id && is_clear(*found_in))
    entry->entry_timeout = kKeptLong;
  pages_.nodes().looked_up(entry->ino, *stat);
  if (fuse_reply_entry(req, &*entry) != 0) pages_.nodes().forgotten(entry->ino, 1);
}

bool FileSystem::is_clear(fuse_ino_t directory) {
  const auto stat = volume_.stat(inode_of(directory));
  return stat && !stat->key_id;
}

void FileSystem::forget(fuse_req_t req, fuse_ino_t node, u64 references) {
  pages_.nodes().forgotten(node, references);
  fuse_reply_none(req);
}

void FileSystem::forget_multi(fuse_req_t req, size_t count, fuse_forget_data* forgets) {
  for (const fuse_forget_data& one : std::span(forgets, count))
    pages_.nodes().forgotten(one.ino, one.nlookup);
  fuse_reply_none(req);
}

void FileSystem::lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  reply_entry(req, volume_.lookup(inode_of(parent), name), parent);
}

void FileSystem::mknod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode,
                       dev_t device) {
  volume::NewNode node;
  switch (mode & S_IFMT) {
    case 0:
    case S_IFREG:
      node.kind = volume::FileKind::regular;
      break;
    case S_IFIFO:
      node.kind = volume::FileKind::fifo;
      break;
    case S_IFSOCK:
      node.kind = volume::FileKind::socket;
      break;
    case S_IFCHR:
      node.kind = volume::FileKind::char_device;
      break;
    case S_IFBLK:
      node.kind = volume::FileKind::block_device;
      break;
    default:
      fuse_reply_err(req, EINVAL);
      return;
  }
  node.mode = mode & kPermissionBits;
  if (volume::is_device(node.kind)) node.device = device;
  reply_entry(req, volume_.make_node(caller_of(req), inode_of(parent), name, node));
}

void FileSystem::mkdir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) {
  reply_entry(req, volume_.mkdir(caller_of(req), inode_of(parent), name, mode & kPermissionBits));
}

void FileSystem::unlink(fuse_req_t req, fuse_ino_t parent, const char* name) {
  reply_done(req, volume_.unlink(inode_of(parent), name));
}

void FileSystem::rmdir(fuse_req_t req, fuse_ino_t parent, const char* name) {
  reply_done(req, volume_.rmdir(inode_of(parent), name));
}

void FileSystem::symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) {
  reply_entry(req, volume_.symlink(caller_of(req), inode_of(parent), name, target));
}

void FileSystem::readlink(fuse_req_t req, fuse_ino_t node) {
  auto target = volume_.read_link(inode_of(node));
  if (!target) return reply_error(req, target.error());
  fuse_reply_readlink(req, target->c_str());
  wipe(target->data(), target->size());
}

void FileSystem::rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
                        const char* new_name, unsigned flags) {
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0) {
    fuse_reply_err(req, EINVAL);
    return;
  }
  reply_done(req, volume_.rename(inode_of(parent), name, inode_of(new_parent), new_name,
                                 {.no_replace = (flags & RENAME_NOREPLACE) != 0,
                                  .exchange = (flags & RENAME_EXCHANGE) != 0}));
}

void FileSystem::link(fuse_req_t req, fuse_ino_t node, fuse_ino_t parent, const char* name) {
  const auto linked =
      on_inode(node, [&](auto what) { return volume_.link(what, inode_of(parent), name); });
  if (!linked) return reply_error(req, linked.error());
  reply_entry(req, inode_of(node));
}

}  // namespace latchkey::mount
