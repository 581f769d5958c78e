#pragma once
// The verbs at work: requests that the server has read, on a bounded number of threads.
//
// Two lanes, so that what a device or a removal holds up never stands before a status: `quick` asks
// and adds, `slow` removes and sets policies. In each lane users take turns, and one ordinary user
// has at most half of the threads. A removal that waits for its key to go has no thread: its job
// comes back unfinished with the time of the next look, and whoever drops it cancels the waiting.
// One with a deadline is not dropped with its client, and goes on when he was told that he has
// waited long enough: it comes back with an answer and waits.

#include <functional>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include "base/env.h"
#include "base/mutex.h"
#include "base/secret.h"
#include "base/thread.h"
#include "mount/control_socket.h"
#include "mount/key_service.h"
#include "mount/wire.h"

namespace latchkey::mount {

struct Job {
  u64 connection = 0;
  Peer peer;
  Request request;
  SecretBytes key;  // key_add
  u64 st_ino = 0;   // policy_get, policy_set
  u64 begun_ns = 0;

  // A removal that waits.
  bool waiting = false;
  bool refused_busy = false;  // safe: it is to be tried again
  u64 look_ns = 0;            // when
  u64 pause_ns = 0;           // between this look and the next
  volume::RemovalReport report;

  std::vector<std::vector<std::byte>> answer;  // once it does not wait; empty: no memory
  std::optional<crypto::KeyId> added;          // key_add
  bool counted = false;                        // by the server, for its deadline

  bool has_deadline() const { return request.removal.deadline_ns.has_value(); }
};

// Its nodes go from queue to queue, so that once a job is in one no memory is needed for it.
using JobList = std::list<std::unique_ptr<Job>>;

class ControlJobs {
 public:
  struct Options {
    u32 quick_threads = 2;
    u32 slow_threads = 4;
    u64 answer_bytes_max = kMiB;  // what is beyond is left out and counted
  };
  // `wake` is called by the threads, when something is to be taken back.
  ControlJobs(KeyService& service, Env& env, const Options& options, std::function<void()> wake);
  ~ControlJobs();  // stop() has been called

  // One job; it stays where it is if memory ends (std::bad_alloc).
  void submit(JobList& job) LK_EXCLUDES(mutex_);
  // What is finished, or waits.
  JobList take_back() LK_EXCLUDES(mutex_);
  // Drops what has not begun, and waits for what has.
  void stop() LK_EXCLUDES(mutex_);

 private:
  struct User {
    JobList queue;
    u32 running = 0;
  };
  struct Lane {
    u32 threads = 0;
    std::map<u32, User> users;  // by uid; those that have something
    u32 last_uid = 0;           // whose turn it was
  };
  void work(bool slow) LK_EXCLUDES(mutex_);
  Lane& lane(bool slow) LK_REQUIRES(mutex_) { return slow ? slow_ : quick_; }
  static JobList next(Lane& lane);
  bool is_slow(const Job& job);
  void run(Job& job);
  Done perform(Job& job, AnswerWriter& writer);
  void remove(Job& job);
  void look(Job& job);
  void go_on(Job& job, const volume::RemovalRequest& request);
  void after_removal(Job& job, const Result<void>& removed);
  void finish(Job& job, const Result<void>& outcome);

  KeyService& service_;
  Env& env_;
  const Options options_;
  const std::function<void()> wake_;
  Mutex mutex_;
  CondVar queued_;
  Lane quick_ LK_GUARDED_BY(mutex_);
  Lane slow_ LK_GUARDED_BY(mutex_);
  JobList back_ LK_GUARDED_BY(mutex_);
  bool stopping_ LK_GUARDED_BY(mutex_) = false;
  std::vector<Thread> threads_;
};

}  // namespace latchkey::mount
