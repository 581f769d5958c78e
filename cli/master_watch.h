#pragma once
// Whether a master key lies in the arena, itself or as the two HMAC states that stand for it: asked
// of the memory, not of the keyring. Other threads may work meanwhile; what passes through the
// arena within a look may be seen or not.

#include "cli/memory_scan.h"

namespace latchkey::cli {

class MasterWatch {
 public:
  explicit MasterWatch(Env& env) : scan_(env) {}

  // What is looked for from now on. `master` lies in the arena: what does not see it there, nor its
  // states, would never see anything, and is an error.
  Result<void> begin(Bytes master);
  bool sees_it();

 private:
  MemoryScan scan_;
};

}  // namespace latchkey::cli
