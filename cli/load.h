#pragma once
// What torture and bench share: a directory of their own under a key that they make.

#include <string>

#include "base/env.h"
#include "cli/verbs.h"
#include "volume/paths.h"

namespace latchkey::cli {

// "/.latchkey-torture-1a2b3c4d": unlike any other.
std::string scratch_directory(std::string_view verb, Env& env);

// A raw key for one run, kept so that it can be added again.
class ScratchKey {
 public:
  static Result<ScratchKey> create(Env& env);
  Result<crypto::KeyId> add(volume::Volume& volume, volume::Caller who) const;

 private:
  SecretBytes raw_;
};

}  // namespace latchkey::cli
