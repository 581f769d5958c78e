#include "cli/load.h"

#include "base/hex.h"
#include "base/secret_work.h"

namespace latchkey::cli {

std::string scratch_directory(std::string_view verb, Env& env) {
  std::array<std::byte, 4> random;
  env.random(random);
  return "/.latchkey-" + std::string(verb) + "-" + to_hex(random);
}

ScratchKey ScratchKey::create(Env& env) {
  ScratchKey key;
  env.random(key.masked_);
  env.random(key.mask_);
  return key;
}

Result<SecretBytes> ScratchKey::in_arena() const {
  LK_TRY(SecretBytes raw, SecretBytes::create(masked_.size()));
  const SecretWork work;
  for (std::size_t i = 0; i < masked_.size(); ++i) raw.bytes()[i] = masked_[i] ^ mask_[i];
  return raw;
}

Result<crypto::KeyId> ScratchKey::add(volume::Volume& volume, volume::Caller who) const {
  LK_TRY(SecretBytes raw, in_arena());
  return volume.add_key(who, std::move(raw));
}

}  // namespace latchkey::cli
