#include "mount/open_files.h"

#include <new>

namespace latchkey::mount {

OpenFile& OpenFiles::add(volume::InodeId inode, volume::HandleId handle,
                         const std::optional<crypto::KeyId>& key) {
  auto file = std::make_unique<OpenFile>();
  file->inode = inode;
  file->handle = handle;
  file->key = key;
  OpenFile& added = *file;
  Lock lock(mutex_);
  Opens& opens = files_[inode];
  added.shared = &opens;
  try {
    opens.files.push_back(std::move(file));
  } catch (const std::bad_alloc&) {
    if (opens.files.empty()) files_.erase(inode);
    throw;
  }
  return added;
}

void OpenFiles::remove(OpenFile& file) {
  Lock lock(mutex_);
  const auto of_inode = files_.find(file.inode);
  auto& files = of_inode->second.files;
  std::erase_if(files, [&](const auto& one) { return one.get() == &file; });
  if (files.empty()) files_.erase(of_inode);
}

std::optional<volume::HandleId> OpenFiles::any_handle_of(volume::InodeId inode) {
  Lock lock(mutex_);
  const auto of_inode = files_.find(inode);
  if (of_inode == files_.end()) return std::nullopt;
  return of_inode->second.files.front()->handle;
}

bool OpenFiles::is_written_directly(volume::InodeId inode) {
  Lock lock(mutex_);
  const auto of_inode = files_.find(inode);
  return of_inode != files_.end() && of_inode->second.written_directly;
}

std::vector<volume::InodeId> OpenFiles::inodes() {
  std::vector<volume::InodeId> list;
  Lock lock(mutex_);
  list.reserve(files_.size());
  for (const auto& [inode, files] : files_) list.push_back(inode);
  return list;
}

}  // namespace latchkey::mount
