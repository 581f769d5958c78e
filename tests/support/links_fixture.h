#pragma once
// A volume's verbs about links with the uninteresting parts expected to work.

#include <string>
#include <vector>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {

class VolumeLinks : public VolumeTest {
 protected:
  volume::InodeId directory(std::string_view path) {
    auto made = volume::make_directory(*volume_, kUser, path);
    EXPECT_TRUE(made) << path;
    return made.value_or(volume::InodeId{});
  }
  volume::InodeId inode(std::string_view path) {
    return volume::resolve(*volume_, path).value_or(volume::InodeId{});
  }
  u32 links(std::string_view path) {
    const auto stat = volume_->stat(inode(path));
    EXPECT_TRUE(stat) << path;
    return stat ? stat->links : 0;
  }
  Errc link(volume::InodeId what, volume::InodeId into, std::string_view name) {
    return code_of(volume_->link(what, into, name));
  }
  Errc link_in_root(std::string_view from, std::string_view to) {
    return link(inode(from), volume::kRootInode, to);
  }
  std::string target(std::string_view path) {
    const auto read = volume_->read_link(inode(path));
    EXPECT_TRUE(read) << path << ": " << (read ? "" : read.error().what);
    return read.value_or("?");
  }
  volume::HandleId unnamed(volume::InodeId directory, volume::OpenFlags flags = {.write = true}) {
    auto handle = volume_->open_unnamed(kUser, directory, flags, 0640, "(unnamed)");
    EXPECT_TRUE(handle) << handle.error().what;
    return handle.value_or(volume::HandleId{});
  }
  std::vector<volume::DirEntry> entries(volume::InodeId directory) {
    auto list = volume_->read_directory(directory);
    EXPECT_TRUE(list);
    return list ? std::move(*list) : std::vector<volume::DirEntry>{};
  }
  u64 blocks_used() {
    EXPECT_TRUE(volume_->sync());
    return volume_->facts().space.blocks_used;
  }
};

}  // namespace latchkey::tests
