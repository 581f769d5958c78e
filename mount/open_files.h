#pragma once
// What the kernel has open. An inode that lost its last name is reached through one of its handles
// only, and the kernel does not always say which.

#include <atomic>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "volume/types.h"

namespace latchkey::mount {

// Of an inode that is open: what the kernel may do with it just now.
struct OpenInode {
  // It may come to have pages of it: those are taken back behind a direct write (io.cpp).
  std::atomic<bool> has_pages{false};
  // It may be written directly, and for that the kernel does not wait: what it is told of times
  // and blocks meanwhile it is not to remember.
  std::atomic<bool> written_directly{false};
};

// One open(2) or opendir(3). Its address is FUSE's file handle; the kernel releases it once, after
// all other requests that name it.
struct OpenFile {
  volume::InodeId inode;
  volume::HandleId handle{};
  OpenInode* shared = nullptr;       // with the other opens of the inode
  std::optional<crypto::KeyId> key;  // encrypted under
};

class OpenFiles {
 public:
  OpenFile& add(volume::InodeId inode, volume::HandleId handle,
                const std::optional<crypto::KeyId>& key);
  static OpenFile& at(u64 file) { return *reinterpret_cast<OpenFile*>(file); }
  static u64 word(const OpenFile& file) { return reinterpret_cast<u64>(&file); }
  void remove(OpenFile& file);
  std::optional<volume::HandleId> any_handle_of(volume::InodeId inode);
  bool is_written_directly(volume::InodeId inode);
  std::vector<volume::InodeId> inodes();  // that are open

 private:
  struct Opens : OpenInode {
    std::vector<std::unique_ptr<OpenFile>> files;
  };
  Mutex mutex_;
  std::unordered_map<volume::InodeId, Opens> files_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::mount
