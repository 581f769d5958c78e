#pragma once
// What a volume of the crash points holds, without a disk: names, inodes with several names, what
// is said of each, subvolumes; and what may be there after a crash.
//
//   - Calls on names and attributes are whole or absent, in their order: after a crash the tree is
//     what it was after some call, not before the last one that is durable.
//   - Contents follow FileHistory, each inode on its own.
//
// A call that the model refuses changes nothing and must be refused by the volume, and the other
// way round. A copy is independent of the original. Paths are "/a/b", the root is "".

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/file_history.h"
#include "volume/types.h"

namespace latchkey::tests {

// A volume as it was read.
struct FoundEntry {
  volume::InodeId inode;
  volume::FileKind kind{};
  u32 links = 0;
  std::string says;  // target, policy, ...: whatever a call may change of it, as text
  std::vector<std::byte> contents;
  bool operator==(const FoundEntry&) const = default;
};
using FoundTree = std::map<std::string, FoundEntry>;  // without the root

class PointModel {
 public:
  PointModel();

  // Each answers false if the volume must refuse.
  bool make(const std::string& path, volume::FileKind kind, const std::string& says = {});
  bool link(const std::string& from, const std::string& to);
  bool remove(const std::string& path, bool directory);
  bool rename(const std::string& from, const std::string& to);
  bool exchange(const std::string& a, const std::string& b);
  bool say(const std::string& path, const std::string& what, const std::string& value);
  bool unsay(const std::string& path, const std::string& what);  // it was said
  bool write(const std::string& path, u64 offset, Bytes bytes);
  bool append(const std::string& path, Bytes bytes);
  bool truncate(const std::string& path, u64 size);
  bool grow(const std::string& path, u64 size);  // or leave it
  bool punch(const std::string& path, u64 offset, u64 length);
  bool copy_contents(const std::string& from, const std::string& to);  // its front
  bool snapshot(const std::string& to);  // of everything but subvolumes below
  bool has_contents(const std::string& path) const;
  u64 size(const std::string& path) const;

  // Durable is the file, what is said of it and each name that leads to it, in the directory where
  // it is; not what else happened since, such as a new name of that directory.
  bool fsync(const std::string& path);
  void sync();

  // While `locked`, nothing below /vault can be reached by its name.
  void lock(bool locked) { locked_ = locked; }
  bool locked() const { return locked_; }
  // A call failed for another reason than one that the model knows: names are what they were, of
  // contents what it would have written may be there.
  void take_names_of(const PointModel& before);
  // Dirty pages were dropped: what the last contents are is not known any more.
  void lose_dirty();

  // While the volume runs: nothing if the tree is what the calls have made; else the difference.
  std::optional<std::string> compare_live(const FoundTree& found) const;
  // After a crash: nothing if it may have left that.
  std::optional<std::string> compare_recovered(const FoundTree& found) const;

 private:
  struct Item {
    volume::FileKind kind{};
    std::map<std::string, std::string> says;
  };
  struct Shape {
    std::map<std::string, u64> names;  // path -> inode
    std::map<u64, Item> items;
  };

  Shape& next();  // a copy of the last shape, for a call on names
  const Shape& last() const { return shapes_.back(); }
  bool reachable(const std::string& path) const;
  bool may_have(const std::string& path) const;  // a new name
  std::optional<u64> inode(const std::string& path) const;
  bool is(const std::string& path, volume::FileKind kind) const;
  bool is_directory(const std::string& path) const;
  bool has_below(const std::string& path) const;
  static void move(Shape& shape, const std::string& from, const std::string& to);
  static std::string text(const Item& item);
  static std::string about(const Shape& shape, u64 number);
  static std::optional<std::string> differs(const Shape& shape, const FoundTree& found);
  std::optional<std::string> contents_differ(const Shape& shape, const FoundTree& found,
                                             bool live) const;

  std::vector<Shape> shapes_;  // after each call on names, from the durable one on
  std::map<u64, FileHistory> contents_;
  std::map<u64, bool> lost_;   // their last contents are not known
  std::map<u64, bool> dirty_;  // written since the last flush of the file
  u64 next_inode_ = 1;
  bool locked_ = false;
};

}  // namespace latchkey::tests
