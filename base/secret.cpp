#include "base/secret.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/mutex.h"
#include "base/secret_chunk.h"
#include "base/thread_annotations.h"

namespace latchkey {
namespace {

// The lock limit of an ordinary user is 8 MiB for everything: a little at first, more in larger
// steps once it is clear that much is needed (the kernel bounds the number of mappings too).
constexpr u64 kSmallChunk = 256 * kKiB;
constexpr u64 kLargeChunk = kMiB;
constexpr u64 kLargeChunksFrom = 4 * kMiB;

// Chunks are multiples of it, so that a chunk's map has whole words.
constexpr u64 kChunkUnit = 4 * kKiB;
static_assert(kChunkUnit % (kSecretGranule * 64) == 0);

// A lock that is never held while another is taken.
class Arena {
 public:
  Result<std::byte*> allocate(u64 size) LK_EXCLUDES(mutex_);
  void release(std::byte* data, u64 size) LK_EXCLUDES(mutex_);
  Result<void> force_locked() LK_EXCLUDES(mutex_);
  ArenaStatus status() LK_EXCLUDES(mutex_);
  // The piece of this number in the order of mapping; empty past the last.
  MutableBytes piece(std::size_t index) LK_EXCLUDES(mutex_);

 private:
  Result<std::unique_ptr<SecretChunk>> first_chunk(u64 size) LK_REQUIRES(mutex_);
  Result<SecretChunk*> grow(u64 size) LK_REQUIRES(mutex_);
  SecretChunk& chunk_of(const std::byte* data) LK_REQUIRES(mutex_);

