#pragma once
// An inode's number towards the kernel (FUSE's node id, st_ino, d_ino): computed, not remembered.
// The first subvolume's inodes have their own numbers, those of the others carry the subvolume
// above 40 bits. FUSE calls the root of the mount 1; its st_ino is its own number.

#include <optional>

#include "base/types.h"
#include "volume/types.h"

namespace latchkey::mount {

inline constexpr u64 kRootNode = 1;  // FUSE_ROOT_ID
inline constexpr u32 kNumberBits = 40;

// None: the numbers have grown out of what 64 bits can tell apart.
constexpr std::optional<u64> number_of(volume::InodeId inode) {
  if (inode.number >> kNumberBits != 0) return std::nullopt;
  if (inode.subvolume == volume::kRootInode.subvolume) return inode.number;
  if (inode.subvolume >> (64 - kNumberBits) != 0) return std::nullopt;
  return (inode.subvolume << kNumberBits) | inode.number;
}

constexpr std::optional<u64> node_of(volume::InodeId inode) {
  if (inode == volume::kRootInode) return kRootNode;
  return number_of(inode);
}

constexpr volume::InodeId inode_of(u64 node) {
  if (node == kRootNode) return volume::kRootInode;
  const u64 subvolume = node >> kNumberBits;
  return {subvolume == 0 ? volume::kRootInode.subvolume : subvolume,
          node & ((u64{1} << kNumberBits) - 1)};
}

}  // namespace latchkey::mount
