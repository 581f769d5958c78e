#pragma once
// Errors are outcomes that a caller acts on: a code, the errno a POSIX caller sees, one static
// sentence and one place. Nothing here allocates, so an error path cannot fail for lack of memory.
// An Error never carries key bytes; a key is named by its identifier by whoever reports it.

#include <expected>
#include <source_location>
#include <utility>

#include "base/types.h"

namespace latchkey {

enum class Errc : u8 {
  io = 1,          // the device refused; os_errno says why
  damaged,         // bytes came back whole but do not match their checksum
  malformed,       // well-checksummed bytes that no version of us writes
  wrong_device,    // not a latchkey store, too small, truncated
  format_version,  // a feature bit or version that this build does not know
  no_key,          // ENOKEY: the master key is absent, or its removal has begun
  no_space,        // ENOSPC
  no_memory,       // ENOMEM
  not_found,       // ENOENT
  exists,          // EEXIST
  not_dir,         // ENOTDIR
  is_dir,          // EISDIR
  not_empty,       // ENOTEMPTY
  name_too_long,   // ENAMETOOLONG
  invalid,         // EINVAL: an argument that can never be right
  bad_handle,      // EBADF
  too_big,         // EFBIG
  busy,            // EBUSY
  permission,      // EACCES
  cross_key,       // EXDEV
  quota,           // EDQUOT
  read_only,       // EROFS
  unsupported,     // EOPNOTSUPP
  unavailable,     // a kernel facility is missing or forbidden (io_uring in a container)
  canceled,        // ECANCELED
  timed_out,       // ETIMEDOUT
  no_attribute,    // ENODATA
  list_too_big,    // E2BIG
  out_of_range,    // ERANGE
  wrong_key,       // a key that does not fit the policy it was offered for
  not_permitted,   // EPERM: nobody may, as a hard link to a directory
  too_many_links,  // EMLINK
  is_symlink,      // ELOOP
  would_wait,      // EAGAIN: the caller asked not to wait
};

inline constexpr u64 kNowhere = ~u64{0};

struct Error {
  Errc code;
  const char* what = "";  // static sentence without a full stop; never a secret
  u64 at = kNowhere;      // device offset in bytes where that says something
  i32 os_errno = 0;       // the kernel's own errno, if it was the kernel that refused
  std::source_location where = std::source_location::current();
  u64 in_file = kNowhere;  // offset in the file that the call is about, of the first such byte
};

template <class T>
class [[nodiscard]] Result : public std::expected<T, Error> {
 public:
  using std::expected<T, Error>::expected;
};

[[nodiscard]] inline std::unexpected<Error> fail(
    Errc code, const char* what, u64 at = kNowhere,
    std::source_location where = std::source_location::current()) {
  return std::unexpected(Error{code, what, at, 0, where});
}

// `os_errno` is positive.
[[nodiscard]] inline std::unexpected<Error> fail_os(
    Errc code, i32 os_errno, const char* what, u64 at = kNowhere,
    std::source_location where = std::source_location::current()) {
  return std::unexpected(Error{code, what, at, os_errno, where});
}

const char* name_of(Errc code);       // "no_key"
int posix_errno(const Error& error);  // ENOKEY, ENOSPC, ...: what a system call would answer

}  // namespace latchkey

#define LK_CONCAT2(a, b) a##b
#define LK_CONCAT(a, b) LK_CONCAT2(a, b)

// LK_TRY(auto x, call()): x is the value, or the enclosing function returns the error.
#define LK_TRY(declaration, ...) LK_TRY_IMPL(LK_CONCAT(lk_try_, __LINE__), declaration, __VA_ARGS__)
#define LK_TRY_IMPL(tmp, declaration, ...)                  \
  auto tmp = (__VA_ARGS__);                                 \
  if (!tmp) return std::unexpected(std::move(tmp).error()); \
  declaration = std::move(*tmp)

// LK_TRYV(call()): the same for Result<void>.
#define LK_TRYV(...)                                                                     \
  do {                                                                                   \
    if (auto lk_tryv = (__VA_ARGS__); !lk_tryv) return std::unexpected(lk_tryv.error()); \
  } while (false)
