#include "mount/reply_buffer.h"

#include <algorithm>
#include <memory>

#include "base/check.h"
#include "base/secret.h"

namespace latchkey::mount {
namespace {

struct Memory {
  std::unique_ptr<std::byte[]> data;
  std::size_t size = 0;
  bool lent = false;
};

// A thread answers one request at a time.
thread_local Memory t_memory;

}  // namespace

ReplyBuffer::ReplyBuffer(std::size_t size) {
  LK_CHECK_MSG(!t_memory.lent, "a thread answers one read at a time");
  if (t_memory.size < size) {
    t_memory.data.reset();
    t_memory.size = 0;
    t_memory.data = std::make_unique_for_overwrite<std::byte[]>(size);
    t_memory.size = size;
  }
  t_memory.lent = true;
  bytes_ = {t_memory.data.get(), size};
}

ReplyBuffer::~ReplyBuffer() {
  wipe(bytes_);
  t_memory.lent = false;
}

}  // namespace latchkey::mount
