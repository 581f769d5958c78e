#include "base/secret_chunk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <new>

#include "base/check.h"

namespace latchkey {
namespace {

constexpr u64 kWordBits = 64;

// What a lock limit or a full machine answers. All else means that the facility is not there.
bool is_shortage(int error) {
  return error == EAGAIN || error == ENOMEM || error == EMFILE || error == ENFILE;
}

std::unexpected<Error> refusal(int error, const char* shortage, const char* missing) {
  if (is_shortage(error)) return fail_os(Errc::no_memory, error, shortage);
  return fail_os(Errc::unavailable, error, missing);
}

// The kernel marks these pages VM_LOCKED and VM_DONTDUMP itself and counts them against
// RLIMIT_MEMLOCK; DONTDUMP is asked for again because a dump is the one way out that remains.
Result<std::byte*> map_memfd_secret(u64 size) {
  const long fd = syscall(SYS_memfd_secret, O_CLOEXEC);
  if (fd < 0) return refusal(errno, "no file for secret memory", "memfd_secret is refused");
  void* data = MAP_FAILED;
  if (ftruncate(static_cast<int>(fd), static_cast<off_t>(size)) == 0)
    data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, static_cast<int>(fd), 0);
  const int error = errno;
  close(static_cast<int>(fd));
  if (data == MAP_FAILED)
    return refusal(error, "lock limit (RLIMIT_MEMLOCK) or memory is exhausted",
                   "memfd_secret cannot be mapped");
  if (madvise(data, size, MADV_DONTDUMP) != 0 || madvise(data, size, MADV_DONTFORK) != 0) {
    const int advice_error = errno;
    munmap(data, size);
    return refusal(advice_error, "no memory to keep secrets out of dumps",
                   "memfd_secret cannot be kept out of dumps and forks");
  }
  return static_cast<std::byte*>(data);
}

Result<std::byte*> map_locked(u64 size) {
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return fail_os(Errc::no_memory, errno, "memory is exhausted");
  // Advice first: no moment at which a page is there and a dump would hold it.
  const char* what = "pages cannot be kept out of dumps and forks";
  bool ok = madvise(data, size, MADV_DONTDUMP) == 0 && madvise(data, size, MADV_WIPEONFORK) == 0;
  if (ok) {
    what = "lock limit (RLIMIT_MEMLOCK) or memory is exhausted";
    ok = syscall(SYS_mlock, data, size) == 0;  // not mlock(): sanitizers turn that into nothing
  }
  if (ok) return static_cast<std::byte*>(data);
  const int error = errno;
  munmap(data, size);
  // EPERM is mlock's word for a limit of zero.
  if (is_shortage(error) || error == EPERM) return fail_os(Errc::no_memory, error, what);
  return fail_os(Errc::unavailable, error, what);
}

}  // namespace

Result<std::byte*> map_secret_pages(ArenaKind kind, u64 size) {
  LK_TRY(std::byte * data,
         kind == ArenaKind::memfd_secret ? map_memfd_secret(size) : map_locked(size));
  // Every page is asked for now: a secret is not the place to learn that memory is short.
  const u64 page = static_cast<u64>(sysconf(_SC_PAGESIZE));
  for (u64 offset = 0; offset < size; offset += page)
    *static_cast<volatile std::byte*>(data + offset) = std::byte{0};
  return data;
}

Result<std::unique_ptr<SecretChunk>> SecretChunk::create(ArenaKind kind, u64 size) {
  std::unique_ptr<SecretChunk> chunk(new (std::nothrow) SecretChunk);
  if (chunk == nullptr) return fail(Errc::no_memory, "no memory for the arena's book-keeping");
  const u64 granules = size / kSecretGranule;
  try {
    chunk->free_map_.assign(granules / kWordBits, ~u64{0});
  } catch (const std::bad_alloc&) {
    return fail(Errc::no_memory, "no memory for the arena's book-keeping");
  }
  LK_TRY(chunk->begin_, map_secret_pages(kind, size));
  chunk->granules_ = granules;
  chunk->free_granules_ = granules;
  chunk->run_limit_ = granules;
  return chunk;
}

u64 SecretChunk::find_run(u64 count) const {
  u64 run_first = 0;
  u64 run = 0;
  for (u64 word = first_word_; word < free_map_.size(); ++word) {
    u64 bit = 0;
    while (bit < kWordBits) {
      const u64 rest = free_map_[word] >> bit;
      if ((rest & 1) == 0) {
        run = 0;
        if (rest == 0) break;
        bit += static_cast<u64>(std::countr_zero(rest));
        continue;
      }
      if (run == 0) run_first = word * kWordBits + bit;
      const u64 ones = std::min(static_cast<u64>(std::countr_one(rest)), kWordBits - bit);
      run += ones;
      if (run >= count) return run_first;
      bit += ones;
    }
  }
  return granules_;
}

void SecretChunk::flip(u64 first, u64 count, bool free) {
  const u64 end = first + count;
  while (first < end) {
    const u64 bit = first % kWordBits;
    const u64 bits = std::min(kWordBits - bit, end - first);
    const u64 mask = (bits == kWordBits ? ~u64{0} : (u64{1} << bits) - 1) << bit;
    u64& word = free_map_[first / kWordBits];
    LK_CHECK_MSG((word & mask) == (free ? mask : 0), "secret bytes given back twice, or not owned");
    word ^= mask;
    first += bits;
  }
}

std::byte* SecretChunk::allocate(u64 count) {
  if (count > free_granules_ || count > run_limit_) return nullptr;
  const u64 first = find_run(count);
  if (first == granules_) {
    run_limit_ = count - 1;
    return nullptr;
  }
  flip(first, count, true);
  free_granules_ -= count;
  while (first_word_ < free_map_.size() && free_map_[first_word_] == 0) ++first_word_;
  return begin_ + first * kSecretGranule;
}

void SecretChunk::release(std::byte* data, u64 count) {
  const u64 first = static_cast<u64>(data - begin_) / kSecretGranule;
  LK_CHECK(first + count <= granules_);
  flip(first, count, false);
  free_granules_ += count;
  run_limit_ = free_granules_;  // the run may have joined its neighbours
  first_word_ = std::min(first_word_, first / kWordBits);
}

}  // namespace latchkey
