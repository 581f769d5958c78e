#pragma once
// Our side: the library as the kernel's fscrypt (compat_fscrypt), on a device in memory and without
// a thread of its own.

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "tests/support/live_side.h"
#include "tests/support/sim_device.h"
#include "volume/volume.h"

namespace latchkey::tests {

class LiveLatchkey final : public LiveSide {
 public:
  explicit LiveLatchkey(const LiveRules& rules = {});

  void begin(const LivePlan& plan) override;
  std::string run(const LiveOp& op) override;
  bool skips(const LiveOp& op) const override;
  void end() override;

  // Closes the volume. What an offline check finds; empty: nothing is wrong.
  std::string finish();

 private:
  struct Open {
    volume::HandleId handle{};
    bool append = false;
    LivePath name;  // that it was opened by, as it is now
    bool directory = false;
    bool linked = true;  // false: that name is gone
  };
  volume::InodeId directory_of(LivePath path) const { return directories_[path.directory]; }
  bool opened_by(LivePath name, u32 links_min = 1) const;
  void move_name(LivePath from, std::optional<LivePath> to);
  std::string key_call(const LiveOp& op);
  std::string handle_call(const LiveOp& op);
  std::string file_call(const LiveOp& op);
  std::string open(const LiveOp& op);
  std::string open_directory(const LiveOp& op);
  std::string close(const LiveOp& op);
  std::string rename(const LiveOp& op);
  std::string stat(const LiveOp& op);
  void remove_all_keys();
  void learn_no_key_names();

  const LiveRules rules_;
  SimDevice device_;
  std::unique_ptr<volume::Volume> volume_;
  std::array<crypto::KeyId, kLiveKeys> ids_;
  std::array<volume::InodeId, kLiveDirectories.size()> directories_;
  LiveNoKeyNames no_key_names_;
  std::array<std::optional<Open>, kLiveSlots> open_;
};

}  // namespace latchkey::tests
