#pragma once
// One file without a disk: what a volume may hold of it after a crash.
//
// Of a write that no fsync has acknowledged each 4 KiB block is old or new, whatever its neighbours
// are; the size never runs ahead of the data; a truncate is there whole or not at all, and what it
// cut off does not come back (design D5). So a history is a list of epochs, each begun by a
// truncate, and within an epoch a list of versions for each block and the sizes that the file has
// had. Contents agree with the history if one epoch explains all of them. Not thread-safe.

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/types.h"

namespace latchkey::tests {

class FileHistory {
 public:
  static constexpr u64 kBlock = 4096;

  FileHistory() : epochs_(1) {}  // an empty file, as after its creation
  explicit FileHistory(Bytes durable);

  void write(u64 offset, Bytes bytes);
  void truncate(u64 size);
  void acknowledge();  // what it holds now is durable
  // What it holds was unknown (a call failed half way, dirty pages were dropped) and has been read:
  // nothing of that is durable, so a crash may still leave whatever it might have left before.
  void settle(Bytes contents);

  u64 size() const { return epochs_.back().size; }
  std::vector<std::byte> latest() const;
  // Nothing if a crash may leave `contents`; else what is wrong with them.
  std::optional<std::string> explain(Bytes contents) const;

 private:
  // `size`: bytes of the block that belonged to the file, the others are zero.
  struct Version {
    std::shared_ptr<const std::array<std::byte, kBlock>> bytes;  // null: zeros
    u64 size = 0;
  };
  struct Epoch {
    u64 size = 0;
    std::set<u64> sizes = {0};
    std::map<u64, std::vector<Version>> blocks;  // oldest first; none: a hole
  };

  static u64 inside(u64 size, u64 block);  // bytes of the block below `size`
  static Version written(const Version& old, u64 first, Bytes bytes);
  static Version cut(const Version& version, u64 size);
  static bool agrees(const Version& version, Bytes contents);
  static std::optional<std::string> explain_in(const Epoch& epoch, Bytes contents);

  std::vector<Epoch> epochs_;  // the first holds what is durable
};

}  // namespace latchkey::tests
