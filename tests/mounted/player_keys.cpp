// Keys and policies, through either door.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>

#include "base/check.h"
#include "tests/mounted/player.h"
#include "tests/support/conformance_world.h"
#include "tests/support/kernel_fscrypt.h"

namespace latchkey::tests {

using mount::ControlClient;
using mount::Request;
using mount::UniqueFd;

namespace {

constexpr std::size_t kKeyBytesMin = 16;  // the kernel's
constexpr const char* kStates[] = {"?", "ABSENT", "PRESENT", "INCOMPLETELY_REMOVED"};

std::string_view kernel_name(keymgr::KeyState state) {
  switch (state) {
    case keymgr::KeyState::absent:
      return kStates[FSCRYPT_KEY_STATUS_ABSENT];
    case keymgr::KeyState::present:
      return kStates[FSCRYPT_KEY_STATUS_PRESENT];
    case keymgr::KeyState::incompletely_removed:
      return kStates[FSCRYPT_KEY_STATUS_INCOMPLETELY_REMOVED];
  }
  return kStates[0];
}

UniqueFd open_directory(const std::string& path) {
  return UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

// As a client's key comes, but of any size.
UniqueFd sealed(Bytes raw) {
  UniqueFd fd(::memfd_create("key", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  LK_CHECK(::write(fd.get(), raw.data(), raw.size()) == static_cast<ssize_t>(raw.size()));
  LK_CHECK(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);
  return fd;
}

// 0, or the errno that the daemon's error is.
int errno_in(const mount::Answer& answer) {
  if (!answer.done.error) return 0;
  return posix_errno(Error{.code = *answer.done.error, .os_errno = answer.done.os_errno});
}

mount::Answer ask(ControlClient daemon, const Request& request, int fd = -1) {
  auto answer = daemon.ask(request, fd);
  LK_CHECK_MSG(answer.has_value(), "the daemon answers");
  return std::move(*answer);
}

Request about(mount::Verb verb, const crypto::KeyId& id) {
  Request request;
  request.verb = verb;
  request.id = id;
  return request;
}

}  // namespace

ControlClient Player::daemon(const std::string& root) const {
  struct stat facts{};
  LK_CHECK(::stat(root.c_str(), &facts) == 0);
  auto client = ControlClient::connect(facts.st_dev);
  LK_CHECK_MSG(client.has_value(), client ? "" : client.error().what);
  return std::move(*client);
}

// Every user who names a key means the same one.
Player::Key& Player::key(const std::string& name, std::size_t size, u64 seed) {
  const auto found = keys_.find(name);
  if (found != keys_.end()) return found->second;
  Key made{raw_key(seed == 0 ? std::hash<std::string>{}(name) : seed, size), {}};
  if (size >= kKeyBytesMin && size <= FSCRYPT_MAX_KEY_SIZE) made.id = needles_of(made.raw).id;
  return keys_.emplace(name, std::move(made)).first->second;
}

Player::Key& Player::key(const Words& words, std::size_t at) {
  return key(words.at(at), option(words, "size", 64), option(words, "seed", 0));
}

int Player::add_key(const Key& key) {
  if (door_ == KeyDoor::ioctls) {
    crypto::KeyId id;
    const int error = kernel::add_key(open_directory(root_).get(), key.raw, id);
    LK_CHECK(error != 0 || id == key.id);
    return error;
  }
  Request request;
  request.verb = mount::Verb::key_add;
  request.key_bytes = static_cast<u32>(key.raw.size());
  const mount::Answer answer = ask(daemon(root_), request, sealed(key.raw).get());
  LK_CHECK(answer.done.error || answer.done.key_id == key.id);
  return errno_in(answer);
}

Player::Removed Player::remove_key(const crypto::KeyId& id, bool all_users) {
  if (door_ == KeyDoor::ioctls) {
    u32 flags = 0;
    const int error = kernel::remove_key(open_directory(root_).get(), id, all_users, flags);
    return {error, (flags & FSCRYPT_KEY_REMOVAL_STATUS_FLAG_FILES_BUSY) != 0,
            (flags & FSCRYPT_KEY_REMOVAL_STATUS_FLAG_OTHER_USERS) != 0};
  }
  Request request = about(mount::Verb::key_remove, id);
  request.removal.all_users = all_users;
  const mount::Answer answer = ask(daemon(root_), request);
  return {errno_in(answer), answer.removal.files_busy, answer.removal.other_users};
}

Outcome Player::status_of(const crypto::KeyId& id, const std::string& root) {
  if (door_ == KeyDoor::ioctls) {
    const auto status = kernel::key_status(open_directory(root).get(), id);
    LK_CHECK(status.status < std::size(kStates));
    return {"0", status_text(kStates[status.status], status.status_flags != 0, status.user_count)};
  }
  const mount::Answer answer = ask(daemon(root), about(mount::Verb::key_status, id));
  LK_CHECK(answer.keys.size() == 1);
  const volume::KeyReport& report = answer.keys[0];
  return {"0", status_text(kernel_name(report.state), report.added_by_self, report.user_count)};
}

int Player::set_policy(const std::string& in_store, const crypto::KeyId& id) {
  const bool by_ioctl = door_ == KeyDoor::ioctls;
  const UniqueFd fd(
      ::open(path(in_store).c_str(), by_ioctl ? O_RDONLY : O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return errno;
  if (by_ioctl) return kernel::set_policy(fd.get(), kernel::policy_of(id));
  return errno_in(ask(daemon(root_), about(mount::Verb::policy_set, id), fd.get()));
}

// --- operations ---------------------------------------------------------------------------------

Outcome Player::add(const Words& words) { return outcome_of_errno(add_key(key(words, 1))); }

Outcome Player::add_in_child(const Words& words) {
  const Key& added = key(words, 1);
  const pid_t child = ::fork();
  if (child == 0) ::_exit(add_key(added));
  int status = 0;
  LK_CHECK(::waitpid(child, &status, 0) == child && WIFEXITED(status));
  return outcome_of_errno(WEXITSTATUS(status));
}

Outcome Player::add_and_remove(const Words& words) {
  const u64 size = option(words, "size", 64);
  const Key& added = key("of size " + std::to_string(size), size);
  const int error = add_key(added);
  return outcome_of_errno(error != 0 ? error : remove_key(added.id, false).error);
}

Outcome Player::remove(const Words& words) {
  const Removed removed = remove_key(key(words, 1).id, words.at(0) == "remove_all");
  if (words.back() == "plain") return outcome_of_errno(removed.error);
  std::string flags;
  if (removed.files_busy) flags += "FILES_BUSY";
  if (removed.other_users) flags += "OTHER_USERS";
  return {outcome_of_errno(removed.error).result, "flags=" + (flags.empty() ? "0" : flags)};
}

Outcome Player::remove_all(const Words& words) { return remove(words); }

Outcome Player::status(const Words& words) { return status_of(key(words, 1).id, root_); }

// status_elsewhere K ROOT
Outcome Player::status_elsewhere(const Words& words) {
  const Outcome seen = status_of(key(words, 1).id, words.at(2));
  return {seen.result, seen.detail.substr(0, seen.detail.find(' '))};
}

Outcome Player::same_key(const Words& words) {
  return {key(words, 1).id == key(words, 2).id ? "0" : "EINVAL"};
}

Outcome Player::other_key(const Words& words) {
  return {key(words, 1).id != key(words, 2).id ? "0" : "EINVAL"};
}

// PREFIX0 and on; who asks gives them other names (MountWorld).
Outcome Player::add_until_error(const Words& words) {
  static constexpr u32 kTriesMax = 1000;
  for (u32 added = 0; added < kTriesMax; ++added) {
    const int error = add_key(key(words.at(1) + std::to_string(added)));
    if (error != 0) return {errno_name(error), "successes=" + std::to_string(added)};
  }
  return {"0"};
}

Outcome Player::policy(const Words& words) {
  return outcome_of_errno(set_policy(words.at(1), key(words, 2).id));
}

Outcome Player::add_policy_put(const Words& words) {
  const u64 size = option(words, "size", 64);
  const std::string name = "of_size_" + std::to_string(size);
  const Key& made = key(name, size);
  const Outcome added = outcome_of_errno(add_key(made));
  LK_CHECK(mkdir({"mkdir", "/" + name}).result == "0");
  const Outcome set = outcome_of_errno(set_policy("/" + name, made.id));
  Outcome put = write_text("/" + name + "/x", "make", "x");
  put.detail = "ADD=" + added.result + " SET=" + set.result;
  return put;
}

Outcome Player::get_policy(const Words& words) {
  const crypto::KeyId& wanted = key(words, 2).id;
  crypto::KeyId id;
  int error = 0;
  if (door_ == KeyDoor::ioctls) {
    fscrypt_get_policy_ex_arg argument{};
    argument.policy_size = sizeof argument.policy;
    const UniqueFd fd = open_directory(path(words.at(1)));
    if (!fd || ::ioctl(fd.get(), FS_IOC_GET_ENCRYPTION_POLICY_EX, &argument) != 0) error = errno;
    std::memcpy(id.bytes.data(), argument.policy.v2.master_key_identifier, id.bytes.size());
  } else {
    const UniqueFd fd(::open(path(words.at(1)).c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!fd) return outcome_of_errno(errno);
    const mount::Answer answer = ask(daemon(root_), about(mount::Verb::policy_get, {}), fd.get());
    error = errno_in(answer);
    id = answer.policy.id;
  }
  return {outcome_of_errno(error).result,
          std::string("identifier_matches=") + (error == 0 && id == wanted ? "1" : "0")};
}

Outcome Player::fresh(const Words& words) {
  const std::string& folder = words.at(1);
  const Key& made = key(words, 2);
  if (const int error = add_key(made)) return outcome_of_errno(error);
  if (const Outcome outcome = mkdir(words); outcome.result != "0") return outcome;
  if (const int error = set_policy(folder, made.id)) return outcome_of_errno(error);
  const bool filled = put({"", folder + "/f1", "hello-one"}).result == "n=9" &&
                      put({"", folder + "/f2", "hello-two"}).result == "n=9" &&
                      mkdir({"", folder + "/sub"}).result == "0" &&
                      put({"", folder + "/sub/g", "deep"}).result == "n=4" &&
                      symlink({"", "f1", folder + "/ln"}).result == "0" &&
                      mkdir({"", folder + "/empty"}).result == "0";
  for (const char* name : {"f1", "f2", "sub", "ln", "empty"}) {
    struct stat facts{};
    LK_CHECK(::lstat(path(folder + "/" + name).c_str(), &facts) == 0);
    called_[name] = facts.st_ino;
  }
  return {filled ? "0" : "not filled"};
}

}  // namespace latchkey::tests
