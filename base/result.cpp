#include "base/result.h"

#include <cerrno>

namespace latchkey {
namespace {

struct Names {
  const char* name;
  int posix_errno;
};

// No default: the compiler names a code that is missing here.
constexpr Names names(Errc code) {
  switch (code) {
    case Errc::io:
      return {"io", EIO};
    case Errc::damaged:
      return {"damaged", EIO};
    case Errc::malformed:
      return {"malformed", EUCLEAN};
    case Errc::wrong_device:
      return {"wrong_device", EINVAL};
    case Errc::format_version:
      return {"format_version", EINVAL};
    case Errc::no_key:
      return {"no_key", ENOKEY};
    case Errc::no_space:
      return {"no_space", ENOSPC};
    case Errc::no_memory:
      return {"no_memory", ENOMEM};
    case Errc::not_found:
      return {"not_found", ENOENT};
    case Errc::exists:
      return {"exists", EEXIST};
    case Errc::not_dir:
      return {"not_dir", ENOTDIR};
    case Errc::is_dir:
      return {"is_dir", EISDIR};
    case Errc::not_empty:
      return {"not_empty", ENOTEMPTY};
    case Errc::name_too_long:
      return {"name_too_long", ENAMETOOLONG};
    case Errc::invalid:
      return {"invalid", EINVAL};
    case Errc::bad_handle:
      return {"bad_handle", EBADF};
    case Errc::too_big:
      return {"too_big", EFBIG};
    case Errc::busy:
      return {"busy", EBUSY};
    case Errc::permission:
      return {"permission", EACCES};
    case Errc::cross_key:
      return {"cross_key", EXDEV};
    case Errc::quota:
      return {"quota", EDQUOT};
    case Errc::read_only:
      return {"read_only", EROFS};
    case Errc::unsupported:
      return {"unsupported", EOPNOTSUPP};
    case Errc::unavailable:
      return {"unavailable", ENOSYS};
    case Errc::canceled:
      return {"canceled", ECANCELED};
    case Errc::timed_out:
      return {"timed_out", ETIMEDOUT};
    case Errc::wrong_key:
      return {"wrong_key", EKEYREJECTED};
    case Errc::not_permitted:
      return {"not_permitted", EPERM};
    case Errc::too_many_links:
      return {"too_many_links", EMLINK};
    case Errc::is_symlink:
      return {"is_symlink", ELOOP};
  }
  return {"unknown", EIO};
}

}  // namespace

const char* name_of(Errc code) { return names(code).name; }

int posix_errno(const Error& error) {
  if (error.code == Errc::io && error.os_errno != 0) return error.os_errno;
  return names(error.code).posix_errno;
}

}  // namespace latchkey
