#include "engine/io_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "base/check.h"
#include "engine/io.h"

namespace latchkey::engine {
namespace {

constexpr u64 kHugePage = 2 * kMiB;

void unmap(std::byte* start, u64 size) {
  if (size != 0) LK_CHECK(::munmap(start, size) == 0);
}

}  // namespace

Result<IoBuffer> IoBuffer::create(u64 size_bytes) {
  LK_CHECK(size_bytes % kIoAlign == 0);
  IoBuffer buffer;
  if (size_bytes == 0) return buffer;
  const u64 align = size_bytes >= kHugePage ? kHugePage : kIoAlign;
  const u64 slack = align - kIoAlign;
  if (size_bytes > ~u64{0} / 2) return fail(Errc::no_memory, "the I/O buffer is too large");
  void* mapped = ::mmap(nullptr, size_bytes + slack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return fail_os(Errc::no_memory, errno, "no memory for an I/O buffer");

  auto* start = static_cast<std::byte*>(mapped);
  const u64 head = (align - reinterpret_cast<std::uintptr_t>(start) % align) % align;
  unmap(start, head);
  unmap(start + head + size_bytes, slack - head);
  start += head;
  // Both are wishes: a kernel without huge pages says no, and the buffer works all the same.
  if (align == kHugePage) (void)::madvise(start, size_bytes, MADV_HUGEPAGE);
  (void)::madvise(start, size_bytes, MADV_DONTFORK);
  buffer.bytes_ = {start, size_bytes};
  return buffer;
}

IoBuffer::IoBuffer(IoBuffer&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

IoBuffer& IoBuffer::operator=(IoBuffer&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

IoBuffer::~IoBuffer() { unmap(bytes_.data(), bytes_.size()); }

bool IoBuffer::contains(Bytes part) const {
  const auto start = reinterpret_cast<std::uintptr_t>(bytes_.data());
  const auto part_start = reinterpret_cast<std::uintptr_t>(part.data());
  return part_start >= start && part_start - start <= bytes_.size() &&
         part.size() <= bytes_.size() - (part_start - start);
}

}  // namespace latchkey::engine
