#pragma once
// What requests and answers of the protocol have in common; internal to mount/wire*.cpp.

#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "mount/wire.h"

namespace latchkey::mount {

using IdBytes = std::array<std::byte, 16>;

inline constexpr u8 kModes = static_cast<u8>(keymgr::RemovalMode::suspend) + 1;
inline constexpr u8 kStates = static_cast<u8>(keymgr::KeyState::incompletely_removed) + 1;

// What is left of a message; every take is checked.
class Reader {
 public:
  explicit Reader(Bytes bytes) : bytes_(bytes) {}

  template <class Body>
  bool take(Body& body) {
    if (bytes_.size() < sizeof(Body)) return false;
    body = load_disk<Body>(bytes_);
    bytes_ = bytes_.subspan(sizeof(Body));
    return true;
  }
  bool take(std::size_t size, std::size_t size_max, std::string& text) {
    if (size > size_max || bytes_.size() < size) return false;
    text.assign(reinterpret_cast<const char*>(bytes_.data()), size);
    bytes_ = bytes_.subspan(size);
    return true;
  }
  bool at_end() const { return bytes_.empty(); }

 private:
  Bytes bytes_;
};

inline std::unexpected<Error> no_message() {
  return fail(Errc::malformed, "it is no message of this protocol");
}

// The header's own rules, and that the body is as long as it says.
inline Result<Bytes> body_of(Bytes message, std::size_t size_max, WireHeader& header) {
  if (message.size() < sizeof(WireHeader) || message.size() > size_max) return no_message();
  header = load_disk<WireHeader>(message);
  if (header.magic != kWireMagic) return no_message();
  if (header.version != kWireVersion)
    return fail(Errc::format_version, "it speaks another version of the protocol");
  const Bytes body = message.subspan(sizeof(WireHeader));
  if (header.length != body.size()) return no_message();
  return body;
}

template <class Body>
std::vector<std::byte> message_of(Verb verb, u32 sequence, const Body& body,
                                  std::string_view first = {}, std::string_view second = {}) {
  const std::size_t length = sizeof(Body) + first.size() + second.size();
  std::vector<std::byte> message(sizeof(WireHeader) + length);
  const MutableBytes bytes = message;
  store_disk(bytes, WireHeader{kWireMagic, kWireVersion, static_cast<u16>(verb), sequence,
                               static_cast<u32>(length)});
  store_disk(bytes.subspan(sizeof(WireHeader)), body);
  std::byte* to = message.data() + sizeof(WireHeader) + sizeof(Body);
  if (!first.empty()) std::memcpy(to, first.data(), first.size());
  if (!second.empty()) std::memcpy(to + first.size(), second.data(), second.size());
  return message;
}

inline std::vector<std::byte> message_of(Verb verb, u32 sequence) {
  std::vector<std::byte> message(sizeof(WireHeader));
  store_disk(MutableBytes(message),
             WireHeader{kWireMagic, kWireVersion, static_cast<u16>(verb), sequence, 0});
  return message;
}

}  // namespace latchkey::mount
