#include "mount/control_key.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "base/secret_work.h"
#include "volume/types.h"

namespace latchkey::mount {

namespace {

int memfd_secret() { return static_cast<int>(::syscall(SYS_memfd_secret, O_CLOEXEC)); }

// Never asks the file system that a descriptor belongs to: it may be anybody's.
bool look(int fd, struct statx& out) {
  return ::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
                 STATX_TYPE | STATX_SIZE | STATX_INO, &out) == 0;
}

struct DeviceNumber {
  u32 major = 0, minor = 0;
  bool operator==(const DeviceNumber&) const = default;
};

// Of all memfd_secret files of this kernel; none where there are none.
std::optional<DeviceNumber> secret_memory_device() {
  static const std::optional<DeviceNumber> device = []() -> std::optional<DeviceNumber> {
    const UniqueFd fd(memfd_secret());
    struct statx facts{};
    if (!fd || !look(fd.get(), facts)) return std::nullopt;
    return DeviceNumber{facts.stx_dev_major, facts.stx_dev_minor};
  }();
  return device;
}

// Only a memfd can have these; F_GET_SEALS asks nobody but the kernel's own memory files.
bool is_sealed(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return false;
  const bool size_stays = (seals & F_SEAL_SHRINK) != 0 && (seals & F_SEAL_GROW) != 0;
  return size_stays && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
}

Result<void> take_from_secret_memory(int fd, SecretBytes& secret) {
  const std::size_t size = secret.bytes().size();
  void* page = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) {
    const int error = errno;
    if (error == EACCES || error == EPERM || error == EBADF)
      return fail_os(Errc::invalid, error, "the key's descriptor is not open for writing");
    return fail_os(Errc::no_memory, error, "the key cannot be mapped");
  }
  (void)::madvise(page, size, MADV_DONTDUMP);  // the kernel leaves these pages out by itself
  {
    const SecretWork work;
    std::memcpy(secret.bytes().data(), page, size);
  }
  wipe(page, size);
  ::munmap(page, size);
  return {};
}

Result<void> take_from_sealed(int fd, SecretBytes& secret) {
  std::size_t done = 0;
  while (done < secret.bytes().size()) {
    const ssize_t got = ::pread(fd, secret.bytes().data() + done, secret.bytes().size() - done,
                                static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return fail_os(Errc::invalid, got < 0 ? errno : EIO, "the key cannot be read");
    done += static_cast<std::size_t>(got);
  }
  return {};
}

}  // namespace

TakenKey take_key(int fd, u32 size) {
  TakenKey taken{fail(Errc::invalid, "a key comes in a memfd_secret or a sealed memfd"), false};
  struct statx facts{};
  if (!look(fd, facts) || !S_ISREG(facts.stx_mode)) return taken;
  const bool secret_memory =
      secret_memory_device() == DeviceNumber{facts.stx_dev_major, facts.stx_dev_minor};
  if (!secret_memory && !is_sealed(fd)) return taken;
  taken.recognised = true;
  // Whether a short one will do is the key ring's to say.
  if (facts.stx_size != size || size < crypto::kShortKeyBytesMin ||
      size > crypto::kMasterKeyBytesMax) {
    taken.secret = fail(Errc::invalid, "a key has 16 to 64 bytes, and its descriptor no more");
    return taken;
  }
  auto secret = SecretBytes::create(size);
  if (!secret) {
    taken.secret = std::unexpected(secret.error());
    return taken;
  }
  const auto copied =
      secret_memory ? take_from_secret_memory(fd, *secret) : take_from_sealed(fd, *secret);
  if (!copied)
    taken.secret = std::unexpected(copied.error());
  else
    taken.secret = std::move(*secret);
  return taken;
}

Result<KeyDescriptor> KeyDescriptor::create(const SecretBytes& secret) {
  KeyDescriptor key;
  key.size_ = static_cast<u32>(secret.bytes().size());
  // The arena's kind is the caller's choice (--secrets locked), and the kernel's.
  if (arena_status().kind == ArenaKind::memfd_secret) key.fd_.reset(memfd_secret());
  key.secret_memory_ = static_cast<bool>(key.fd_);
  if (!key.fd_) key.fd_.reset(::memfd_create("latchkey", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!key.fd_) return fail_os(Errc::no_memory, errno, "no file for a key's memory");
  LK_TRYV(key.map(secret));
  return key;
}

Result<void> KeyDescriptor::map(const SecretBytes& secret) {
  if (::ftruncate(fd_.get(), size_) != 0)
    return fail_os(Errc::no_memory, errno, "no memory for a key's descriptor");
  void* page = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (page == MAP_FAILED)
    return fail_os(Errc::no_memory, errno, "lock limit (RLIMIT_MEMLOCK) or memory is exhausted");
  data_ = static_cast<std::byte*>(page);
  if (::madvise(page, size_, MADV_DONTDUMP) != 0 || ::madvise(page, size_, MADV_DONTFORK) != 0)
    return fail_os(Errc::unavailable, errno, "a key's page cannot be kept out of dumps");
  if (!secret_memory_) {
    if (::syscall(SYS_mlock, page, size_) != 0)
      return fail_os(Errc::no_memory, errno, "lock limit (RLIMIT_MEMLOCK) or memory is exhausted");
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
    if (::fcntl(fd_.get(), F_ADD_SEALS, seals) != 0)
      return fail_os(Errc::unavailable, errno, "a key's descriptor cannot be sealed");
  }
  const SecretWork work;
  std::memcpy(data_, secret.bytes().data(), size_);
  return {};
}

KeyDescriptor::KeyDescriptor(KeyDescriptor&& other) noexcept
    : fd_(std::move(other.fd_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      secret_memory_(other.secret_memory_) {}

KeyDescriptor::~KeyDescriptor() {
  if (data_ == nullptr) return;
  wipe();
  ::munmap(data_, size_);
}

void KeyDescriptor::wipe() {
  if (data_ != nullptr) latchkey::wipe(data_, size_);
}

}  // namespace latchkey::mount
