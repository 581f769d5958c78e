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

  // An empty store with these directories; the first ones are encrypted under the one key.
  static Result<void> format(engine::Device& device, Env& env,
                             const std::vector<std::string>& encrypted,
                             const std::vector<std::string>& plain);
  // Without its key.
  static Result<std::unique_ptr<Files>> open(engine::Device& device, const FilesOptions& options,
                                             Env& env);
  ~Files();
  Result<void> close();

  Result<void> add_key(u32 uid);
  Result<Removed> remove_key(u32 uid, bool hard);

  Result<File> open_file(const std::string& path, volume::OpenFlags flags);
  Result<void> close_file(File file);
  Result<void> write(File file, u64 offset, Bytes bytes);
  Result<u64> append(File file, Bytes bytes);
  Result<u64> read(File file, u64 offset, MutableBytes into);
  Result<void> truncate(File file, u64 size);
  Result<void> fsync(File file);
  Result<void> sync();
  bool stopped();  // nothing goes down any more (design D4)

  Result<void> mkdir(const std::string& path);
  Result<void> rmdir(const std::string& path);
  Result<void> unlink(const std::string& path);
  Result<void> rename(const std::string& from, const std::string& to, bool no_replace);
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