  Mutex mutex_;
  ArenaStatus status_ LK_GUARDED_BY(mutex_);
  bool force_locked_ LK_GUARDED_BY(mutex_) = false;
  std::vector<std::unique_ptr<SecretChunk>> chunks_ LK_GUARDED_BY(mutex_);  // in order of mapping
  std::vector<SecretChunk*> by_address_ LK_GUARDED_BY(mutex_);
};

// Never destroyed: Secrets with static lifetime give back their bytes after main().
Arena& arena() {
  static Arena& instance = *new Arena;
  return instance;
}

// Maps `size` bytes, or less down to `size_min` where the lock limit is near.
Result<std::unique_ptr<SecretChunk>> map_chunk(ArenaKind kind, u64 size, u64 size_min) {
  for (;;) {
    auto chunk = SecretChunk::create(kind, size);
    if (chunk || chunk.error().code != Errc::no_memory || size == size_min) return chunk;
    size = std::max(size_min, size / 2 / kChunkUnit * kChunkUnit);
  }
}

std::string_view reason_of(const Error& error) {
  switch (error.os_errno) {
    case ENOSYS:
      return "the kernel has no memfd_secret, or it is off (boot with secretmem.enable=1)";
    case EPERM:
    case EACCES:
      return "memfd_secret is forbidden here (seccomp, as in containers)";
    default:
      return "the kernel refuses memfd_secret";
  }
}

// Decides the kind, once. A lock limit that is too small for one kind is too small for the other,
// so it decides nothing and is the caller's no_memory.
Result<std::unique_ptr<SecretChunk>> Arena::first_chunk(u64 size) {
  if (!force_locked_) {
    const char* wish = std::getenv("LATCHKEY_SECRETS");
    const std::string_view kind = wish == nullptr ? "" : wish;
    if (kind == "locked") {
      force_locked_ = true;
      status_.reason = "LATCHKEY_SECRETS=locked";
    } else if (!kind.empty()) {
      return fail(Errc::invalid, "environment variable LATCHKEY_SECRETS is not \"locked\"");
    }
  }
  const u64 wanted = std::max(size, kSmallChunk);
  if (!force_locked_) {
    auto chunk = map_chunk(ArenaKind::memfd_secret, wanted, size);
    if (chunk) status_.kind = ArenaKind::memfd_secret;
    if (chunk || chunk.error().code != Errc::unavailable) return chunk;
    status_.reason = reason_of(chunk.error());
  }
  LK_TRY(auto chunk, map_chunk(ArenaKind::locked, wanted, size));
  status_.kind = ArenaKind::locked;
  return chunk;
}

Result<SecretChunk*> Arena::grow(u64 size) {
  size = (size + kChunkUnit - 1) / kChunkUnit * kChunkUnit;
  try {
    chunks_.reserve(chunks_.size() + 1);
    by_address_.reserve(by_address_.size() + 1);
  } catch (const std::bad_alloc&) {
    return fail(Errc::no_memory, "no memory for the arena's book-keeping");
  }
  const u64 usual = status_.bytes_mapped < kLargeChunksFrom ? kSmallChunk : kLargeChunk;
  auto chunk = status_.kind == ArenaKind::none
                   ? first_chunk(size)
                   : map_chunk(status_.kind, std::max(size, usual), size);
  if (!chunk) return std::unexpected(chunk.error());
  SecretChunk* added = chunk->get();
  const auto place =
      std::upper_bound(by_address_.begin(), by_address_.end(), added,
                       [](SecretChunk* a, SecretChunk* b) { return a->begin() < b->begin(); });
  by_address_.insert(place, added);
  chunks_.push_back(*std::move(chunk));
  status_.bytes_mapped += added->size();
  return added;
}

Result<std::byte*> Arena::allocate(u64 size) {
  const u64 count = granules_for(size);
  if (size > kGiB) return fail(Errc::no_memory, "more secret bytes than the arena ever has");
  Lock lock(mutex_);
  std::byte* data = nullptr;
  for (const auto& chunk : chunks_)
    if ((data = chunk->allocate(count)) != nullptr) break;
  if (data == nullptr) {
    LK_TRY(SecretChunk * chunk, grow(size));
    data = chunk->allocate(count);
  }
  LK_CHECK(data != nullptr);
  status_.bytes_used += count * kSecretGranule;
  return data;
}

SecretChunk& Arena::chunk_of(const std::byte* data) {
  auto after = std::upper_bound(by_address_.begin(), by_address_.end(), data,
                                [](const std::byte* a, SecretChunk* b) { return a < b->begin(); });
  LK_CHECK_MSG(after != by_address_.begin() && (*--after)->contains(data),
               "secret bytes that are not the arena's");
  return **after;
}

void Arena::release(std::byte* data, u64 size) {
  const u64 count = granules_for(size);
  wipe(data, size);  // outside the lock: they are still the caller's
  Lock lock(mutex_);
  chunk_of(data).release(data, count);
  status_.bytes_used -= count * kSecretGranule;
}

Result<void> Arena::force_locked() {
  Lock lock(mutex_);
  if (status_.kind == ArenaKind::memfd_secret)
    return fail(Errc::busy, "the arena lies in memfd_secret already");
  if (status_.kind == ArenaKind::none && !force_locked_) {
    force_locked_ = true;
    status_.reason = "the caller forces locked pages";
  }
  return {};
}

ArenaStatus Arena::status() {
  Lock lock(mutex_);
  return status_;
}

MutableBytes Arena::piece(std::size_t index) {
  Lock lock(mutex_);
  if (index >= chunks_.size()) return {};
  return {chunks_[index]->begin(), chunks_[index]->size()};
}

}  // namespace

Result<void> arena_force_locked() { return arena().force_locked(); }

ArenaStatus arena_status() { return arena().status(); }

void arena_visit(void (*fn)(void* context, MutableBytes piece), void* context) {
  for (std::size_t i = 0;; ++i) {
    const MutableBytes piece = arena().piece(i);
    if (piece.empty()) return;
    fn(context, piece);
  }
}

Result<SecretBytes> SecretBytes::create(std::size_t size) {
  if (size == 0) return fail(Errc::invalid, "a secret of no bytes");
  SecretBytes secret;
  LK_TRY(secret.data_, arena().allocate(size));
  secret.size_ = size;
  return secret;
}

SecretBytes::SecretBytes(SecretBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

SecretBytes& SecretBytes::operator=(SecretBytes&& other) noexcept {
  if (this == &other) return *this;
  reset();
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

SecretBytes::~SecretBytes() { reset(); }

void SecretBytes::reset() noexcept {
  if (data_ == nullptr) return;
  arena().release(data_, size_);
  data_ = nullptr;
  size_ = 0;
}

}  // namespace latchkey
