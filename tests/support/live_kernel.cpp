#include "tests/support/live_kernel.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <map>

#include "base/check.h"
#include "tests/support/kernel_fscrypt.h"

namespace latchkey::tests {
namespace {

constexpr u64 kImageBytes = 64 * kMiB;
constexpr u32 kBlockBytes = 4096;

using kernel::as;

std::string answer(long result) { return live_error(result < 0 ? static_cast<int>(-result) : 0); }

std::string path_text(u32 directory, std::string_view name) {
  return fmt::format("{}/{}", kLiveDirectories[directory], name);
}

int open_flags(const volume::OpenFlags& flags) {
  int bits = flags.read && flags.write ? O_RDWR : flags.write ? O_WRONLY : O_RDONLY;
  if (flags.append) bits |= O_APPEND;
  if (flags.create) bits |= O_CREAT;
  if (flags.exclusive) bits |= O_EXCL;
  if (flags.truncate) bits |= O_TRUNC;
  return bits | O_CLOEXEC;
}

// Names of a directory but "." and "..".
struct Name {
  std::string text;
  u64 inode = 0;
};
int names_of(int directory_fd, std::vector<Name>& names) {
  DIR* const directory = ::fdopendir(directory_fd);
  if (directory == nullptr) {
    const int error = errno;
    ::close(directory_fd);
    errno = error;
    return -1;
  }
  ::rewinddir(directory);  // a handle that is held may have been read before
  while (const dirent* entry = ::readdir(directory)) {
    const std::string_view found = entry->d_name;
    if (found != "." && found != "..") names.push_back({std::string(found), entry->d_ino});
  }
  ::closedir(directory);
  return 0;
}

int names_of(int at, const char* name, std::vector<Name>& names) {
  const int fd = ::openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return fd < 0 ? -1 : names_of(fd, names);
}

std::string names_text(const std::vector<Name>& found) {
  std::vector<std::string> names;
  names.reserve(found.size());
  for (const Name& name : found) names.push_back(name.text);
  return live_names(std::move(names));
}

}  // namespace

LiveKernel::~LiveKernel() {
  close_all();
  folder_ = {};
  root_ = {};
  if (ext4_.mounted()) (void)ext4_.unmount();
}

std::string LiveKernel::make() {
  if (std::string missing = ext4_.make(kImageBytes, kBlockBytes); !missing.empty()) return missing;
  ::umask(0);
  root_ = ext4_.open();
  LK_CHECK(::fchmod(root_.get(), 0755) == 0);
  for (u32 key = 0; key < kLiveKeys; ++key) {
    raw_[key] = live_key(key);
    const int refused = add_key(key);
    if (const char* lacks = kernel::missing(refused)) return lacks;
    if (refused != 0) return "this kernel takes no key: " + live_error(refused);
  }
  remove_all_keys();
  return {};
}

int LiveKernel::add_key(u32 key) { return kernel::add_key(root_.get(), raw_[key], ids_[key]); }

void LiveKernel::close_all() {
  for (Open& open : open_) {
    if (open.fd >= 0) ::close(open.fd);
    open = {};
  }
}

LiveKernel::Status LiveKernel::status(u32 key) {
  const auto now = kernel::key_status(root_.get(), ids_[key]);
  return {now.status, now.status_flags, now.user_count};
}

// Rule used_directory: an open directory is unlocked as soon as it can be.
void LiveKernel::use_open_directories() {
  if (!rules_.used_directory) return;
  struct stat found{};
  for (const Open& open : open_)
    if (open.fd >= 0) (void)::fstatat(open.fd, "n0", &found, 0);
}

void LiveKernel::remove_all_keys() {
  for (u32 key = 0; key < kLiveKeys; ++key) {
    u32 flags = 0;
    while (status(key).state != FSCRYPT_KEY_STATUS_ABSENT) {
      const int refused = kernel::remove_key(root_.get(), ids_[key], true, flags);
      LK_CHECK(refused == 0 || refused == ENOKEY);
    }
  }
}

std::string LiveKernel::path_of(const LiveOp& op) const {
  return path_text(op.path.directory, op.name(no_key_names_));
}

void LiveKernel::begin(const LivePlan& plan) {
  remove_all_keys();
  // A process that died in the middle left its folder; the next one begins behind it.
  do {
    folder_name_ = fmt::format("s{}", ++sequences_);
  } while (::mkdirat(root_.get(), folder_name_.c_str(), 0755) != 0 && errno == EEXIST);
  const auto open_folder = [](int at, const std::string& name) {
    engine::Fd folder(::openat(at, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    LK_CHECK(folder.valid());
    return folder;
  };
  folder_ = open_folder(root_.get(), folder_name_);
  for (u32 key = 0; key < kLiveKeys; ++key) LK_CHECK(add_key(key) == 0);
  for (std::size_t i = 0; i < kLiveDirectories.size(); ++i) {
    const std::string name(1, kLiveDirectories[i]);
    LK_CHECK(::mkdirat(folder_.get(), name.c_str(), 0777) == 0);
    const engine::Fd directory = open_folder(folder_.get(), name);
    LK_CHECK(kernel::set_policy(directory.get(), kernel::policy_of(ids_[kLiveKeyOf[i]])) == 0);
  }
  if (wants_no_key_names(plan)) learn_no_key_names();
  remove_all_keys();
}

// A name's form without the key follows from the directory's nonce: files that have all names are
// made, looked at while locked, and removed.
void LiveKernel::learn_no_key_names() {
  std::map<u64, std::string*> place;  // by inode
  for (u32 directory = 0; directory < kLiveDirectories.size(); ++directory) {
    for (u32 name = 0; name < kLiveNames; ++name) {
      const std::string path = path_text(directory, name_in_directory({directory, name}));
      const engine::Fd file(::openat(folder_.get(), path.c_str(), O_WRONLY | O_CREAT, 0666));
      struct stat found{};
      LK_CHECK(file.valid() && ::fstat(file.get(), &found) == 0);
      place[found.st_ino] = &no_key_names_[directory][name];
    }
  }
  remove_all_keys();
  for (u32 directory = 0; directory < kLiveDirectories.size(); ++directory) {
    std::vector<Name> names;
    LK_CHECK(names_of(folder_.get(), path_text(directory, "").c_str(), names) == 0);
    for (const Name& name : names) {
      *place.at(name.inode) = name.text;
      const std::string path = path_text(directory, name.text);
      LK_CHECK(::unlinkat(folder_.get(), path.c_str(), 0) == 0);
    }
  }
}

void LiveKernel::end() {
  close_all();
  remove_all_keys();
  for (const char letter : kLiveDirectories) {
    const std::string directory(1, letter);
    std::vector<Name> names;
    LK_CHECK(names_of(folder_.get(), directory.c_str(), names) == 0);
    for (const Name& name : names)
      LK_CHECK(::unlinkat(folder_.get(), (directory + "/" + name.text).c_str(), 0) == 0);
    LK_CHECK(::unlinkat(folder_.get(), directory.c_str(), AT_REMOVEDIR) == 0);
  }
  folder_ = {};
  LK_CHECK(::unlinkat(root_.get(), folder_name_.c_str(), AT_REMOVEDIR) == 0);
}

std::string LiveKernel::run(const LiveOp& op) {
  switch (op.verb) {
    case LiveVerb::add:
    case LiveVerb::remove:
    case LiveVerb::remove_all:
    case LiveVerb::key_status:
      return key_call(op);
    case LiveVerb::open:
    case LiveVerb::read:
    case LiveVerb::write:
    case LiveVerb::truncate:
    case LiveVerb::fsync:
    case LiveVerb::open_directory:
    case LiveVerb::list_open:
    case LiveVerb::close:
      return handle_call(op);
    default:
      return file_call(op);
  }
}

std::string LiveKernel::key_call(const LiveOp& op) {
  if (op.verb == LiveVerb::add) {
    const long added = as(op.uid(), [&] { return (errno = add_key(op.key)) == 0 ? 0 : -1; });
    use_open_directories();
    return answer(added);
  }
  if (op.verb == LiveVerb::key_status) {
    Status now;
    as(op.uid(), [&] { return now = status(op.key), 0; });
    constexpr std::array<std::string_view, 4> kStates = {"?", "absent", "present",
                                                         "incompletely-removed"};
    return fmt::format("{}{}, {} users", kStates.at(now.state), now.flags == 0 ? "" : ", self",
                       now.users);
  }
  u32 flags = 0;
  const bool all = op.verb == LiveVerb::remove_all;
  const long result = as(op.uid(), [&] {
    errno = kernel::remove_key(root_.get(), ids_[op.key], all, flags);
    return errno == 0 ? 0 : -1;
  });
  if (result != 0) return answer(result);
  return fmt::format("0{}{}", (flags & FSCRYPT_KEY_REMOVAL_STATUS_FLAG_FILES_BUSY) ? ", busy" : "",
                     (flags & FSCRYPT_KEY_REMOVAL_STATUS_FLAG_OTHER_USERS) ? ", others" : "");
}

std::string LiveKernel::handle_call(const LiveOp& op) {
  Open& open = open_[op.slot];
  const bool opens = op.verb == LiveVerb::open || op.verb == LiveVerb::open_directory;
  if ((open.fd >= 0) == opens) return "-";
  const int fd = open.fd;
  const u32 uid = op.uid();
  switch (op.verb) {
    case LiveVerb::open: {
      const std::string path = path_of(op);
      const long made = as(
          uid, [&] { return ::openat(folder_.get(), path.c_str(), open_flags(op.flags), 0666); });
      if (made < 0) return answer(made);
      open = {static_cast<int>(made), op.flags.append};
      return "0";
    }
    case LiveVerb::open_directory: {
      const std::string name(1, kLiveDirectories[op.path.directory]);
      const long made = as(uid, [&] {
        return ::openat(folder_.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      });
      if (made < 0) return answer(made);
      open = {static_cast<int>(made), false};
      use_open_directories();
      return "0";
    }
    case LiveVerb::list_open: {
      std::vector<Name> names;
      const long result = as(uid, [&] { return names_of(::dup(fd), names); });
      return result < 0 ? answer(result) : names_text(names);
    }
    case LiveVerb::read: {
      std::vector<std::byte> data(op.size);
      const auto offset = static_cast<off_t>(op.offset);
      const long got = as(uid, [&] { return ::pread(fd, data.data(), data.size(), offset); });
      if (got < 0) return answer(got);
      return live_bytes(Bytes(data).first(static_cast<std::size_t>(got)));
    }
    case LiveVerb::write: {
      const std::vector<std::byte> data = live_data(op);
      const auto offset = static_cast<off_t>(op.offset);
      const long wrote = as(uid, [&] {
        return open.append ? ::write(fd, data.data(), data.size())
                           : ::pwrite(fd, data.data(), data.size(), offset);
      });
      return wrote < 0 ? answer(wrote) : fmt::format("{} bytes", wrote);
    }
    case LiveVerb::truncate:
      return answer(as(uid, [&] { return ::ftruncate(fd, static_cast<off_t>(op.size)); }));
    case LiveVerb::fsync:
      return answer(as(uid, [&] { return ::fsync(fd); }));
    default:
      open = {};
      return answer(as(uid, [&] { return ::close(fd); }));
  }
}

std::string LiveKernel::file_call(const LiveOp& op) {
  if (op.verb == LiveVerb::list) return list(op);
  const int at = folder_.get();
  const std::string from = path_of(op);
  const std::string to = path_text(op.to.directory, name_in_directory(op.to));
  const auto rename = [&](unsigned flags) {
    return answer(
        as(op.uid(), [&] { return ::renameat2(at, from.c_str(), at, to.c_str(), flags); }));
  };
  switch (op.verb) {
    case LiveVerb::rename:
      return rename(0);
    case LiveVerb::rename_new:
      return rename(RENAME_NOREPLACE);
    case LiveVerb::exchange:
      return rename(RENAME_EXCHANGE);
    case LiveVerb::unlink:
      return answer(as(op.uid(), [&] { return ::unlinkat(at, from.c_str(), 0); }));
    case LiveVerb::link:
      return answer(as(op.uid(), [&] { return ::linkat(at, from.c_str(), at, to.c_str(), 0); }));
    default: {
      struct stat found{};
      const long result = as(op.uid(), [&] { return ::fstatat(at, from.c_str(), &found, 0); });
      if (result != 0) return answer(result);
      return fmt::format("size {}, {} links", found.st_size, found.st_nlink);
    }
  }
}

std::string LiveKernel::list(const LiveOp& op) {
  const std::string directory(1, kLiveDirectories[op.path.directory]);
  std::vector<Name> found;
  const long result =
      as(op.uid(), [&] { return names_of(folder_.get(), directory.c_str(), found); });
  return result != 0 ? answer(result) : names_text(found);
}

}  // namespace latchkey::tests
