#pragma once
// The plans of key_scene.h on the real volume: one file of one page on a simulated device, without
// threads of the volume's own. Its runs are long, so they are explored with a bound on preemptions.

#include <memory>
#include <optional>
#include <vector>

#include "tests/explore/key_scene.h"
#include "tests/support/sim_device.h"
#include "volume/volume.h"

namespace latchkey::tests {

class VolumeScene final : public Scene {
 public:
  explicit VolumeScene(const KeyPlan& plan);
  ~VolumeScene() override;
  // Whether the plan means something here: no flush fails on demand.
  static bool plays(const KeyPlan& plan) { return !plan.flush_fails && !plan.front; }
  std::vector<std::function<void()>> actors() override;
  const char* end() override;

 private:
  // Chance by a seed, and a clock that moves when it is looked at.
  class SceneEnv final : public Env {
   public:
    u64 monotonic_ns() override { return now_ns_ += 1000; }
    u64 realtime_ns() override { return kBegin + monotonic_ns(); }
    void random(MutableBytes bytes) override {
      for (std::byte& byte : bytes) byte = std::byte(random_());
    }

   private:
    static constexpr u64 kBegin = 1'700'000'000'000'000'000;
    u64 now_ns_ = 0;
    SplitMix64 random_;
  };
  struct Written {
    u64 begun = 0, ended = 0;  // in the order of all that happened
  };

  void act(u32 caller, const Act& act);
  void open(u32 caller);
  void write(u32 caller);
  void close(u32 caller);
  void remove(const Act& act);
  void add(u32 uid);
  u64 next_event() { return ++events_; }
  bool may_be_read(u32 content) const;

  const KeyPlan& plan_;
  SceneEnv env_;
  SimDevice device_;
  std::unique_ptr<volume::Volume> volume_;
  crypto::KeyId id_{};
  std::vector<std::optional<volume::HandleId>> handles_;
  Mutex ended_mutex_;
  CondVar ended_;  // with ended_mutex_
  bool removal_ended_ LK_GUARDED_BY(ended_mutex_) = false;

  u64 events_ = 0;
  std::vector<Written> written_{{}};  // by content; what was acknowledged has an end
  bool lost_ = false;                 // a removal or a close said that something was
  bool may_lose_ = false;
  bool may_refuse_ = false;
  bool waits_ = false;
  u32 adds_ = 0;       // begun
  u32 adding_ = 0;     // under way
  bool shut_ = false;  // a removal has ended in no claim, and no add has begun since
};

}  // namespace latchkey::tests
