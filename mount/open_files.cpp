#include "mount/open_files.h"

namespace latchkey::mount {

OpenFile& OpenFiles::add(volume::InodeId inode, volume::HandleId handle,
                         const std::optional<crypto::KeyId>& key) {
  auto file = std::make_unique<OpenFile>();
  file->inode = inode;
  file->handle = handle;
  file->key = key;
  OpenFile& added = *file;
  std::vector<std::unique_ptr<OpenFile>> one;
  one.push_back(std::move(file));
  Lock lock(mutex_);
  const auto [of_inode, is_first] = files_.try_emplace(inode, std::move(one));
  if (!is_first) of_inode->second.push_back(std::move(one.front()));
  return added;
}

void OpenFiles::remove(OpenFile& file) {
  Lock lock(mutex_);
  const auto of_inode = files_.find(file.inode);
  std::erase_if(of_inode->second, [&](const auto& one) { return one.get() == &file; });
  if (of_inode->second.empty()) files_.erase(of_inode);
}

std::optional<volume::HandleId> OpenFiles::any_handle_of(volume::InodeId inode) {
  Lock lock(mutex_);
  const auto of_inode = files_.find(inode);
  if (of_inode == files_.end()) return std::nullopt;
  return of_inode->second.front()->handle;
}

std::vector<volume::InodeId> OpenFiles::inodes() {
  std::vector<volume::InodeId> list;
  Lock lock(mutex_);
  list.reserve(files_.size());
  for (const auto& [inode, files] : files_) list.push_back(inode);
  return list;
}

}  // namespace latchkey::mount
