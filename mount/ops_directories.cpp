// Directories while they are open.

#include <algorithm>

#include "base/secret.h"
#include "mount/attributes.h"
#include "mount/file_system.h"
#include "mount/listing.h"
#include "mount/replies.h"
#include "mount/reply_buffer.h"

namespace latchkey::mount {
namespace {

// What an entry takes of a reply, where names are of usual length: so many are asked for at once.
constexpr std::size_t kEntryBytes = 48;

// Plaintext names, wiped when they go.
class Names {
 public:
  explicit Names(std::vector<volume::DirEntry> entries) : entries_(std::move(entries)) {}
  Names(const Names&) = delete;
  Names& operator=(const Names&) = delete;
  ~Names() {
    for (volume::DirEntry& entry : entries_) wipe(entry.name.data(), entry.name.size());
  }
  const std::vector<volume::DirEntry>& entries() const { return entries_; }

 private:
  std::vector<volume::DirEntry> entries_;
};

class Reply {
 public:
  Reply(fuse_req_t req, MutableBytes bytes) : req_(req), bytes_(bytes) {}

  // False: there is no room for it.
  bool add(const char* name, volume::InodeId inode, volume::FileKind kind, u64 offset) {
    struct stat described{};
    described.st_mode = type_bits(kind);
    described.st_ino = number_of(inode).value_or(0);
    const MutableBytes room = bytes_.subspan(used_);
    const std::size_t need =
        fuse_add_direntry(req_, reinterpret_cast<char*>(room.data()), room.size(), name, &described,
                          static_cast<off_t>(offset));
    if (need > room.size()) return false;
    used_ += need;
    return true;
  }
  void send() const { fuse_reply_buf(req_, reinterpret_cast<const char*>(bytes_.data()), used_); }

 private:
  const fuse_req_t req_;
  const MutableBytes bytes_;
  std::size_t used_ = 0;
};

}  // namespace

Result<volume::HandleId> FileSystem::open_directory_node(const volume::Caller& caller,
                                                         fuse_ino_t node) {
  const volume::InodeId inode = inode_of(node);
  auto handle = volume_.open_directory(caller, inode, {});
  if (handle || handle.error().code != Errc::not_found) return handle;
  const auto other = pages_.open_files().any_handle_of(inode);
  if (!other) return handle;
  auto again = volume_.open_again(caller, *other, {}, {});
  return !again && again.error().code == Errc::bad_handle ? handle : again;
}

void FileSystem::opendir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) {
  const auto handle = open_directory_node(caller_of(req), node);
  if (!handle) return reply_error(req, handle.error());
  const auto stat = volume_.stat(*handle);
  OpenFile& file = keep_handle(inode_of(node), *handle, stat ? stat->key_id : std::nullopt);
  info->fh = OpenFiles::word(file);
  if (fuse_reply_open(req, info) == -ENOENT) (void)close(file);
}

void FileSystem::releasedir(fuse_req_t req, fuse_ino_t, fuse_file_info* info) {
  reply_done(req, close(OpenFiles::at(info->fh)));
}

// The kernel keeps sync() and syncfs() of a FUSE mount to itself. What they promise is had by the
// root.
void FileSystem::fsyncdir(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* info) {
  if (node == kRootNode) return reply_done(req, volume_.sync());
  fsync(req, node, data_only, info);
}

void FileSystem::readdir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                         fuse_file_info* info) {
  using volume::FileKind;
  const volume::InodeId inode = inode_of(node);
  const ReplyBuffer buffer(size);
  Reply reply(req, buffer.bytes());
  u64 at = static_cast<u64>(offset);
  if (at < kBehindDot && reply.add(".", inode, FileKind::directory, kBehindDot)) at = kBehindDot;
  if (at == kBehindDot) {
    // One that was removed while it was open leads nowhere.
    const volume::InodeId above = volume_.parent(inode).value_or(inode);
    if (reply.add("..", above, FileKind::directory, kBehindDots)) at = kBehindDots;
  }
  if (at >= kBehindDots) {
    auto listed = volume_.read_directory(OpenFiles::at(info->fh).handle, place_behind(at),
                                         std::max<u64>(size / kEntryBytes, 1));
    if (!listed) return reply_error(req, listed.error());
    const Names names(std::move(*listed));
    for (const volume::DirEntry& entry : names.entries())
      if (!reply.add(entry.name.c_str(), entry.inode, entry.kind, offset_behind(entry.place)))
        break;
  }
  reply.send();
}

}  // namespace latchkey::mount
