#pragma once
// FUSE's requests, answered by the volume. Each member that takes a fuse_req_t is one operation
// and replies once; what it throws (memory) or what the library refuses is replied as an errno.
//
// Threads: requests come from any number of them. No lock of this folder is held over a call of the
// volume's.

#include <string_view>

#include "mount/fuse.h"
#include "mount/ioctl_threads.h"
#include "mount/kernel_pages.h"
#include "mount/node_ids.h"
#include "volume/fscrypt_abi.h"
#include "volume/volume.h"

namespace latchkey::mount {

// An attribute of the root directory, in no list: the process that serves the mount.
inline constexpr std::string_view kDaemonAttribute = "latchkey.daemon";

struct FileSystemOptions {
  // Requests that the kernel lets wait for us: readahead, writeback. More than can be parked, or
  // those behind would never come.
  u32 background_max = 64 + 1024;
  // Ioctls whose bytes FUSE does not carry are answered out of the caller's memory
  // (mount/caller_memory.h), else EOPNOTSUPP.
  bool caller_memory = false;
  // False: an open drops what the kernel has of the file, so that its first read is noticed.
  bool keeps_pages = true;
};

struct Ioctl;

class FileSystem {
 public:
  FileSystem(volume::Volume& volume, KernelPages& pages, const FileSystemOptions& options)
      : volume_(volume), pages_(pages), options_(options) {}

  static const fuse_lowlevel_ops& operations();

  // ops_names.cpp
  void forget(fuse_req_t req, fuse_ino_t node, u64 references);
  void forget_multi(fuse_req_t req, size_t count, fuse_forget_data* forgets);
  void lookup(fuse_req_t req, fuse_ino_t parent, const char* name);
  void mknod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, dev_t device);
  void mkdir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode);
  void unlink(fuse_req_t req, fuse_ino_t parent, const char* name);
  void rmdir(fuse_req_t req, fuse_ino_t parent, const char* name);
  void symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name);
  void readlink(fuse_req_t req, fuse_ino_t node);
  void rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
              const char* new_name, unsigned flags);
  void link(fuse_req_t req, fuse_ino_t node, fuse_ino_t parent, const char* name);

  // ops_open.cpp
  void open(fuse_req_t req, fuse_ino_t node, fuse_file_info* info);
  void create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode,
              fuse_file_info* info);
  void flush(fuse_req_t req, fuse_ino_t node, fuse_file_info* info);
  void release(fuse_req_t req, fuse_ino_t node, fuse_file_info* info);
  void fsync(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* info);

  // ops_directories.cpp
  void opendir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info);
  void readdir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* info);
  void releasedir(fuse_req_t req, fuse_ino_t node, fuse_file_info* info);
  void fsyncdir(fuse_req_t req, fuse_ino_t node, int data_only, fuse_file_info* info);

  // ops_data.cpp
  void read(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, fuse_file_info* info);
  void write(fuse_req_t req, fuse_ino_t node, const char* data, size_t size, off_t offset,
             fuse_file_info* info);
  void fallocate(fuse_req_t req, fuse_ino_t node, int mode, off_t offset, off_t length,
                 fuse_file_info* info);
  void lseek(fuse_req_t req, fuse_ino_t node, off_t offset, int whence, fuse_file_info* info);
  void copy_file_range(fuse_req_t req, fuse_ino_t from_node, off_t from_offset,
                       fuse_file_info* from, fuse_ino_t to_node, off_t to_offset,
                       fuse_file_info* to, size_t size, int flags);

  // ops_attributes.cpp
  void getattr(fuse_req_t req, fuse_ino_t node, fuse_file_info* info);
  void setattr(fuse_req_t req, fuse_ino_t node, struct stat* wanted, int what,
               fuse_file_info* info);
  void statfs(fuse_req_t req, fuse_ino_t node);
  void setxattr(fuse_req_t req, fuse_ino_t node, const char* name, const char* value, size_t size,
                int flags);
  void getxattr(fuse_req_t req, fuse_ino_t node, const char* name, size_t size);
  void listxattr(fuse_req_t req, fuse_ino_t node, size_t size);
  void removexattr(fuse_req_t req, fuse_ino_t node, const char* name);

  // ops_ioctl.cpp
  void ioctl(fuse_req_t req, fuse_ino_t node, unsigned command, void* address, fuse_file_info* info,
             unsigned flags, const void* in, size_t in_size, size_t out_size);
  // Those under way end, further ones are refused: while there is still a mount to take pages from.
  void stop_ioctls();

  void init(fuse_conn_info* connection) const;

  // io.cpp: answers it, or parks it and is called again. Throws nothing.
  void perform(Io&& io);
  void interrupted(u64 id) { pages_.parked().interrupt(id); }

  // A file without a name (O_TMPFILE), which libfuse 3.14 does not know. Positive: an errno.
  struct Unnamed {
    fuse_entry_param entry{};
    u64 file = 0;  // as in fuse_file_info::fh
  };
  Result<Unnamed> make_unnamed(const volume::Caller& caller, fuse_ino_t parent, mode_t mode,
                               int flags);
  void forget_unnamed(const Unnamed& made);  // the kernel did not want it any more

 private:
  // By the inode, or, where it has no name any more, by a handle on it.
  template <class Call>
  auto on_inode(fuse_ino_t node, Call call) {
    const volume::InodeId inode = inode_of(node);
    auto result = call(inode);
    if (!result && result.error().code == Errc::not_found)
      if (const auto handle = pages_.open_files().any_handle_of(inode)) return call(*handle);
    return result;
  }
  // The answer to what made or found a name.
  void reply_entry(fuse_req_t req, const Result<volume::InodeId>& inode,
                   std::optional<fuse_ino_t> found_in = {});
  bool is_clear(fuse_ino_t directory);
  Result<void> drop_privileges(fuse_req_t req, fuse_ino_t node);
  Result<void> set_size(fuse_req_t req, fuse_ino_t node, u64 size, const fuse_file_info* info);
  Result<u64> copy_range(OpenFile& from, u64 from_offset, OpenFile& to, u64 to_offset, u64 size);
  // By the inode, or, where it has no name any more, by what has it open.
  Result<volume::HandleId> open_node(const volume::Caller& caller, fuse_ino_t node,
                                     volume::OpenFlags flags);
  Result<volume::HandleId> open_directory_node(const volume::Caller& caller, fuse_ino_t node);
  OpenFile& keep_handle(volume::InodeId inode, volume::HandleId handle,
                        const std::optional<crypto::KeyId>& key);
  OpenFile& add_open(u64 node, volume::HandleId handle, int flags);
  Result<void> close(OpenFile& file);
  Result<void> end(OpenFile& file);  // its node has been told that it is closed
  double attributes_kept_s(const volume::Stat& stat);
  void refuse(const Io& io, const Error& error);
  void finish(const Io& io, MutableBytes read, u64 size);
  volume::FscryptAnswer perform(Ioctl& ioctl);
  void remove(const std::shared_ptr<Ioctl>& ioctl);
  void look(const std::shared_ptr<Ioctl>& ioctl);

  volume::Volume& volume_;
  KernelPages& pages_;
  const FileSystemOptions options_;
  IoctlThreads removals_{{.of_a_user = 4, .of_all = 16}};
  IoctlThreads looks_{{.of_a_user = 4, .of_all = 64}};  // into callers' memory
};

}  // namespace latchkey::mount
