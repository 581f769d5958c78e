#include "mount/notifier.h"

#include <utility>
#include <vector>

namespace latchkey::mount {
namespace {

// A program that faults its pages in as fast as they go gets parked between two passes: so few are
// enough, and this many say that something is wrong.
constexpr int kPassesMax = 1000;

}  // namespace

void Notifier::start(fuse_session* session) {
  session_ = session;
  Lock lock(mutex_);
  running_ = true;
  thread_.emplace([this] { run(); });
}

void Notifier::stop() {
  {
    Lock lock(mutex_);
    running_ = false;
    changed_.notify_all();
  }
  if (!thread_) return;
  thread_->join();
  thread_.reset();
}

u64 Notifier::drop(std::span<const u64> nodes) {
  if (nodes.empty()) return 0;
  Batch batch{.left = nodes.size()};
  Lock lock(mutex_);
  if (!running_) return 0;
  std::deque<Job> jobs;
  for (const u64 node : nodes) jobs.push_back({.node = node, .batch = &batch});
  jobs_.insert(jobs_.end(), jobs.begin(), jobs.end());
  changed_.notify_all();
  while (batch.left != 0) changed_.wait(mutex_);
  return batch.given_up;
}

void Notifier::drop_then(u64 node, PageRange range, std::function<void()> then) {
  {
    Lock lock(mutex_);
    if (running_) {
      jobs_.push_back({.node = node, .range = range, .then = std::move(then)});
      changed_.notify_all();
      return;
    }
  }
  then();
}

void Notifier::drop_soon(u64 node) {
  Lock lock(mutex_);
  if (!running_) return;
  soon_.insert(node);
  changed_.notify_all();
}

std::optional<Notifier::Job> Notifier::next() {
  Lock lock(mutex_);
  while (jobs_.empty() && soon_.empty() && running_) changed_.wait(mutex_);
  if (!jobs_.empty()) {
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    return job;
  }
  if (soon_.empty()) return std::nullopt;
  return Job{.node = soon_.extract(soon_.begin()).value()};
}

void Notifier::run() {
  while (const auto job = next()) {
    const bool gone = take_back(job->node, job->range);
    finish(*job, gone);
  }
}

void Notifier::finish(const Job& job, bool gone) {
  if (job.then) job.then();
  if (job.batch == nullptr) return;
  Lock lock(mutex_);
  if (!gone) {
    ++job.batch->given_up;
    soon_.insert(job.node);
  }
  --job.batch->left;
  changed_.notify_all();
}

bool Notifier::take_back(u64 node, PageRange whole) {
  std::vector<PageRange> wanted{whole};
  for (int pass = 0; pass < kPassesMax && !wanted.empty(); ++pass) {
    std::vector<PageRange> again;
    for (PageRange range : wanted) {
      while (!range.empty()) {
        const PageRange piece = parked_.begin_piece(node, range);
        if (piece.empty()) break;
        const bool to_the_end = piece.end == PageRange{}.end;
        (void)fuse_lowlevel_notify_inval_inode(
            session_, node, static_cast<off_t>(piece.begin),
            to_the_end ? 0 : static_cast<off_t>(piece.end - piece.begin));
        parked_.end_piece(again);
        range.begin = piece.end;
      }
    }
    wanted = std::move(again);
  }
  return wanted.empty();
}

}  // namespace latchkey::mount
