#pragma once
// One caller, one thread, one processor.
//
// A program that makes one call behind the other sleeps while each is answered. If that happens on
// another processor, each call wakes up two that have gone to sleep: microseconds, and tens or
// hundreds of them in a virtual machine. So while all requests come from one thread, one behind the
// other, one thread of the session takes them all, the companion: bound to the processor on which
// its caller runs, and of the class SCHED_IDLE. The scheduler takes a processor that has nothing
// else to run for idle, and so has the caller wake up where it slept (kernel/sched/fair.c,
// sched_idle_cpu). The other threads of the session wait meanwhile.
//
// Such a thread comes last on a busy machine, and alone it cannot answer those who wait for each
// other. So a guardian of the ordinary class looks each other millisecond. It has all other threads
// of the process keep away from the companion's processor, which is a good place to them for the
// same reason, and lends the companion the ordinary class while it could run and does not. Within a
// few looks it makes the companion a thread as the others, and all take requests again, if a
// request waits that nobody takes, or if the companion could run and does not come to it; and also
// once nobody has asked for anything for a while. The companion itself sees that others ask, that
// requests queue up, or that somebody reads so far ahead that a thread beside him is of use.
//
// None is made where a thread may not leave SCHED_IDLE (it needs CAP_SYS_NICE, or an RLIMIT_NICE of
// 20), nor on one processor.
//
// Threads: as each call says. Lock: mutex_, a leaf. The guardian waits for it, so nobody holds it
// as SCHED_IDLE.

#include <sys/types.h>

#include <atomic>
#include <memory>

#include "base/mutex.h"
#include "base/thread.h"
#include "base/types.h"

namespace latchkey::mount {

class Companion {
 public:
  Companion() = default;
  ~Companion();  // no thread of the session is left
  Companion(const Companion&) = delete;
  Companion& operator=(const Companion&) = delete;

  // What one thread of the session keeps of its own.
  class Turn {
   public:
    Turn();

   private:
    friend class Companion;
    bool has_others();
    bool slept();

    const pid_t self_;
    pid_t caller_ = 0;
    int processor_ = -1;
    u32 glance_every_ = 0;
    long switches_ = 0;  // of this thread, of its own will
    u32 taken_ = 0;
    u32 strangers_ = 0;  // of the last ones: by other callers,
    u32 sampled_ = 0;    // looked behind,
    u32 queued_ = 0;     // and another was waiting
  };

  // Once, before requests are taken. Where it cannot be had there is none, and no error.
  void start(int fuse_fd);
  // From here on all threads take requests. Any thread.
  void close();

  // By each thread of the session: before it waits for a request, when it has one, and when that
  // is answered. `alone`: no other thread of the session has one.
  void wait_turn(const Turn& turn);
  void taken(Turn& turn, Bytes request, bool alone);
  void answered(const Turn& turn);

 private:
  // What the guardian remembers of its last look.
  struct Look {
    pid_t thread = 0;
    u64 taken = 0;
    u32 still = 0;         // looks in a row since when no request was taken
    bool hurried = false;  // of the ordinary class, to run at all
    int away_from = -1;    // the companion's processor
  };

  bool is_companion(const Turn& turn) const { return thread_.load() == turn.self_; }
  bool may_begin(const Turn& turn, pid_t caller, bool alone) LK_EXCLUDES(mutex_);
  bool follow(Turn& turn, pid_t caller);
  void begin(Turn& turn, pid_t caller) LK_EXCLUDES(mutex_);
  void go_on(Turn& turn) LK_EXCLUDES(mutex_);
  void give_up(const Turn& turn, bool contended) LK_EXCLUDES(mutex_);
  void end(bool contended) LK_REQUIRES(mutex_);
  void guard() LK_EXCLUDES(mutex_);
  void look(Look& at) LK_REQUIRES(mutex_);

  int fuse_fd_ = -1;
  std::atomic<bool> enabled_{false};  // there is a guardian
  std::atomic<pid_t> thread_{0};      // the companion; 0: there is none. Changed under mutex_
  std::atomic<int> processor_{-1};    // the companion's
  std::atomic<u64> taken_{0};         // by the companion
  std::atomic<bool> busy_{false};

  Mutex mutex_;
  CondVar changed_;  // of the guardian
  CondVar ended_;    // of the threads that wait
  bool closed_ LK_GUARDED_BY(mutex_) = false;
  pid_t last_caller_ LK_GUARDED_BY(mutex_) = 0;
  u32 in_a_row_ LK_GUARDED_BY(mutex_) = 0;
  u64 begun_ns_ LK_GUARDED_BY(mutex_) = 0;
  u64 not_before_ns_ LK_GUARDED_BY(mutex_) = 0;
  u64 pause_ns_ LK_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<Thread> guardian_;
};

// First of all in a thread that one of the session's starts: it inherits a class and a processor
// that were not meant for it.
void be_ordinary();

}  // namespace latchkey::mount
