#pragma once
// What torture and bench share: a directory of their own under a key that they make.

#include <array>
#include <string>

#include "base/env.h"
#include "cli/verbs.h"
#include "volume/paths.h"

namespace latchkey::cli {

// "/.latchkey-torture-1a2b3c4d": unlike any other.
std::string scratch_directory(std::string_view verb, Env& env);

// A raw key for one run, kept so that it can be added again, and masked: nothing of it lies in
// memory but what was added.
class ScratchKey {
 public:
  static ScratchKey create(Env& env);
  Result<SecretBytes> in_arena() const;
  Result<crypto::KeyId> add(volume::Volume& volume, volume::Caller who) const;

 private:
  std::array<std::byte, crypto::kMasterKeyBytesMax> masked_{}, mask_{};
};

}  // namespace latchkey::cli
