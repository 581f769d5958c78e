#include "mount/control_jobs.h"

#include <algorithm>

#include "base/check.h"
#include "base/no_memory.h"

namespace latchkey::mount {

namespace {

using keymgr::KeyState;
using keymgr::RemovalMode;

constexpr u64 kFirstPauseNs = 5'000'000;
constexpr u64 kLongestPauseNs = 100'000'000;

volume::Caller caller_of(const Job& job) {
  volume::Caller caller;
  caller.uid = job.peer.uid;
  caller.gid = job.peer.gid;
  caller.pid = job.peer.pid;
  return caller;
}

Done done_of(const Error& error) {
  Done done;
  done.error = error.code;
  done.os_errno = error.os_errno;
  done.sentence = error.what;
  return done;
}

Done done_of(const Result<void>& outcome) { return outcome ? Done{} : done_of(outcome.error()); }

u64 after(u64 begun_ns, u64 duration_ns) {
  return duration_ns > kForever - begun_ns ? kForever : begun_ns + duration_ns;
}

u64 deadline_of(const Job& job) {
  const auto& deadline = job.request.removal.deadline_ns;
  return deadline ? after(job.begun_ns, *deadline) : kForever;
}

u64 limit_of(const Job& job) { return after(job.begun_ns, job.request.wait_ns); }

// What both parts of a removal that its deadline turned into another one have done.
void add_up(volume::RemovalReport& sum, volume::RemovalReport&& later) {
  later.bytes_flushed += sum.bytes_flushed;
  later.bytes_lost += sum.bytes_lost;
  later.files_lost += sum.files_lost;
  later.lost.insert(later.lost.begin(), sum.lost.begin(), sum.lost.end());
  later.phases.insert(later.phases.begin(), sum.phases.begin(), sum.phases.end());
  sum = std::move(later);
}

}  // namespace

ControlJobs::ControlJobs(KeyService& service, Env& env, const Options& options,
                         std::function<void()> wake)
    : service_(service), env_(env), options_(options), wake_(std::move(wake)) {
  quick_.threads = options.quick_threads;
  slow_.threads = options.slow_threads;
  for (u32 i = 0; i < options.quick_threads; ++i) threads_.emplace_back([this] { work(false); });
  for (u32 i = 0; i < options.slow_threads; ++i) threads_.emplace_back([this] { work(true); });
}

ControlJobs::~ControlJobs() { LK_CHECK_MSG(threads_.empty(), "stopped before it goes"); }

void ControlJobs::submit(JobList& job) {
  Lock lock(mutex_);
  if (stopping_) return job.clear();
  const Job& first = *job.front();
  JobList& queue = lane(is_slow(first)).users[first.peer.uid].queue;
  queue.splice(queue.end(), job, job.begin());
  queued_.notify_all();
}

JobList ControlJobs::take_back() {
  Lock lock(mutex_);
  return std::exchange(back_, {});
}

void ControlJobs::stop() {
  {
    Lock lock(mutex_);
    stopping_ = true;
    for (Lane* each : {&quick_, &slow_})
      for (auto& [uid, user] : each->users) user.queue.clear();
    queued_.notify_all();
  }
  for (Thread& thread : threads_) thread.join();
  threads_.clear();
}

bool ControlJobs::is_slow(const Job& job) {
  if (job.request.verb != Verb::key_remove) return job.request.verb == Verb::policy_set;
  const bool only_looks = job.waiting && !job.refused_busy;
  return !only_looks || env_.monotonic_ns() >= deadline_of(job);
}

// Of the users after the last one in turn, the first who has not too many at work. One job, or
// none.
JobList ControlJobs::next(Lane& lane) {
  const u32 share = std::max<u32>(1, lane.threads / 2);
  JobList job;
  auto at = lane.users.upper_bound(lane.last_uid);
  for (std::size_t i = 0; i < lane.users.size(); ++i, ++at) {
    if (at == lane.users.end()) at = lane.users.begin();
    User& user = at->second;
    if (user.queue.empty() || (at->first != 0 && user.running >= share)) continue;
    job.splice(job.begin(), user.queue, user.queue.begin());
    ++user.running;
    lane.last_uid = at->first;
    break;
  }
  return job;
}

void ControlJobs::work(bool slow) {
  for (;;) {
    JobList job;
    {
      Lock lock(mutex_);
      while (!stopping_ && (job = next(lane(slow))).empty()) queued_.wait(mutex_);
      if (job.empty()) return;
    }
    const u32 uid = job.front()->peer.uid;
    run(*job.front());
    {
      Lock lock(mutex_);
      back_.splice(back_.end(), job);
      const auto user = lane(slow).users.find(uid);
      --user->second.running;
      if (user->second.running == 0 && user->second.queue.empty()) lane(slow).users.erase(user);
      queued_.notify_all();
    }
    wake_();
  }
}

void ControlJobs::run(Job& job) {
  const auto ran = or_no_memory([&]() -> Result<void> {
    if (job.waiting) {
      look(job);
    } else if (job.request.verb == Verb::key_remove) {
      remove(job);
    } else {
      AnswerWriter writer(job.request.sequence, options_.answer_bytes_max);
      const Done done = perform(job, writer);
      job.answer = writer.finish(done);
    }
    return {};
  });
  if (ran) return;
  job.waiting = false;
  (void)or_no_memory(
      [&] { job.answer = AnswerWriter(job.request.sequence, 0).finish(done_of(ran)); });
}

Done ControlJobs::perform(Job& job, AnswerWriter& writer) {
  const Request& request = job.request;
  switch (request.verb) {
    case Verb::key_add: {
      const auto added = service_.add(caller_of(job), std::move(job.key));
      if (!added) return done_of(added.error());
      job.added = *added;
      Done done;
      done.key_id = *added;
      return done;
    }
    case Verb::key_status: {
      const volume::KeyReport report = service_.status(caller_of(job), request.id);
      writer.add(report);
      writer.add(report.holders);
      return {};
    }
    case Verb::key_list:
      for (const volume::KeyReport& report : service_.list(caller_of(job))) writer.add(report);
      return {};
    case Verb::store: {
      const auto report = service_.store();
      if (!report) return done_of(report.error());
      writer.add(*report);
      return {};
    }
    case Verb::policy_get: {
      const auto report = service_.policy(job.st_ino);
      if (!report) return done_of(report.error());
      writer.add(*report);
      return {};
    }
    case Verb::policy_set:
      return done_of(service_.set_policy(caller_of(job), job.st_ino, request.id));
    default:
      return done_of(Error{Errc::malformed, "no verb of a request"});
  }
}

// --- removals ------------------------------------------------------------------------------------

// The first step. Where the caller waits, the deadline is kept here; else by the volume, which also
// keeps the one of those who wait for a suspended key.
void ControlJobs::remove(Job& job) {
  volume::RemovalRequest request = job.request.removal;
  const bool suspends = request.mode == RemovalMode::suspend;
  if (request.wait && !suspends) request.deadline_ns.reset();
  request.wait = false;
  after_removal(job, service_.remove(caller_of(job), job.request.id, request, job.report));
}

void ControlJobs::after_removal(Job& job, const Result<void>& removed) {
  const volume::RemovalRequest& request = job.request.removal;
  job.refused_busy = !removed && removed.error().code == Errc::busy;
  const bool leaving =
      removed && job.report.state == KeyState::incompletely_removed && !job.report.other_users;
  const bool waits = request.wait && !request.dry_run && (leaving || job.refused_busy);
  if (!waits) return finish(job, removed);
  const u64 now = env_.monotonic_ns();
  if (now >= limit_of(job)) {
    if (leaving) job.report.holders = service_.status(caller_of(job), job.request.id).holders;
    finish(job, leaving ? fail(Errc::timed_out, "files of the key are still open")
                        : fail(Errc::timed_out, "files are open; nothing was changed"));
    if (!job.has_deadline()) return;
    job.request.wait_ns = kForever;
  }
  job.waiting = true;
  job.pause_ns = job.pause_ns == 0 ? kFirstPauseNs : std::min(job.pause_ns * 2, kLongestPauseNs);
  job.look_ns = std::min({after(now, job.pause_ns), limit_of(job), deadline_of(job)});
}

void ControlJobs::look(Job& job) {
  const volume::RemovalRequest& request = job.request.removal;
  const u64 now = env_.monotonic_ns();
  if (now >= deadline_of(job))
    return go_on(job, {.mode = request.then, .all_users = request.all_users});
  if (job.refused_busy) return go_on(job, {.mode = request.mode, .all_users = request.all_users});
  const KeyState state = service_.state(caller_of(job), job.request.id);
  if (state == KeyState::incompletely_removed) return after_removal(job, {});
  job.report.state = state;
  job.report.files_busy = false;
  job.report.holders.clear();
  finish(job, {});
}

// Another removal of the key in this one's place.
void ControlJobs::go_on(Job& job, const volume::RemovalRequest& request) {
  job.request.removal.mode = request.mode;
  if (env_.monotonic_ns() >= deadline_of(job)) job.request.removal.deadline_ns.reset();
  volume::RemovalReport later;
  auto removed = service_.remove(caller_of(job), job.request.id, request, later);
  // Gone or back again in that moment: there is nothing to go on with.
  if (!removed && removed.error().code == Errc::no_key) {
    later = {};
    later.key_id = job.request.id;
    later.mode = request.mode;
    later.state = service_.state(caller_of(job), job.request.id);
    removed = {};
  }
  if (job.refused_busy)
    job.report = std::move(later);
  else
    add_up(job.report, std::move(later));
  after_removal(job, removed);
}

void ControlJobs::finish(Job& job, const Result<void>& outcome) {
  job.waiting = false;
  if (job.pause_ns != 0) job.report.phases.push_back({"wait", env_.monotonic_ns() - job.begun_ns});
  AnswerWriter writer(job.request.sequence, options_.answer_bytes_max);
  writer.add(job.report);
  job.answer = writer.finish(done_of(outcome));
}

}  // namespace latchkey::mount
