#include "tests/explore/explorer.h"

#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <utility>

#include "base/check.h"
#include "tests/explore/state_memory.h"

namespace latchkey::tests {
namespace {

constexpr u64 kStepsMax = 100'000;      // of one run
constexpr u64 kStackWiped = 12 * 1024;  // more than one step uses

std::vector<u32>& choices_so_far() {
  static std::vector<u32> choices;
  return choices;
}

// A broken invariant ends the process: which choices led there is said before.
void say_choices(int) {
  char text[4096];
  int length = std::snprintf(text, sizeof text, "explorer: choices ");
  for (const u32 choice : choices_so_far())
    if (length + 2 < static_cast<int>(sizeof text))
      text[length++] = static_cast<char>('0' + std::min(choice, 9U));
  text[length++] = '\n';
  [[maybe_unused]] const ssize_t written =
      ::write(STDERR_FILENO, text, static_cast<std::size_t>(length));
}

// A Mutex and a SharedMutex begin with the word that says who has them (base/mutex.h).
static_assert(std::is_standard_layout_v<Mutex> && std::is_standard_layout_v<SharedMutex>);
u32 lock_word(const void* lock) {
  return static_cast<const std::atomic<u32>*>(lock)->load(std::memory_order_relaxed);
}
constexpr u32 kWriterInside = u32{1} << 31;

const char* name_of(PointScheduler::Place place) {
  using enum PointScheduler::Place;
  switch (place) {
    case lock:
      return "before the lock";
    case lock_shared:
      return "before the shared lock";
    case enter_or_try:
      return "before the gate or the try";
    case unlock:
      return "after the unlock";
    case leave:
      return "after the gate, or in between";
  }
  return "?";
}

}  // namespace

void Scene::point() {
  if (Explorer* explorer = Explorer::running()) explorer->point();
}

void Scene::note(const char* what) {
  if (Explorer* explorer = Explorer::running()) explorer->note(what);
}

Explorer::Explorer(Make make, const ExploreOptions& options)
    : make_(std::move(make)), options_(options) {
  struct sigaction action{};
  action.sa_handler = say_choices;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  LK_CHECK(::sigaction(SIGABRT, &action, nullptr) == 0);
  in_state_memory_ = merges_ = options.merge && StateMemory::works();
}

Explorer::~Explorer() { std::signal(SIGABRT, SIG_DFL); }

Explored Explorer::explore() {
  using Clock = std::chrono::steady_clock;
  const auto begun = Clock::now();
  // What the product makes once in a process is not of the first world.
  {
    const bool merges = std::exchange(merges_, false);
    in_state_memory_ = false;
    run_once();
    in_state_memory_ = merges_ = merges;
    path_.clear();
    result_ = {};
  }
  bool more = true;
  while (more && result_.wrong.empty()) {
    if (result_.runs == options_.runs_max) return result_;
    if (std::chrono::duration<double>(Clock::now() - begun).count() > options_.seconds_max)
      return result_;
    run_once();
    ++result_.runs;
    if (!result_.wrong.empty()) {
      const Explored found = result_;
      result_ = repeat(choices_so_far());
      LK_CHECK_MSG(result_.wrong == found.wrong, "a run cannot be repeated");
      result_.runs = found.runs;
      result_.states = found.states;
      result_.steps_max = found.steps_max;
      return result_;
    }
    more = advance();
  }
  result_.whole = true;
  return result_;
}

Explored Explorer::repeat(const std::vector<u32>& choices) {
  result_ = {};
  path_.clear();
  for (const u32 choice : choices) path_.push_back({.chosen = choice});
  const bool merges = std::exchange(merges_, false);
  telling_ = true;
  run_once();
  telling_ = false;
  merges_ = merges;
  path_.clear();
  return std::exchange(result_, {});
}

void Explorer::run_once() {
  LK_CHECK_MSG(current_ == nullptr, "one exploration at a time");
  depth_ = 0;
  leaving_ = false;
  preemptions_ = 0;
  now_ns_ = 0;
  actor_ = 0;
  objects_.clear();
  choices_so_far().clear();
  std::optional<StateMemory::Use> memory;
  if (in_state_memory_) memory.emplace();
  std::unique_ptr<Scene> scene = make_();
  make_actors(*scene);
  current_ = this;
  running_ = this;
  install_scheduler(this);
  {
    const StateMemory::Pause pause;
    run_actors(*scene);
  }
  install_scheduler(nullptr);
  running_ = nullptr;
  current_ = nullptr;
  actors_.clear();
  if (scene->wrong() != nullptr) fail(scene->wrong());
  if (const char* wrong = scene->end()) fail(wrong);
  scene.reset();
  memory.reset();
  LK_CHECK_MSG(!in_state_memory_ || StateMemory::in_use() == 0, "something outlives its world");
  if (!leaving_) {
    if (path_.empty())
      result_.interleavings = 1;
    else
      path_.back().ways += 1;
  }
}

// Their fibers are part of the world's memory: pointers to them are on their stacks.
void Explorer::make_actors(Scene& scene) {
  {
    const StateMemory::Pause pause;
    actors_.reserve(8);  // once: pointers to these, too
  }
  for (auto& body : scene.actors()) {
    auto fiber = std::make_unique<Fiber>(std::move(body));
    if (in_state_memory_) fiber->wipe_dead_stack(kStackWiped);
    LK_CHECK(actors_.size() < actors_.capacity());
    actors_.push_back({.fiber = std::move(fiber)});
  }
}

void Explorer::run_actors(Scene& scene) {
  u64 steps = 0;
  for (;;) {
    std::vector<u32> options = able();
    if (options.empty()) {
      if (std::ranges::all_of(actors_, [](const Actor& actor) { return actor.fiber->ended(); }))
        break;
      LK_CHECK_MSG(end_first_deadline(), "a deadlock: all fibers wait for ever");
      continue;
    }
    // Who ran goes on first, so that a short list of choices is a run of few preemptions.
    const auto last = std::ranges::find(options, actor_);
    const bool goes_on = steps != 0 && last != options.end();
    if (goes_on) std::rotate(options.begin(), last, last + 1);
    if (goes_on && options_.preemptions_max == preemptions_) options.resize(1);
    u32 chosen = 0;
    if (options.size() > 1) {
      const bool is_new = !leaving_ && depth_ == path_.size();
      const u64 state = is_new && merges_ ? state_hash() : 0;
      chosen = choose(static_cast<u32>(options.size()), state);
      if ((is_new && !leaving_) || telling_)
        if (const char* wrong = scene.look()) fail(wrong);
    }
    if (goes_on && chosen != 0) ++preemptions_;
    actor_ = options[chosen];
    tell(actor_);
    LK_CHECK_MSG(++steps < kStepsMax, "a livelock: the fibers never end");
    actors_[actor_].wait = Wait::none;
    inside_ = true;
    {
      std::optional<StateMemory::Use> memory;
      if (in_state_memory_) memory.emplace();
      actors_[actor_].fiber->resume();
    }
    inside_ = false;
    if (merges_ && !actors_[actor_].fiber->ended())
      actors_[actor_].fiber->wipe_dead_stack(kStackWiped);
  }
  result_.steps_max = std::max(result_.steps_max, steps);
}

// Depth first: the next branch of the last choice that has one.
bool Explorer::advance() {
  while (!path_.empty()) {
    Choice& last = path_.back();
    if (last.chosen + 1 < last.options) {
      ++last.chosen;
      return true;
    }
    const Choice done = last;
    path_.pop_back();
    if (done.state != 0) seen_[done.state] = done.ways;
    (path_.empty() ? result_.interleavings : path_.back().ways) += done.ways;
  }
  return false;
}

u32 Explorer::choose(u32 options, u64 state) {
  const StateMemory::Pause pause;
  u32 chosen = 0;
  if (!leaving_ && depth_ < path_.size()) {
    Choice& choice = path_[depth_++];
    if (choice.options == 0) choice.options = options;  // repeat()
    LK_CHECK_MSG(choice.options == options && choice.chosen < options,
                 "a run that is repeated meets other choices");
    chosen = choice.chosen;
  } else if (!leaving_) {
    const auto [known, fresh] =
        state == 0 ? std::pair(seen_.end(), true) : seen_.try_emplace(state, kUnderWay);
    if (fresh) {
      path_.push_back({.state = state, .options = options});
      ++depth_;
      result_.states += state != 0 ? 1 : 0;
    } else {
      LK_CHECK_MSG(known->second != kUnderWay, "a livelock: a state leads to itself");
      if (!path_.empty()) path_.back().ways += known->second;
      leaving_ = true;
    }
  }
  choices_so_far().push_back(chosen);
  return chosen;
}

bool Explorer::may_go_on(const Actor& actor) {
  if (actor.fiber->ended()) return false;
  switch (actor.wait) {
    case Wait::none:
      return true;
    case Wait::lock:
      return lock_word(actor.object) == 0;
    case Wait::lock_shared:
      return (lock_word(actor.object) & kWriterInside) == 0;
    case Wait::word:
      return false;
  }
  return false;
}

std::vector<u32> Explorer::able() const {
  std::vector<u32> found;
  for (u32 i = 0; i < actors_.size(); ++i)
    if (may_go_on(actors_[i])) found.push_back(i);
  return found;
}

bool Explorer::end_first_deadline() {
  const auto first = std::ranges::min_element(actors_, {}, &Actor::deadline_ns);
  if (first->deadline_ns == kForever) return false;
  now_ns_ = first->deadline_ns;
  first->wait = Wait::none;
  first->timed_out = true;
  return true;
}

u64 Explorer::state_hash() const {
  u64 hash = StateMemory::hash(now_ns_);
  for (const Actor& actor : actors_) {
    struct {
      u64 ended, wait, object, deadline;
    } const outside{actor.fiber->ended(), static_cast<u64>(actor.wait),
                    reinterpret_cast<std::uintptr_t>(actor.object), actor.deadline_ns};
    hash = hash_bytes(hash, reinterpret_cast<const std::byte*>(&outside), sizeof outside);
    if (actor.fiber->ended()) continue;
    const auto stack = actor.fiber->live_stack();
    hash = hash_bytes(hash, stack.data(), stack.size());
  }
  if (options_.preemptions_max) hash = hash * 31 + u64{preemptions_} * 7 + actor_;
  return hash == 0 ? 1 : hash;
}

void Explorer::pause(Wait wait, const void* object) {
  Actor& actor = actors_[actor_];
  actor.wait = wait;
  actor.object = object;
  actor.fiber->pause();
  actor.object = nullptr;
}

// Locks of nobody in the world (the secrets' arena) are leaves: nothing can come in between.
void Explorer::at(Place place, const void* object) {
  if (!inside_) return;
  if (in_state_memory_ && object != nullptr && !StateMemory::contains(object)) return;
  if (telling_) {
    const StateMemory::Pause memory;
    note((std::string(name_of(place)) + " " + std::to_string(number_of(object))).c_str());
  }
  switch (place) {
    case Place::lock:
      return pause(Wait::lock, object);
    case Place::lock_shared:
      return pause(Wait::lock_shared, object);
    default:
      return pause(Wait::none, nullptr);
  }
}

bool Explorer::wait_on(std::atomic<u32>& word, u32 expected, u64 timeout_ns) {
  LK_CHECK_MSG(inside_ || timeout_ns != kForever, "a wait outside of fibers that nobody can end");
  if (!inside_) return false;
  if (word.load() != expected) {
    pause(Wait::none, nullptr);
    return true;
  }
  note("waits");
  Actor& actor = actors_[actor_];
  actor.timed_out = false;
  if (timeout_ns < kForever - now_ns_) actor.deadline_ns = now_ns_ + timeout_ns;
  pause(Wait::word, &word);
  actor.deadline_ns = kForever;
  return !actor.timed_out;
}

void Explorer::wake(std::atomic<u32>& word, u32 count_max) {
  if (!inside_) return;
  {
    const StateMemory::Pause memory;
    std::vector<Actor*> waiting;
    for (Actor& actor : actors_)
      if (actor.wait == Wait::word && actor.object == &word) waiting.push_back(&actor);
    for (u32 woken = 0; woken < count_max && !waiting.empty(); ++woken) {
      u32 which = 0;
      if (waiting.size() > count_max - woken) which = choose(static_cast<u32>(waiting.size()), 0);
      waiting[which]->wait = Wait::none;
      waiting.erase(waiting.begin() + which);
    }
  }
  at(Place::leave, nullptr);
}

u64 Explorer::start_thread(std::function<void()>) {
  LK_CHECK_MSG(false, "what is explored starts no threads");
}

void Explorer::join_thread(u64) { LK_CHECK_MSG(false, "what is explored starts no threads"); }

void Explorer::fail(const char* what) {
  const StateMemory::Pause pause;
  if (!result_.wrong.empty()) return;
  result_.wrong = what;
  result_.choices = choices_so_far();
  note(what);
}

u64 Explorer::number_of(const void* object) {
  const StateMemory::Pause pause;
  const auto found = std::ranges::find(objects_, object);
  const auto number = static_cast<u64>(found - objects_.begin());
  if (found == objects_.end()) objects_.push_back(object);
  return number;
}

void Explorer::tell(u32 actor) {
  if (telling_) result_.story.push_back("--- actor " + std::to_string(actor));
}

void Explorer::note(const char* what) {
  if (!telling_) return;
  const StateMemory::Pause pause;
  result_.story.emplace_back(inside_ ? "    " : "");
  result_.story.back() += what;
}

}  // namespace latchkey::tests
