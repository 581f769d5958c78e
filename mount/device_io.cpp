#include "mount/device_io.h"

#include <linux/fuse.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>
#include <utility>

namespace latchkey::mount {
namespace {

thread_local bool t_init_answered = false;

void add_flags(void* answer, std::size_t size) {
  fuse_init_out out;
  if (size < sizeof out) return;
  std::memcpy(&out, answer, sizeof out);
  out.flags |= FUSE_HANDLE_KILLPRIV_V2;
  std::memcpy(answer, &out, sizeof out);
}

ssize_t write_pieces(int fd, iovec* pieces, int count, void*) {
  if (std::exchange(t_init_answered, false) && count > 1)
    add_flags(pieces[1].iov_base, pieces[1].iov_len);
  return ::writev(fd, pieces, count);
}

ssize_t read_request(int fd, void* into, std::size_t size, void*) { return ::read(fd, into, size); }

}  // namespace

Result<void> use_device_io(fuse_session* session) {
  fuse_custom_io io{};
  io.writev = write_pieces;
  io.read = read_request;
  if (fuse_session_custom_io(session, &io, fuse_session_fd(session)) == 0) return {};
  return fail(Errc::no_memory, "the kernel's device cannot be used");
}

void expect_init_answer() { t_init_answered = true; }

}  // namespace latchkey::mount
