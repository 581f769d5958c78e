#pragma once
// The control socket's protocol, version 1: pure, no I/O.
//
// One SEQPACKET message holds one part: a Header and a body of exactly Header::length bytes. A
// request is one message. Its answer is any number of parts and then a `done`, all with the
// request's sequence; several requests may be under way, their answers come in any order. All
// integers are little endian. Reserved bytes and unknown flags are refused, so that a later version
// can use them. A key never is in a message: it comes as a descriptor (control_key.h).
//
// Decoding trusts nothing: lengths are compared with what came, enumerations with what there is,
// and nothing is allocated by a number in a message but by the message's own size.

#include <list>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/disk.h"
#include "base/result.h"
#include "base/types.h"
#include "base/wait.h"
#include "volume/types.h"

namespace latchkey::mount {

inline constexpr u32 kWireMagic = 0x314b4c43;  // "CLK1"
inline constexpr u16 kWireVersion = 1;
inline constexpr std::size_t kRequestBytesMax = 128;
inline constexpr std::size_t kPartBytesMax = 8192;
inline constexpr std::size_t kPathBytesMax = 4096;  // longer ones are cut
inline constexpr std::size_t kCommandBytesMax = 64;
inline constexpr std::size_t kSentenceBytesMax = 512;

enum class Verb : u16 {
  key_add = 1,     // and a descriptor of the key
  key_status = 2,  // key part, holders
  key_list = 3,    // key parts
  key_remove = 4,  // removal, phases, lost files, holders
  store = 5,       // store part
  policy_get = 6,  // and a descriptor of the inode; policy part
  policy_set = 7,  // and a descriptor of the directory
  // Parts of an answer.
  key = 0x8001,
  holder = 0x8002,
  removal = 0x8003,
  phase = 0x8004,
  lost = 0x8005,
  facts = 0x8006,
  policy = 0x8007,
  done = 0x8008,
};
bool wants_descriptor(Verb verb);

struct WireHeader {
  Le32 magic;
  Le16 version;
  Le16 verb;
  Le32 sequence;
  Le32 length;  // of what follows
};
LK_DISK_STRUCT(WireHeader, 16);

struct Request {
  Verb verb{};
  u32 sequence = 0;
  u32 key_bytes = 0;               // key_add
  crypto::KeyId id;                // key_status, key_remove, policy_set
  volume::RemovalRequest removal;  // key_remove
  u64 wait_ns = kForever;          // key_remove, if removal.wait: no longer than this
};
std::vector<std::byte> encode_request(const Request& request);
// format_version: another version, which only the header is sure of. malformed: all else.
Result<Request> decode_request(Bytes message);
// The sequence of a message that may be no good; 0 where it has none.
u32 sequence_of(Bytes message);

// How the store is; `store` and its daemon.
struct StoreReport {
  std::array<std::byte, 16> volume_id{};
  std::string label;
  u64 generation = 0;
  u64 size_bytes = 0;
  u64 blocks_total = 0, blocks_available = 0;
  u64 dirty_bytes = 0;
  bool read_only = false;
  bool secret_memory = false;  // secrets lie in memfd_secret
};

struct PolicyReport {
  crypto::KeyId id;
  bool locked = false;
  bool directory = false;
};

struct Done {
  std::optional<Errc> error;
  i32 os_errno = 0;
  u32 omitted = 0;       // holders and lost files that the answer had no room for
  crypto::KeyId key_id;  // key_add: of what was added
  std::string sentence;  // of the error
};

// All parts of one answer, as the client puts them together; in the end the holders go to the
// report that they belong to. Not copied: phases name into `names`.
struct Answer {
  Answer() = default;
  Answer(Answer&&) noexcept = default;
  Answer& operator=(Answer&&) noexcept = default;

  std::vector<volume::KeyReport> keys;
  std::vector<volume::Holder> holders;
  volume::RemovalReport removal;
  StoreReport store;
  PolicyReport policy;
  Done done;
  std::list<std::string> names;
};

// Builds the messages of one answer; what is beyond `bytes_max` is left out and counted. Every
// message is at most kPartBytesMax.
class AnswerWriter {
 public:
  AnswerWriter(u32 sequence, u64 bytes_max) : sequence_(sequence), bytes_max_(bytes_max) {}

  void add(const volume::KeyReport& report);  // without its holders
  void add(const std::vector<volume::Holder>& holders);
  void add(const volume::RemovalReport& report);  // with all that belongs to it
  void add(const StoreReport& report);
  void add(const PolicyReport& report);
  // The last part.
  std::vector<std::vector<std::byte>> finish(Done done);

 private:
  template <class Body>
  void part(Verb verb, const Body& body, std::string_view first = {}, std::string_view second = {});
  bool has_room(std::size_t bytes) const { return bytes_ + bytes <= bytes_max_; }

  const u32 sequence_;
  const u64 bytes_max_;
  u64 bytes_ = 0;
  u32 omitted_ = 0;
  std::vector<std::vector<std::byte>> messages_;
};

// Adds one message to its answer. True: it was the last one. malformed: it is no part.
Result<bool> decode_part(Bytes message, Answer& answer);

}  // namespace latchkey::mount
