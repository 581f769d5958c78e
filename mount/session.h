#pragma once
// The connection with the kernel: mounted, served by threads of its own, ended by an unmount.
//
// The loop is not libfuse's: its threads are the project's, each wipes the request that it answered
// (they carry plaintext), and one request that libfuse 3.14 does not know is answered here.
//
// Threads: a request may wait inside of the volume, for the disk or for a removal that holds
// truncates back while it needs other requests answered; so whoever takes the last idle thread
// wakes one that rests, or starts another one. While one caller makes all requests, one thread
// takes them (companion.h).

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/result.h"
#include "base/thread.h"
#include "mount/companion.h"
#include "mount/file_system.h"
#include "mount/place.h"

namespace latchkey::mount {

struct SessionOptions {
  std::string directory;  // absolute
  std::string source;     // as /proc/mounts names it
  bool read_only = false;
  std::vector<std::string>
      kernel;  // options of mount(8) and mount.fuse(8): "allow_other", "noexec"
  u32 threads_max = 64;
  bool companion = true;  // mount/companion.h
};

class Session {
 public:
  explicit Session(FileSystem& file_system) : file_system_(file_system) {}
  ~Session();  // ended by then, or never served; who is still inside gets errors from here on
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Mounts. An error has libfuse's words.
  Result<void> mount(const SessionOptions& options);
  // Requests are answered from here on.
  Result<void> serve();
  // Readable once the kernel has let go, by whatever unmount, or requests cannot be taken any more.
  int ended_fd() const { return ended_fd_; }
  std::optional<Error> failure();  // why they cannot
  // Takes the mount away, if it is still what is at its directory: gently, else by force. False:
  // the kernel has not let go, because programs are inside or somebody has a copy of the mount.
  bool unmount();
  // No request is taken any more, though the kernel has not let go. Those in hand are answered.
  void cut();
  void join();  // after the kernel has let go, or cut()

  fuse_session* handle() const { return session_; }

 private:
  Result<void> mount_as_root();
  Result<void> mount_as_user();
  void run();
  void receive(fuse_buf& buffer);
  bool begin_request();  // true: no other thread has one
  void end_request();
  void rest() LK_EXCLUDES(mutex_);
  void end_rest() LK_EXCLUDES(mutex_);
  void start_thread() LK_REQUIRES(mutex_);
  bool answer_unnamed(Bytes request);

  FileSystem& file_system_;
  SessionOptions options_;
  fuse_session* session_ = nullptr;
  std::optional<Place> place_;  // while it is mounted
  int ended_fd_ = -1;
  std::atomic<bool> cut_{false};
  Companion companion_;
  Mutex mutex_;
  CondVar wanted_;                      // with mutex_: by who takes the last idle thread
  u32 idle_ LK_GUARDED_BY(mutex_) = 0;  // but for those that rest
  u32 resting_ LK_GUARDED_BY(mutex_) = 0;
  bool over_ LK_GUARDED_BY(mutex_) = false;  // nobody rests any more
  std::vector<Thread> threads_ LK_GUARDED_BY(mutex_);
  std::vector<pid_t> receiving_ LK_GUARDED_BY(mutex_);  // those that have not ended
  std::optional<Error> failure_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::mount
