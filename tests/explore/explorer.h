#pragma once
// Every interleaving of a few fibers: at each scheduling point (tests/sim/scheduler.h) all that may
// go on are tried, depth first; the program runs from its beginning for each branch.
//
// A state is the bytes of the world: its memory (state_memory.h) and the live part of each fiber's
// stack. The code goes on from equal bytes in the same way, so what begins at a state is explored
// once, and the interleavings are counted without walking them. Bytes that no longer matter only
// make two states of one. States are kept as 64-bit hashes: of a million of them two different ones
// are taken for one with a chance of 3 in 10^8.
//
// Locks are what their words say: a fiber before a lock that is held is not a choice. Of a wake
// that lets in fewer than wait, each choice is tried. Waits with a deadline end when nothing else
// can go on. All code between two points is one step.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "tests/sim/fiber.h"
#include "tests/sim/scheduler.h"

namespace latchkey::tests {

// What is explored: built anew for each run, in the world's memory.
class Scene {
 public:
  virtual ~Scene() = default;
  virtual std::vector<std::function<void()>> actors() = 0;
  // Between two steps, in states not seen before; waits for nothing. What is wrong, or nullptr.
  virtual const char* look() { return nullptr; }
  // After the actors, and before anything of the scene is destroyed.
  virtual const char* end() { return nullptr; }
  // What an actor found wrong.
  const char* wrong() const { return wrong_; }

 protected:
  // A place where another actor may go on; what happened, for the story.
  static void point();
  static void note(const char* what);
  void must(bool holds, const char* what) {
    if (!holds && wrong_ == nullptr) wrong_ = what;
  }

 private:
  const char* wrong_ = nullptr;
};

struct ExploreOptions {
  bool merge = true;                        // states; not under a sanitizer
  std::optional<u32> preemptions_max = {};  // of fibers that could have gone on
  u64 runs_max = ~u64{0};
  double seconds_max = 1e9;
};

struct Explored {
  u64 runs = 0;
  u64 states = 0;     // in which more than one could go on
  u64 steps_max = 0;  // of one run
  long double interleavings = 0;
  bool whole = false;              // nothing was left out, but for the bound on preemptions
  std::string wrong;               // what was found; the rest of the exploration was left out then
  std::vector<u32> choices;        // that lead there
  std::vector<std::string> story;  // step by step
};

class Explorer final : public PointScheduler {
 public:
  using Make = std::function<std::unique_ptr<Scene>()>;
  Explorer(Make make, const ExploreOptions& options);
  ~Explorer() override;
  Explorer(const Explorer&) = delete;
  Explorer& operator=(const Explorer&) = delete;

  Explored explore();
  // One run by these choices, then the first of each.
  Explored repeat(const std::vector<u32>& choices);

  // For a scene. Of the running fiber: a place where another may go on.
  void point() { at(Place::leave, nullptr); }
  // What happened, for the story.
  void note(const char* what);
  static Explorer* running() { return running_; }

  void at(Place place, const void* object) override;
  bool wait_on(std::atomic<u32>& word, u32 expected, u64 timeout_ns) override;
  void wake(std::atomic<u32>& word, u32 count_max) override;
  u64 start_thread(std::function<void()> body) override;
  void join_thread(u64 thread) override;

 private:
  enum class Wait : u8 { none, lock, lock_shared, word };
  struct Actor {
    std::unique_ptr<Fiber> fiber;
    Wait wait = Wait::none;
    const void* object = nullptr;  // the lock, or the word
    u64 deadline_ns = kForever;
    bool timed_out = false;
  };
  struct Choice {
    u64 state = 0;  // 0: not one that is kept
    u32 options = 0;
    u32 chosen = 0;
    long double ways = 0;  // to the end, of the options that are done
  };
  static constexpr long double kUnderWay = -1;

  void run_once();
  void make_actors(Scene& scene);
  void run_actors(Scene& scene);
  bool advance();
  u32 choose(u32 options, u64 state);
  std::vector<u32> able() const;
  static bool may_go_on(const Actor& actor);
  bool end_first_deadline();
  u64 state_hash() const;
  void pause(Wait wait, const void* object);
  void fail(const char* what);
  void tell(u32 actor);
  u64 number_of(const void* object);

  static inline Explorer* running_ = nullptr;

  const Make make_;
  const ExploreOptions options_;
  bool in_state_memory_ = false;  // the world lies there
  bool merges_ = false;
  Explored result_;
  std::unordered_map<u64, long double> seen_;  // ways to the end, or kUnderWay
  std::vector<Choice> path_;

  // Of the run.
  std::vector<Actor> actors_;
  u32 actor_ = 0;  // that runs, or ran last
  bool inside_ = false;
  u64 now_ns_ = 0;
  std::size_t depth_ = 0;  // of path_ that was taken
  bool leaving_ = false;   // nothing new can come: to the end by any way
  bool telling_ = false;
  u32 preemptions_ = 0;
  std::vector<const void*> objects_;  // by their numbers in the story
};

}  // namespace latchkey::tests
