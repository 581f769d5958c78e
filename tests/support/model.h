#pragma once
// A file system without a disk: what a volume holds while it runs, and what it may hold after a
// crash.
//
//   - Names change in the order of the calls: after a crash the tree is what it was after some
//     call, not before the last one that is durable. Every call on names is there whole or not at
//     all. A file may have several names.
//   - Contents follow FileHistory, each file on its own. fsync acknowledges the file, its name and
//     what led to that: so the directories above it are there, but not under names that they got
//     later; sync acknowledges everything. A symlink's target never changes.
//
// A call that the power may interrupt is told to the model before it is made: then it may be there.
// A call that fails otherwise is not told. Paths are "a/b/c", the root is "". Misuse (a parent that
// does not exist) is an LK_CHECK. Not thread-safe.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "tests/support/file_history.h"

namespace latchkey::tests {

// How the model looks at a volume.
struct ModelReader {
  struct Entry {
    std::string name;
    bool directory = false;
    bool symlink = false;
    u64 inode = 0;  // 0: not told, so nobody asks which names are of one file
  };
  std::function<Result<std::vector<Entry>>(const std::string& path)> list;
  std::function<Result<std::vector<std::byte>>(const std::string& path)> read;
  std::function<Result<std::vector<std::byte>>(const std::string& path)> read_link;
};

// What a path leads to.
struct ModelFound {
  enum class Kind : u8 { directory, file, symlink };
  Kind kind = Kind::directory;
  std::vector<std::byte> bytes;  // a file's, or a symlink's target
  u64 inode = 0;

  ModelFound() = default;
  ModelFound(std::nullopt_t) {}
  ModelFound(std::vector<std::byte> contents) : kind(Kind::file), bytes(std::move(contents)) {}
  bool operator==(const ModelFound&) const = default;
};
// A whole tree as it was read, by path.
using ModelContents = std::map<std::string, ModelFound>;
Result<ModelContents> read_tree(const ModelReader& reader);

class Model {
 public:
  Model() : trees_(1) {}

  void create(const std::string& path);
  void mkdir(const std::string& path);
  void link(const std::string& from, const std::string& to);
  void symlink(const std::string& path, Bytes target);
  // A file that had no name.
  void name(const std::string& path, std::shared_ptr<FileHistory> file);
  void unlink(const std::string& path);
  void rmdir(const std::string& path);
  void write(const std::string& path, u64 offset, Bytes bytes);
  void append(const std::string& path, Bytes bytes);
  void truncate(const std::string& path, u64 size);
  void rename(const std::string& from, const std::string& to);  // what has the new name goes
  void exchange(const std::string& a, const std::string& b);
  void fsync(const std::string& path);
  // Of a file that `unsure` says nothing is acknowledged.
  void sync(const std::function<bool(const std::shared_ptr<FileHistory>&)>& unsure = {});

  bool exists(const std::string& path) const { return trees_.back().contains(path); }
  bool is_directory(const std::string& path) const;
  bool is_symlink(const std::string& path) const;
  bool is_empty(const std::string& path) const;  // a directory
  // The same for every name of a file, and as long as it is there.
  std::shared_ptr<FileHistory> history(const std::string& path) const;
  u64 size(const std::string& path) const;
  // What it should read; whether a crash, or a call that failed half way, may have left `contents`.
  std::vector<std::byte> latest(const std::string& path) const;
  std::optional<std::string> explain(const std::string& path, Bytes contents) const;
  // It was found to hold that, which explain() allows: so it goes on from there.
  void settle(const std::string& path, Bytes contents);
  std::vector<std::string> files() const;        // symlinks are none
  std::vector<std::string> directories() const;  // without the root
  std::vector<std::string> names() const;        // all of them

  // As it is now, apart from this one: what a snapshot holds that is durable. Of a file that
  // `unsure` says it keeps what may be in it.
  Model copy(const std::function<bool(const std::shared_ptr<FileHistory>&)>& unsure) const;

  // While the volume runs: nothing if the tree is what the calls have made; else the difference.
  std::optional<std::string> compare_live(const ModelContents& contents) const;
  // After a crash: nothing if it may have left that.
  std::optional<std::string> compare_recovered(const ModelContents& contents) const;
  // Goes on from there: what was recovered is durable.
  void adopt(const ModelContents& contents);

 private:
  struct Node {
    std::shared_ptr<FileHistory> file;  // null: a directory
    u64 named_at = 0;                   // number of the call that made the name
    bool symlink = false;               // the file is its target
    ModelFound::Kind kind() const;
  };
  using Tree = std::map<std::string, Node>;

  Tree& next_tree();  // a copy of the last, for a call on names
  void add(const std::string& path, Node node);
  FileHistory& file(const std::string& path);
  void durable_through(u64 call);
  static Tree moved(Tree& tree, const std::string& from, const std::string& to, u64 call);
  static std::optional<std::string> names_differ(const Tree& tree, const ModelContents& contents);

  std::vector<Tree> trees_;  // after each call on names, from the durable one on
  u64 first_call_ = 0;       // number of trees_[0]
};

}  // namespace latchkey::tests
