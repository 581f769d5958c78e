#pragma once
// The real kernel's side: ext4 with encryption on a loop device whose image lies in memory. A
// call's credentials are this thread's own for as long as it takes.

#include <array>
#include <string>

#include "crypto/ids.h"
#include "engine/fd.h"
#include "tests/support/ext4_image.h"
#include "tests/support/live_side.h"

namespace latchkey::tests {

class LiveKernel final : public LiveSide {
 public:
  explicit LiveKernel(const LiveRules& rules = {}) : rules_(rules) {}
  ~LiveKernel() override;

  // Empty, or what this machine lacks. Once.
  std::string make();

  void begin(const LivePlan& plan) override;
  std::string run(const LiveOp& op) override;
  void end() override;

 private:
  struct Status {
    u32 state = 0;  // FSCRYPT_KEY_STATUS_...
    u32 flags = 0;
    u32 users = 0;
  };
  int add_key(u32 key);
  Status status(u32 key);
  void close_all();
  void use_open_directories();
  void remove_all_keys();
  void learn_no_key_names();
  std::string path_of(const LiveOp& op) const;
  std::string key_call(const LiveOp& op);
  std::string file_call(const LiveOp& op);
  std::string handle_call(const LiveOp& op);
  std::string list(const LiveOp& op);

  const LiveRules rules_;
  Ext4Image ext4_{TempFolder::memory_folder()};
  engine::Fd root_;    // of the file system; not encrypted
  engine::Fd folder_;  // of this sequence
  std::string folder_name_;
  LiveNoKeyNames no_key_names_;
  u64 sequences_ = 0;
  std::array<std::vector<std::byte>, kLiveKeys> raw_;
  std::array<crypto::KeyId, kLiveKeys> ids_;
  struct Open {
    int fd = -1;
    bool append = false;
  };
  std::array<Open, kLiveSlots> open_;
};

}  // namespace latchkey::tests
