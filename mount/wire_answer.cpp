#include <algorithm>

#include "mount/wire_message.h"

namespace latchkey::mount {

namespace {

using keymgr::KeyState;
using keymgr::RemovalMode;

struct KeyBody {
  IdBytes id;
  u8 state;
  u8 added_by_self;
  Le16 reserved;
  Le32 user_count;
};
LK_DISK_STRUCT(KeyBody, 24);

struct HolderBody {
  Le32 uid;
  Le32 pid;
  Le64 handle;
  Le64 dirty_bytes;
  Le64 since_ns;
  Le16 path_bytes;
  Le16 command_bytes;
};
LK_DISK_STRUCT(HolderBody, 36);

struct RemovalBody {
  static constexpr u8 kFilesBusy = 1, kOtherUsers = 2, kDryRun = 4, kKnown = 7;
  IdBytes id;
  u8 mode;
  u8 state;
  u8 flags;
  u8 reserved;
  Le32 files_cached;
  Le64 bytes_flushed;
  Le64 bytes_lost;
  Le64 files_lost;
  Le64 own_keys;
  Le64 own_key_bytes;
};
LK_DISK_STRUCT(RemovalBody, 64);

struct PhaseBody {
  Le64 ns;
  Le16 name_bytes;
};
LK_DISK_STRUCT(PhaseBody, 10);

struct LostBody {
  Le64 subvolume;
  Le64 number;
  Le64 bytes;
  Le16 path_bytes;
};
LK_DISK_STRUCT(LostBody, 26);

struct FactsBody {
  static constexpr u8 kReadOnly = 1, kSecretMemory = 2, kKnown = 3;
  std::array<std::byte, 16> volume_id;
  Le64 generation;
  Le64 size_bytes;
  Le64 blocks_total;
  Le64 blocks_available;
  Le64 dirty_bytes;
  u8 flags;
  u8 reserved;
  Le16 label_bytes;
};
LK_DISK_STRUCT(FactsBody, 60);

struct PolicyBody {
  static constexpr u8 kLocked = 1, kDirectory = 2, kKnown = 3;
  IdBytes id;
  u8 flags;
  u8 reserved[3];
};
LK_DISK_STRUCT(PolicyBody, 20);

struct DoneBody {
  Le16 error;  // 0: none
  Le16 os_errno;
  Le32 omitted;
  IdBytes id;
  Le16 sentence_bytes;
};
LK_DISK_STRUCT(DoneBody, 26);

std::string_view cut(std::string_view text, std::size_t bytes_max) {
  return text.substr(0, bytes_max);
}

}  // namespace

template <class Body>
void AnswerWriter::part(Verb verb, const Body& body, std::string_view first,
                        std::string_view second) {
  messages_.push_back(message_of(verb, sequence_, body, first, second));
  bytes_ += messages_.back().size();
}

void AnswerWriter::add(const volume::KeyReport& report) {
  if (!has_room(sizeof(WireHeader) + sizeof(KeyBody))) {
    ++omitted_;
    return;
  }
  part(Verb::key, KeyBody{report.key_id.bytes, static_cast<u8>(report.state),
                          static_cast<u8>(report.added_by_self), 0, report.user_count});
}

void AnswerWriter::add(const std::vector<volume::Holder>& holders) {
  for (const volume::Holder& holder : holders) {
    const std::string_view path = cut(holder.path, kPathBytesMax);
    const std::string_view command = cut(holder.command, kCommandBytesMax);
    if (!has_room(sizeof(WireHeader) + sizeof(HolderBody) + path.size() + command.size())) {
      ++omitted_;
      continue;
    }
    part(Verb::holder,
         HolderBody{holder.uid, holder.pid, static_cast<u64>(holder.handle), holder.dirty_bytes,
                    holder.since_ns, static_cast<u16>(path.size()),
                    static_cast<u16>(command.size())},
         path, command);
  }
}

void AnswerWriter::add(const volume::RemovalReport& report) {
  RemovalBody body{};
  body.id = report.key_id.bytes;
  body.mode = static_cast<u8>(report.mode);
  body.state = static_cast<u8>(report.state);
  if (report.files_busy) body.flags |= RemovalBody::kFilesBusy;
  if (report.other_users) body.flags |= RemovalBody::kOtherUsers;
  if (report.dry_run) body.flags |= RemovalBody::kDryRun;
  body.bytes_flushed = report.bytes_flushed;
  body.bytes_lost = report.bytes_lost;
  body.files_lost = report.files_lost;
  body.files_cached = static_cast<u32>(std::min<u64>(report.files_cached, ~u32{0}));
  body.own_keys = report.own_keys;
  body.own_key_bytes = report.own_key_bytes;
  part(Verb::removal, body);
  for (const volume::RemovalPhase& phase : report.phases) {
    const std::string_view name = cut(phase.name, kCommandBytesMax);
    part(Verb::phase, PhaseBody{phase.ns, static_cast<u16>(name.size())}, name);
  }
  for (const volume::LostFile& file : report.lost) {
    const std::string_view path = cut(file.path, kPathBytesMax);
    if (!has_room(sizeof(WireHeader) + sizeof(LostBody) + path.size())) {
      ++omitted_;
      continue;
    }
    part(Verb::lost,
         LostBody{file.inode.subvolume, file.inode.number, file.bytes,
                  static_cast<u16>(path.size())},
         path);
  }
  add(report.holders);
}

void AnswerWriter::add(const StoreReport& report) {
  FactsBody body{};
  body.volume_id = report.volume_id;
  body.generation = report.generation;
  body.size_bytes = report.size_bytes;
  body.blocks_total = report.blocks_total;
  body.blocks_available = report.blocks_available;
  body.dirty_bytes = report.dirty_bytes;
  if (report.read_only) body.flags |= FactsBody::kReadOnly;
  if (report.secret_memory) body.flags |= FactsBody::kSecretMemory;
  const std::string_view label = cut(report.label, kPathBytesMax);
  body.label_bytes = static_cast<u16>(label.size());
  part(Verb::facts, body, label);
}

void AnswerWriter::add(const PolicyReport& report) {
  PolicyBody body{};
  body.id = report.id.bytes;
  if (report.locked) body.flags |= PolicyBody::kLocked;
  if (report.directory) body.flags |= PolicyBody::kDirectory;
  part(Verb::policy, body);
}

std::vector<std::vector<std::byte>> AnswerWriter::finish(Done done) {
  const std::string_view sentence = cut(done.sentence, kSentenceBytesMax);
  part(Verb::done,
       DoneBody{static_cast<u16>(done.error ? static_cast<u16>(*done.error) : 0),
                static_cast<u16>(done.os_errno), omitted_, done.key_id.bytes,
                static_cast<u16>(sentence.size())},
       sentence);
  return std::move(messages_);
}

namespace {

bool take_key(Reader& reader, Answer& answer) {
  KeyBody body;
  if (!reader.take(body) || body.state >= kStates || body.added_by_self > 1 || body.reserved != 0)
    return false;
  volume::KeyReport report;
  report.key_id.bytes = body.id;
  report.state = static_cast<KeyState>(body.state);
  report.added_by_self = body.added_by_self != 0;
  report.user_count = body.user_count;
  answer.keys.push_back(std::move(report));
  return true;
}

bool take_holder(Reader& reader, Answer& answer) {
  HolderBody body;
  volume::Holder holder;
  if (!reader.take(body) || !reader.take(body.path_bytes, kPathBytesMax, holder.path) ||
      !reader.take(body.command_bytes, kCommandBytesMax, holder.command))
    return false;
  holder.uid = body.uid;
  holder.pid = body.pid;
  holder.handle = volume::HandleId{body.handle.get()};
  holder.dirty_bytes = body.dirty_bytes;
  holder.since_ns = body.since_ns;
  answer.holders.push_back(std::move(holder));
  return true;
}

bool take_removal(Reader& reader, volume::RemovalReport& report) {
  RemovalBody body;
  if (!reader.take(body) || body.mode >= kModes || body.state >= kStates ||
      (body.flags & ~RemovalBody::kKnown) != 0)
    return false;
  report.key_id.bytes = body.id;
  report.mode = static_cast<RemovalMode>(body.mode);
  report.state = static_cast<KeyState>(body.state);
  report.files_busy = (body.flags & RemovalBody::kFilesBusy) != 0;
  report.other_users = (body.flags & RemovalBody::kOtherUsers) != 0;
  report.dry_run = (body.flags & RemovalBody::kDryRun) != 0;
  report.bytes_flushed = body.bytes_flushed;
  report.bytes_lost = body.bytes_lost;
  report.files_lost = body.files_lost;
  report.files_cached = body.files_cached;
  report.own_keys = body.own_keys;
  report.own_key_bytes = body.own_key_bytes;
  return true;
}

bool take_phase(Reader& reader, Answer& answer) {
  PhaseBody body;
  std::string name;
  if (!reader.take(body) || !reader.take(body.name_bytes, kCommandBytesMax, name)) return false;
  answer.names.push_back(std::move(name));
  answer.removal.phases.push_back({answer.names.back(), body.ns});
  return true;
}

bool take_lost(Reader& reader, volume::RemovalReport& report) {
  LostBody body;
  volume::LostFile file;
  if (!reader.take(body) || !reader.take(body.path_bytes, kPathBytesMax, file.path)) return false;
  file.inode = {body.subvolume.get(), body.number};
  file.bytes = body.bytes;
  report.lost.push_back(std::move(file));
  return true;
}

bool take_facts(Reader& reader, StoreReport& report) {
  FactsBody body;
  if (!reader.take(body) || (body.flags & ~FactsBody::kKnown) != 0 ||
      !reader.take(body.label_bytes, kPathBytesMax, report.label))
    return false;
  report.volume_id = body.volume_id;
  report.generation = body.generation;
  report.size_bytes = body.size_bytes;
  report.blocks_total = body.blocks_total;
  report.blocks_available = body.blocks_available;
  report.dirty_bytes = body.dirty_bytes;
  report.read_only = (body.flags & FactsBody::kReadOnly) != 0;
  report.secret_memory = (body.flags & FactsBody::kSecretMemory) != 0;
  return true;
}

bool take_policy(Reader& reader, PolicyReport& report) {
  PolicyBody body;
  if (!reader.take(body) || (body.flags & ~PolicyBody::kKnown) != 0) return false;
  report.id.bytes = body.id;
  report.locked = (body.flags & PolicyBody::kLocked) != 0;
  report.directory = (body.flags & PolicyBody::kDirectory) != 0;
  return true;
}

bool take_done(Reader& reader, Done& done) {
  DoneBody body;
  if (!reader.take(body) || !reader.take(body.sentence_bytes, kSentenceBytesMax, done.sentence))
    return false;
  // A code that this build does not know is still an error.
  if (body.error > 0xff) return false;
  if (body.error != 0) done.error = static_cast<Errc>(body.error.get());
  done.os_errno = body.os_errno;
  done.omitted = body.omitted;
  done.key_id.bytes = body.id;
  return true;
}

}  // namespace

Result<bool> decode_part(Bytes message, Answer& answer) {
  WireHeader header;
  LK_TRY(const Bytes body, body_of(message, kPartBytesMax, header));
  Reader reader(body);
  const auto verb = static_cast<Verb>(header.verb.get());
  bool good = false;
  switch (verb) {
    case Verb::key:
      good = take_key(reader, answer);
      break;
    case Verb::holder:
      good = take_holder(reader, answer);
      break;
    case Verb::removal:
      good = take_removal(reader, answer.removal);
      break;
    case Verb::phase:
      good = take_phase(reader, answer);
      break;
    case Verb::lost:
      good = take_lost(reader, answer.removal);
      break;
    case Verb::facts:
      good = take_facts(reader, answer.store);
      break;
    case Verb::policy:
      good = take_policy(reader, answer.policy);
      break;
    case Verb::done:
      good = take_done(reader, answer.done);
      break;
    default:
      break;
  }
  if (!good || !reader.at_end()) return no_message();
  return verb == Verb::done;
}

}  // namespace latchkey::mount
