#include "extent/context.h"

namespace latchkey::extent {

namespace {
constexpr u8 kVersion = 1;
}

ContextDisk encode(const Context& context) {
  return ContextDisk{kVersion, static_cast<u8>(context.mode), context.key_id.bytes,
                     context.nonce.bytes};
}

Result<std::optional<Context>> decode_context(Bytes bytes) {
  if (bytes.empty()) return std::optional<Context>();
  if (bytes.size() != sizeof(ContextDisk)) return fail(Errc::malformed, "extent context: size");
  const auto disk = load_disk<ContextDisk>(bytes);
  if (disk.version != kVersion) return fail(Errc::malformed, "extent context: version");
  if (disk.mode != static_cast<u8>(crypto::Mode::aes_256_xts))
    return fail(Errc::malformed, "extent context: mode");
  return Context{crypto::Mode::aes_256_xts, crypto::KeyId{disk.key_id}, crypto::Nonce{disk.nonce}};
}

}  // namespace latchkey::extent
