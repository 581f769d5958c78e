#include "tests/sim/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace latchkey::tests {

FiberScheduler::FiberScheduler(const SchedulerOptions& options)
    : options_(options), random_(options.seed) {
  draw_next_point();
}

FiberScheduler::~FiberScheduler() { LK_CHECK(actors_.empty()); }

u64 FiberScheduler::add(std::function<void()> body) {
  auto actor = std::make_unique<Actor>();
  actor->name = next_name_++;
  actor->fiber = std::make_unique<Fiber>(std::move(body));
  actor->priority = random_();
  actors_.push_back(std::move(actor));
  return actors_.back()->name;
}

FiberScheduler::Actor* FiberScheduler::find(u64 name) {
  for (const auto& actor : actors_)
    if (actor->name == name) return actor.get();
  return nullptr;
}

void FiberScheduler::run(std::function<void()> body) {
  LK_CHECK_MSG(current_ == nullptr, "one simulation at a time");
  current_ = this;
  install_scheduler(this);
  steps_begun_ = steps_;
  add(std::move(body));
  while (!actors_.empty()) {
    Actor& actor = choose();
    ++steps_;
    LK_CHECK_MSG(steps_ - steps_begun_ < options_.steps_max, "a livelock: the fibers never end");
    note(actor.name ^ now_ns_ << 8U);
    running_ = &actor;
    actor.fiber->resume();
    running_ = nullptr;
    if (!actor.fiber->ended()) continue;
    const u64 name = actor.name;
    std::erase_if(actors_, [&](const auto& other) { return other.get() == &actor; });
    for (const auto& other : actors_)
      if (other->wait == Wait::join && other->join == name) other->wait = Wait::none;
  }
  install_scheduler(nullptr);
  current_ = nullptr;
}

void FiberScheduler::wake_due() {
  for (const auto& actor : actors_) {
    if (actor->wait == Wait::none || actor->deadline_ns > now_ns_) continue;
    actor->timed_out = true;
    actor->wait = Wait::none;
  }
}

std::vector<FiberScheduler::Actor*> FiberScheduler::ready() {
  std::vector<Actor*> found;
  for (const auto& actor : actors_)
    if (actor->wait == Wait::none) found.push_back(actor.get());
  return found;
}

FiberScheduler::Actor& FiberScheduler::choose() {
  now_ns_ += below(options_.step_ns_max + 1);
  wake_due();
  std::vector<Actor*> able = ready();
  if (able.empty()) {
    const auto first =
        std::ranges::min_element(actors_, {}, [](const auto& actor) { return actor->deadline_ns; });
    LK_CHECK_MSG((*first)->deadline_ns != kForever, "a deadlock: all fibers wait for ever");
    now_ns_ = (*first)->deadline_ns;
    wake_due();
    able = ready();
  }
  if (!options_.by_priority) return *able[below(able.size())];
  Actor& chosen = **std::ranges::max_element(able, {}, &Actor::priority);
  if (below(16) == 0) chosen.priority = random_() >> 16U;  // behind most of those that come later
  return chosen;
}

void FiberScheduler::block(Wait wait, u64 deadline_ns) {
  Actor& actor = *running_;
  actor.wait = wait;
  actor.deadline_ns = deadline_ns;
  actor.timed_out = false;
  actor.fiber->pause();
  actor.deadline_ns = kForever;
  actor.word = nullptr;
}

void FiberScheduler::sleep_until(u64 ns) {
  if (!inside()) {
    now_ns_ = std::max(now_ns_, ns);
    return;
  }
  if (ns > now_ns_) block(Wait::time, ns);
}

void FiberScheduler::sleep(std::atomic<u32>& word, u32 seen, u64 ns) {
  if (ns > now_ns_) wait_on(word, seen, ns - now_ns_);
}

void FiberScheduler::draw_next_point() {
  points_left_ =
      options_.preempt_in_1024 == 0 ? kForever : 1 + below(2 * 1024 / options_.preempt_in_1024);
}

void FiberScheduler::point() {
  if (!inside() || --points_left_ != 0) return;
  draw_next_point();
  block(Wait::none, kForever);
}

bool FiberScheduler::wait_on(std::atomic<u32>& word, u32 expected, u64 timeout_ns) {
  if (word.load() != expected) {
    point();
    return true;
  }
  if (!inside()) {
    LK_CHECK_MSG(timeout_ns != kForever, "a wait outside of fibers that nobody can end");
    now_ns_ += timeout_ns;
    return false;
  }
  if (below(1024) < options_.spurious_in_1024) {
    block(Wait::none, kForever);
    return true;
  }
  running_->word = &word;
  const bool ends = timeout_ns < kForever - now_ns_;
  block(Wait::word, ends ? now_ns_ + timeout_ns : kForever);
  return !running_->timed_out;
}

void FiberScheduler::wake(std::atomic<u32>& word, u32 count_max) {
  std::vector<Actor*> waiting;
  for (const auto& actor : actors_)
    if (actor->wait == Wait::word && actor->word == &word) waiting.push_back(actor.get());
  for (u32 woken = 0; woken < count_max && !waiting.empty(); ++woken) {
    const auto at = waiting.begin() + static_cast<std::ptrdiff_t>(below(waiting.size()));
    (*at)->wait = Wait::none;
    waiting.erase(at);
  }
  point();
}

u64 FiberScheduler::start_thread(std::function<void()> body) {
  const u64 name = add(std::move(body));
  point();
  return name;
}

void FiberScheduler::join_thread(u64 thread) {
  LK_CHECK_MSG(inside(), "a fiber is joined by a fiber");
  if (find(thread) == nullptr) return point();
  running_->join = thread;
  block(Wait::join, kForever);
}

}  // namespace latchkey::tests
