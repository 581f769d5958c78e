#pragma once
// The threads of a session that write: each appends numbered lines to a file of its own and makes
// every one durable. They stand still on demand and are not ended then, so that a scan finds their
// stacks and registers as the work left them.

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "volume/volume.h"

namespace latchkey::cli {

class SessionWriters {
 public:
  explicit SessionWriters(volume::Volume& volume) : volume_(volume) {}
  ~SessionWriters();

  struct Counts {
    u64 acknowledged = 0, after_removal = 0, failures = 0;
    std::string last_error;
  };
  // Opens `path`-0 ... and writes.
  Result<void> add(volume::Caller caller, const std::string& path, u32 count);
  void go() LK_EXCLUDES(mutex_);
  void stop() LK_EXCLUDES(mutex_);  // returns when all stand still
  void note_removal() { removed_ = true; }
  void note_add() { removed_ = false; }
  Counts counts() LK_EXCLUDES(mutex_);

  struct File {
    std::string path;
    volume::HandleId handle{};
    std::atomic<u64> acknowledged{0};  // lines
  };
  std::vector<const File*> files() const;

  struct Verified {
    u64 lines = 0, files = 0, files_wrong = 0;
  };
  // Reads every file: each acknowledged line is there, and none more.
  Result<Verified> verify(volume::Caller caller) const;

 private:
  struct Writer : File {
    u64 lines = 0;
    std::atomic<u64> after_removal{0}, failures{0};
    std::thread thread;
  };
  void run(Writer& writer) LK_EXCLUDES(mutex_);
  bool append(Writer& writer) LK_EXCLUDES(mutex_);

  volume::Volume& volume_;
  std::atomic<bool> removed_{false};
  std::vector<std::unique_ptr<Writer>> writers_;

  Mutex mutex_;
  CondVar changed_;  // with mutex_
  bool going_ LK_GUARDED_BY(mutex_) = false;
  bool ending_ LK_GUARDED_BY(mutex_) = false;
  u32 writing_ LK_GUARDED_BY(mutex_) = 0;
  std::string last_error_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::cli
