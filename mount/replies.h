#pragma once
// Small things that every operation needs.

#include <cerrno>

#include "base/result.h"
#include "mount/fuse.h"
#include "volume/types.h"

namespace latchkey::mount {

// Reads and writes alone wait for a key (io.cpp); what else would have to is refused.
inline int errno_of(const Error& error) {
  return error.code == Errc::would_wait ? ENOKEY : posix_errno(error);
}

inline void reply_error(fuse_req_t req, const Error& error) {
  fuse_reply_err(req, errno_of(error));
}

inline void reply_done(fuse_req_t req, const Result<void>& done) {
  fuse_reply_err(req, done ? 0 : errno_of(done.error()));
}

inline volume::Caller caller_of(fuse_req_t req) {
  const fuse_ctx* context = fuse_req_ctx(req);
  return {.uid = context->uid, .gid = context->gid, .pid = static_cast<u32>(context->pid)};
}

inline constexpr mode_t kPermissionBits = 07777;

}  // namespace latchkey::mount
