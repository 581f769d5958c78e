#pragma once
// A volume on a simulated device and the model of its keys (key_model.h) side by side: each step is
// done to both, and everything that a caller can see is compared.

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "base/thread.h"
#include "tests/support/hook_device.h"
#include "tests/support/key_model.h"
#include "tests/support/sim_device.h"
#include "volume/volume.h"

namespace latchkey::tests {

struct KeyStep {
  enum class Verb : u8 { add, remove, open, create, unlink, write, read, fsync, close, sync };
  Verb verb = Verb::add;
  u32 uid = 0;
  u32 key = 0;
  u32 slot = 0;  // of a handle; open and create take it, and close what it has
  u32 name = 0;
  keymgr::RemovalMode mode = keymgr::RemovalMode::soft;
  bool all_users = false;
  Meanwhile meanwhile = Meanwhile::nothing;
  // The power goes after so many further writes and flushes of the device, or after the step.
  std::optional<u32> cut = {};
};
std::string to_text(const KeyStep& step);

class KeyLife {
 public:
  static constexpr std::array<u32, 4> kUids{0, 1001, 1002, 1003};

  KeyLife();
  ~KeyLife();
  KeyLife(const KeyLife&) = delete;
  KeyLife& operator=(const KeyLife&) = delete;

  // What differs from the model, or nothing. A step that means nothing (a handle that is not open,
  // an input or output that would wait for its key) is left out.
  std::string step(const KeyStep& step);
  // Everything that is written is there and can be read once the keys are, and the store is clean.
  // Removes all keys.
  std::string audit();

  const KeyModel& model() const { return model_; }
  bool power_lost() const { return crashes_ != 0; }
  // What the model says of the last removal, which the volume said, too.
  const KeyModel::Removed& removed() const { return removed_; }

 private:
  std::string open_store();
  bool means_nothing(const KeyStep& step) const;
  Errc done(const KeyStep& step);
  Errc expected(const KeyStep& step);
  std::string compare_removal() const;
  std::string compare_keys();
  std::string crash(bool acknowledged, const KeyModel& before);
  void prepare_meanwhile(const KeyStep& step);
  void add_in_between(const KeyStep& step, u32 uid);
  std::string contents(std::array<KeyModel::Content, kModelFiles>& there);

  SimDevice medium_;
  HookDevice device_{medium_};
  std::unique_ptr<volume::Volume> volume_;
  std::array<crypto::KeyId, kModelKeys> ids_{};
  std::array<volume::HandleId, kModelHandles> handles_{};
  KeyModel model_;
  KeyModel::Removed removed_;  // what the model says
  volume::RemovalReport report_;
  u32 writes_ = 0;  // each has content of its own
  u32 read_ = 0;    // what the engine read last
  u32 model_read_ = 0;
  u32 crashes_ = 0;
  std::optional<Thread> adding_;
  std::atomic<bool> added_{false};
};

}  // namespace latchkey::tests
