#include "mount/wire_message.h"

namespace latchkey::mount {

namespace {

using keymgr::RemovalMode;

struct AddBody {
  Le32 key_bytes;
  Le32 reserved;
};
LK_DISK_STRUCT(AddBody, 8);

struct IdBody {
  IdBytes id;
};
LK_DISK_STRUCT(IdBody, 16);

struct RemoveBody {
  static constexpr u8 kAllUsers = 1, kDryRun = 2, kWait = 4, kDeadline = 8, kKnown = 15;
  IdBytes id;
  u8 mode;
  u8 then;
  u8 flags;
  u8 reserved;
  Le32 reserved2;
  Le64 wait_ns;
  Le64 deadline_ns;
};
LK_DISK_STRUCT(RemoveBody, 40);

bool decode_id(Bytes body, Request& request) {
  Reader reader(body);
  IdBody id;
  if (!reader.take(id) || !reader.at_end()) return false;
  request.id.bytes = id.id;
  return true;
}

bool decode_add(Bytes body, Request& request) {
  Reader reader(body);
  AddBody add;
  if (!reader.take(add) || !reader.at_end() || add.reserved != 0) return false;
  request.key_bytes = add.key_bytes;
  return true;
}

bool decode_remove(Bytes body, Request& request) {
  Reader reader(body);
  RemoveBody remove;
  if (!reader.take(remove) || !reader.at_end()) return false;
  if (remove.mode >= kModes || remove.then >= kModes) return false;
  if (remove.reserved != 0 || remove.reserved2 != 0) return false;
  if ((remove.flags & ~RemoveBody::kKnown) != 0) return false;
  const bool waits = (remove.flags & RemoveBody::kWait) != 0;
  const bool ends = (remove.flags & RemoveBody::kDeadline) != 0;
  if (!waits && remove.wait_ns != 0) return false;
  if (!ends && (remove.deadline_ns != 0 || remove.then != 0)) return false;
  request.id.bytes = remove.id;
  request.removal.mode = static_cast<RemovalMode>(remove.mode);
  request.removal.all_users = (remove.flags & RemoveBody::kAllUsers) != 0;
  request.removal.dry_run = (remove.flags & RemoveBody::kDryRun) != 0;
  request.removal.wait = waits;
  if (waits) request.wait_ns = remove.wait_ns;
  if (ends) {
    request.removal.deadline_ns = remove.deadline_ns;
    request.removal.then = static_cast<RemovalMode>(remove.then);
  }
  return true;
}

RemoveBody remove_body(const Request& request) {
  RemoveBody body{};
  const volume::RemovalRequest& removal = request.removal;
  body.id = request.id.bytes;
  body.mode = static_cast<u8>(removal.mode);
  if (removal.all_users) body.flags |= RemoveBody::kAllUsers;
  if (removal.dry_run) body.flags |= RemoveBody::kDryRun;
  if (removal.wait) {
    body.flags |= RemoveBody::kWait;
    body.wait_ns = request.wait_ns;
  }
  if (removal.deadline_ns) {
    body.flags |= RemoveBody::kDeadline;
    body.deadline_ns = *removal.deadline_ns;
    body.then = static_cast<u8>(removal.then);
  }
  return body;
}

}  // namespace

bool wants_descriptor(Verb verb) {
  return verb == Verb::key_add || verb == Verb::policy_get || verb == Verb::policy_set;
}

std::vector<std::byte> encode_request(const Request& request) {
  switch (request.verb) {
    case Verb::key_add:
      return message_of(request.verb, request.sequence, AddBody{request.key_bytes, 0});
    case Verb::key_status:
    case Verb::policy_set:
      return message_of(request.verb, request.sequence, IdBody{request.id.bytes});
    case Verb::key_remove:
      return message_of(request.verb, request.sequence, remove_body(request));
    default:
      return message_of(request.verb, request.sequence);
  }
}

u32 sequence_of(Bytes message) {
  if (message.size() < sizeof(WireHeader)) return 0;
  const auto header = load_disk<WireHeader>(message);
  return header.magic == kWireMagic ? header.sequence.get() : 0;
}

Result<Request> decode_request(Bytes message) {
  WireHeader header;
  LK_TRY(const Bytes body, body_of(message, kRequestBytesMax, header));
  Request request;
  request.verb = static_cast<Verb>(header.verb.get());
  request.sequence = header.sequence;
  bool good = false;
  switch (request.verb) {
    case Verb::key_add:
      good = decode_add(body, request);
      break;
    case Verb::key_status:
    case Verb::policy_set:
      good = decode_id(body, request);
      break;
    case Verb::key_remove:
      good = decode_remove(body, request);
      break;
    case Verb::key_list:
    case Verb::store:
    case Verb::policy_get:
      good = body.empty();
      break;
    default:
      break;
  }
  if (!good) return no_message();
  return request;
}

}  // namespace latchkey::mount
