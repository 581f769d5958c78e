#pragma once
// The volume as the simulator's callers see it: files by path. The one place of the simulator that
// calls volume::Volume.

#include <memory>
#include <string>
#include <vector>

#include "base/env.h"
#include "base/result.h"
#include "engine/io.h"
#include "tests/support/ledger.h"
#include "tests/support/model.h"
#include "volume/volume.h"

namespace latchkey::tests {

struct FilesOptions {
  bool inline_writeback = false;
  u32 workers = 1;
  u32 commit_interval_ms = 0;
};

class Files {
 public:
  using File = volume::HandleId;
  struct Removed {
    u64 bytes_lost = 0;
    bool busy = false;
  };

  static constexpr u32 kUser = 1000;

  // What lies in the root of an empty store; what is encrypted is so under the one key.
  struct Top {
    std::string path;
    bool encrypted = true;
    bool subvolume = false;
  };
  static Result<void> format(engine::Device& device, Env& env, const std::vector<Top>& tops);
  // Without its key.
  static Result<std::unique_ptr<Files>> open(engine::Device& device, const FilesOptions& options,
                                             Env& env);
  ~Files();
  Result<void> close();

  Result<void> add_key(u32 uid);
  // A deadline of suspend's, so that somebody who waits goes on in the end.
  Result<Removed> remove_key(u32 uid, keymgr::RemovalMode mode);

  Result<File> open_file(const std::string& path, volume::OpenFlags flags);
  Result<void> close_file(File file);
  Result<void> write(File file, u64 offset, Bytes bytes);
  Result<u64> append(File file, Bytes bytes);
  Result<u64> read(File file, u64 offset, MutableBytes into);
  Result<void> truncate(File file, u64 size);
  Result<void> punch(File file, u64 offset, u64 length);
  Result<void> allocate(File file, u64 offset, u64 length, bool keep_size);
  struct Range {
    u64 from = 0;
    u64 to = 0;
    u64 length = 0;
  };
  Result<void> clone(File from, File to, const Range& range);
  Result<void> fsync(File file);
  Result<void> sync();
  bool stopped();  // nothing goes down any more (design D4)

  Result<void> mkdir(const std::string& path);
  Result<void> rmdir(const std::string& path);
  Result<void> unlink(const std::string& path);
  Result<void> rename(const std::string& from, const std::string& to, volume::RenameFlags flags);
  Result<void> link(const std::string& from, const std::string& to);
  Result<void> link(File unnamed, const std::string& to);
  Result<void> symlink(const std::string& path, const std::string& target);
  Result<std::vector<std::byte>> read_link(const std::string& path);
  Result<File> open_unnamed(const std::string& directory);

  Result<void> make_subvolume(const std::string& path);
  Result<void> snapshot(const std::string& source, const std::string& path, bool read_only);
  Result<void> remove_subvolume(const std::string& path);
  Result<void> finish_removals();
  // Answers how much was wrong, but for superblock copies: a crash may tear them, which a scrub
  // mends.
  Result<u64> scrub();
  Result<std::vector<ModelReader::Entry>> list(const std::string& path);
  Result<std::vector<std::byte>> read_all(File file);
  // Below a directory, for the model.
  ModelReader reader(const std::string& root);

 private:
  explicit Files(std::unique_ptr<volume::Volume> volume);
  std::unique_ptr<volume::Volume> volume_;
  crypto::KeyId key_;  // once it was added
};

// Offline: what check says of the structure, and what the ledger says of every sealed block.
Result<std::vector<std::string>> check_files(engine::Device& device, NonceLedger& ledger);

}  // namespace latchkey::tests
