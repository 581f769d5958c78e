#pragma once
// Closes descriptors that came from somebody else and may be of any file: the last word of a close
// is the file system's (a FUSE one is asked to flush), and may never come. Each has a thread of its
// own; who has some that are stuck brings no more (pending()).

#include <map>
#include <memory>

#include "base/mutex.h"
#include "base/types.h"
#include "mount/unique_fd.h"

namespace latchkey::mount {

class FdCloser {
 public:
  FdCloser();
  // What is stuck stays so, and its thread with it; the process's end sees to both.
  ~FdCloser();
  FdCloser(const FdCloser&) = delete;
  FdCloser& operator=(const FdCloser&) = delete;

  void close(u32 uid, UniqueFd fd);
  // Of that user's, that are not closed yet.
  u32 pending(u32 uid) const;

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace latchkey::mount
