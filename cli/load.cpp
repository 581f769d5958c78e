#include "cli/load.h"

#include <cstring>

#include "base/hex.h"
#include "base/secret_work.h"

namespace latchkey::cli {

std::string scratch_directory(std::string_view verb, Env& env) {
  std::array<std::byte, 4> random;
  env.random(random);
  return "/.latchkey-" + std::string(verb) + "-" + to_hex(random);
}

Result<ScratchKey> ScratchKey::create(Env& env) {
  ScratchKey key;
  LK_TRY(key.raw_, SecretBytes::create(crypto::kMasterKeyBytesMax));
  env.random(key.raw_.bytes());
  return key;
}

Result<crypto::KeyId> ScratchKey::add(volume::Volume& volume, volume::Caller who) const {
  LK_TRY(SecretBytes copy, SecretBytes::create(raw_.bytes().size()));
  {
    const SecretWork work;
    std::memcpy(copy.bytes().data(), raw_.bytes().data(), raw_.bytes().size());
  }
  return volume.add_key(who, std::move(copy));
}

}  // namespace latchkey::cli
