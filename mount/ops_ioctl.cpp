// fscrypt's ioctls. FUSE carries what the number of an ioctl says, in size and direction. That is
// all of it for removals, the status and the nonce; GET_POLICY answers none but v1 policies, so it
// has no bytes. Of an add the key behind the argument is missing, of SET_POLICY everything, of
// GET_POLICY_EX all but the first nine bytes of the answer: for those, where the mount's options
// allow it, the caller's memory is read and written.

#include <linux/fscrypt.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "base/no_memory.h"
#include "mount/caller_memory.h"
#include "mount/file_system.h"
#include "mount/replies.h"

namespace latchkey::mount {

using volume::FscryptAnswer;

struct Ioctl {
  fuse_req_t req = nullptr;
  volume::Caller caller;
  volume::HandleId handle{};
  u32 command = 0;
  u64 address = 0;
  std::array<std::byte, sizeof(fscrypt_get_key_status_arg)> bytes{};  // of the largest argument
  std::size_t size = 0;
  SecretBytes raw_key = {};

  MutableBytes argument() { return MutableBytes(bytes).first(size); }
  std::size_t raw_key_bytes() { return volume::fscrypt_raw_key_bytes(command, argument()); }
};

namespace {

bool is_removal(u32 command) {
  return command == FS_IOC_REMOVE_ENCRYPTION_KEY ||
         command == FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS;
}

bool lacks_bytes(Ioctl& ioctl) {
  return ioctl.command == FS_IOC_SET_ENCRYPTION_POLICY || ioctl.raw_key_bytes() != 0;
}

// --- what FUSE has not brought, or does not take back: 0 or an errno ----------------------------

// Of a key whose memory ends too soon nothing is taken: what is called then says EFAULT.
Result<void> take_key(const CallerMemory& memory, Ioctl& ioctl) {
  LK_TRY(SecretBytes key, SecretBytes::create(ioctl.raw_key_bytes()));
  LK_TRY(const std::size_t got, memory.read(ioctl.address + ioctl.size, key.bytes()));
  if (got == key.bytes().size()) ioctl.raw_key = std::move(key);
  return {};
}

Result<int> exchange(Ioctl& ioctl) {
  LK_TRY(const CallerMemory memory,
         CallerMemory::of(ioctl.caller.pid, ioctl.command, ioctl.address));
  switch (ioctl.command) {
    case FS_IOC_SET_ENCRYPTION_POLICY: {
      LK_TRY(ioctl.size, memory.read(ioctl.address, ioctl.argument()));
      return 0;
    }
    case FS_IOC_GET_ENCRYPTION_POLICY_EX: {
      LK_TRY(const std::size_t given, memory.write(ioctl.address, ioctl.argument()));
      return given == ioctl.size ? 0 : EFAULT;
    }
    default:
      LK_TRYV(take_key(memory, ioctl));
      return 0;
  }
}

int exchange_or_errno(Ioctl& ioctl) {
  const auto error = or_no_memory([&] { return exchange(ioctl); });
  return error ? *error : posix_errno(error.error());
}

void reply(Ioctl& ioctl, const FscryptAnswer& answer) {
  if (answer.error != 0)
    fuse_reply_err(ioctl.req, answer.error);
  else
    fuse_reply_ioctl(ioctl.req, 0, ioctl.bytes.data(), answer.bytes);
}

}  // namespace

// --- the calls ----------------------------------------------------------------------------------

FscryptAnswer FileSystem::perform(Ioctl& ioctl) {
  const auto answer = or_no_memory([&] {
    return fscrypt_ioctl(volume_, ioctl.caller, ioctl.handle,
                         {.command = ioctl.command,
                          .argument = ioctl.argument(),
                          .raw_key = std::move(ioctl.raw_key)});
  });
  return answer ? *answer : FscryptAnswer{.error = ENOMEM};
}

void FileSystem::ioctl(fuse_req_t req, fuse_ino_t, unsigned command, void* address,
                       fuse_file_info* info, unsigned, const void* in, size_t in_size, size_t) {
  const std::size_t size = volume::fscrypt_argument_bytes(command);
  if (size == 0) {
    fuse_reply_err(req, ENOTTY);
    return;
  }
  const auto ioctl = std::make_shared<Ioctl>();
  ioctl->req = req;
  ioctl->caller = caller_of(req);
  ioctl->handle = OpenFiles::at(info->fh).handle;
  ioctl->command = command;
  ioctl->address = reinterpret_cast<u64>(address);
  ioctl->size = size;
  if (in_size != 0) std::memcpy(ioctl->bytes.data(), in, std::min(in_size, size));
  if (is_removal(command)) return remove(ioctl);

  const bool lacks = lacks_bytes(*ioctl);
  const FscryptAnswer answer = lacks ? FscryptAnswer{} : perform(*ioctl);
  const bool too_much = answer.error == 0 && command == FS_IOC_GET_ENCRYPTION_POLICY_EX;
  if (!lacks && !too_much) return reply(*ioctl, answer);
  if (!options_.caller_memory) {
    fuse_reply_err(req, EOPNOTSUPP);
    return;
  }
  look(ioctl);
}

void FileSystem::remove(const std::shared_ptr<Ioctl>& ioctl) {
  const auto job = [this, ioctl](IoctlThreads::Turn& turn) {
    if (turn.act()) reply(*ioctl, perform(*ioctl));
  };
  if (!removals_.start(ioctl->caller.uid, job)) reply(*ioctl, {.error = ENOMEM});
}

void FileSystem::look(const std::shared_ptr<Ioctl>& ioctl) {
  const auto job = [this, ioctl](IoctlThreads::Turn& turn) {
    const int error = exchange_or_errno(*ioctl);
    if (!turn.act()) return;
    const bool is_answered = error != 0 || ioctl->command == FS_IOC_GET_ENCRYPTION_POLICY_EX;
    reply(*ioctl, is_answered ? FscryptAnswer{.error = error} : perform(*ioctl));
  };
  if (!looks_.start(ioctl->caller.uid, job)) reply(*ioctl, {.error = ENOMEM});
}

void FileSystem::stop_ioctls() {
  removals_.stop();
  looks_.stop();
}

}  // namespace latchkey::mount
