#pragma once
// Reads and writes that the volume would make wait: they hold a place here and no thread, until
// their key is worth another try, an INTERRUPT, or the end of the mount.
//
// Of direct ones there is no INTERRUPT: the kernel sends them as if nobody waited (ASYNC_DIO), and
// who does sleeps until the answer (fs/fuse/file.c, fuse_direct_IO). So while there are such ones
// next() looks whether their processes are being killed, and answers those.
//
// The kernel has the pages of a parked request locked, and whoever takes pages back would wait for
// them. So invalidation goes around them, piece by piece, and what arrives inside of the piece that
// is being taken back just then is not parked but served, and that range is taken back again.

#include <sys/types.h>

#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "mount/fuse.h"
#include "mount/open_files.h"
#include "volume/types.h"

namespace latchkey::mount {

// Bytes of a file, whole pages.
struct PageRange {
  u64 begin = 0;
  u64 end = ~u64{0};  // the first byte behind it; all ones: to the end of the file
  bool empty() const { return begin >= end; }
};

// Plaintext that is wiped when it goes.
class PrivateBytes {
 public:
  PrivateBytes() = default;
  explicit PrivateBytes(Bytes copied) : bytes_(copied.begin(), copied.end()) {}
  PrivateBytes(PrivateBytes&&) noexcept = default;
  PrivateBytes& operator=(PrivateBytes&& other) noexcept;
  ~PrivateBytes();
  Bytes bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// A READ or WRITE of the kernel's.
struct Io {
  fuse_req_t req = nullptr;
  u64 node = 0;
  OpenFile* file = nullptr;
  bool write = false;
  bool written_back = false;
  bool direct = false;  // past the kernel's pages (O_DIRECT): it has none locked
  bool synced = false;  // a write that is durable before its answer
  pid_t caller = 0;     // of a direct one that was parked: its process; 0: not known
  u64 offset = 0;
  u64 size = 0;
  Bytes data;         // of a write: the request's, or `kept`
  PrivateBytes kept;  // once it was parked

  PageRange touched() const;  // in whole pages
  PageRange pages() const;    // that the kernel has locked for it
};

class Parked {
 public:
  struct Limits {
    u32 count = 1024;
    u64 bytes = 64 * kMiB;  // of writes
  };
  explicit Parked(const Limits& limits) : limits_(limits) {}

  // How often somebody was told to try again: looked at before a call that may answer would_wait.
  u64 tries();
  enum class Place : u8 {
    parked,       // `io` is kept; somebody else answers it
    again,        // the key has changed since `seen`
    serve,        // its pages are being taken back: IoFlags::serve
    full,         // there is no place
    interrupted,  // answer EINTR
  };
  Place park(Io& io, u64 seen);
  void interrupt(u64 id);  // by libfuse; answers EINTR

  void try_again(const crypto::KeyId& key);
  // Waits for one that is to be tried again; none: stop() was called. Answers EINTR to those whose
  // callers are ending.
  std::optional<Io> next();
  // All that are parked come through next(), and nothing is parked any more.
  void stop();

  // --- of the one thread that takes pages back
  // The first piece of `range` that no parked request holds: until end_piece() it is the current.
  PageRange begin_piece(u64 node, PageRange range);
  // What was served inside of the piece is added to `again`.
  void end_piece(std::vector<PageRange>& again);

 private:
  struct Entry {
    Io io;
    bool registering = true;  // libfuse is being told of it: nobody may answer it yet
    bool interrupted = false;
  };
  struct Piece {
    u64 node = 0;
    PageRange range;
  };
  bool has_room(const Io& io) LK_REQUIRES(mutex_);
  static bool is_watched(const std::pair<const u64, Entry>& entry);
  void leave_with_callers() LK_EXCLUDES(mutex_);
  Io take(std::map<u64, Entry>::iterator entry) LK_REQUIRES(mutex_);

  const Limits limits_;
  Mutex mutex_;
  CondVar ready_changed_;  // with mutex_
  bool stopped_ LK_GUARDED_BY(mutex_) = false;
  u64 tries_ LK_GUARDED_BY(mutex_) = 0;
  u64 next_id_ LK_GUARDED_BY(mutex_) = 1;
  u64 bytes_ LK_GUARDED_BY(mutex_) = 0;
  std::map<u64, Entry> entries_ LK_GUARDED_BY(mutex_);
  std::deque<Io> ready_ LK_GUARDED_BY(mutex_);
  std::optional<Piece> piece_ LK_GUARDED_BY(mutex_);
  std::vector<PageRange> served_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::mount
