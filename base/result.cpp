#include "base/result.h"

#include <cerrno>
#include <iterator>

namespace latchkey {
namespace {

struct Names {
  Errc code;
  const char* name;
  int posix_errno;
};

// Row n - 1 is that of code n.
constexpr Names kNames[] = {
    {Errc::io, "io", EIO},
    {Errc::damaged, "damaged", EIO},
    {Errc::malformed, "malformed", EUCLEAN},
    {Errc::wrong_device, "wrong_device", EINVAL},
    {Errc::format_version, "format_version", EINVAL},
    {Errc::no_key, "no_key", ENOKEY},
    {Errc::no_space, "no_space", ENOSPC},
    {Errc::no_memory, "no_memory", ENOMEM},
    {Errc::not_found, "not_found", ENOENT},
    {Errc::exists, "exists", EEXIST},
    {Errc::not_dir, "not_dir", ENOTDIR},
    {Errc::is_dir, "is_dir", EISDIR},
    {Errc::not_empty, "not_empty", ENOTEMPTY},
    {Errc::name_too_long, "name_too_long", ENAMETOOLONG},
    {Errc::invalid, "invalid", EINVAL},
    {Errc::bad_handle, "bad_handle", EBADF},
    {Errc::too_big, "too_big", EFBIG},
    {Errc::busy, "busy", EBUSY},
    {Errc::permission, "permission", EACCES},
    {Errc::cross_key, "cross_key", EXDEV},
    {Errc::quota, "quota", EDQUOT},
    {Errc::read_only, "read_only", EROFS},
    {Errc::unsupported, "unsupported", EOPNOTSUPP},
    {Errc::unavailable, "unavailable", ENOSYS},
    {Errc::canceled, "canceled", ECANCELED},
    {Errc::timed_out, "timed_out", ETIMEDOUT},
    {Errc::no_attribute, "no_attribute", ENODATA},
    {Errc::list_too_big, "list_too_big", E2BIG},
    {Errc::out_of_range, "out_of_range", ERANGE},
    {Errc::wrong_key, "wrong_key", EKEYREJECTED},
    {Errc::not_permitted, "not_permitted", EPERM},
    {Errc::too_many_links, "too_many_links", EMLINK},
    {Errc::is_symlink, "is_symlink", ELOOP},
    {Errc::would_wait, "would_wait", EAGAIN},
};

constexpr bool in_order() {
  for (std::size_t i = 0; i < std::size(kNames); ++i)
    if (static_cast<std::size_t>(kNames[i].code) != i + 1) return false;
  return true;
}
static_assert(in_order(), "a row is not in its place");

constexpr Names names(Errc code) {
  const std::size_t row = static_cast<std::size_t>(code) - 1;
  return row < std::size(kNames) ? kNames[row] : Names{code, "unknown", EIO};
}

}  // namespace

const char* name_of(Errc code) { return names(code).name; }

int posix_errno(const Error& error) {
  if (error.code == Errc::io && error.os_errno != 0) return error.os_errno;
  return names(error.code).posix_errno;
}

}  // namespace latchkey
