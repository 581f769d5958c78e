#pragma once
// Secrets live in one arena and nowhere else: memfd_secret pages where the kernel has them, else
// locked pages that are left out of core dumps and wiped in a forked child.
//
// Invariants
//   S1  A Secret owns its bytes; it moves, it is never copied. A moved-from Secret is empty.
//   S2  Bytes given back are zero before anyone else can get them.
//   S3  The arena never gives memory back to the kernel while the process lives without wiping it.
//
// The arena is thread-safe; one Secret is not. A forked child has no Secrets: it must not touch
// those it seems to have inherited (memfd_secret is not mapped there, `locked` is zero). Source of
// the rules: memfd_secret(2), madvise(2).

#include <cstddef>
#include <string_view>

#include "base/result.h"
#include "base/types.h"

namespace latchkey {

enum class ArenaKind : u8 {
  none,          // nothing has been asked of the arena yet
  memfd_secret,  // invisible to /proc/PID/mem, ptrace and the kernel's direct map
  locked,        // mlock + MADV_DONTDUMP + MADV_WIPEONFORK: root can still read it
};

struct ArenaStatus {
  ArenaKind kind = ArenaKind::none;
  std::string_view reason;  // why memfd_secret is not used; empty if it is
  u64 bytes_mapped = 0;
  u64 bytes_used = 0;
};

// Forces `locked`. Called before the first Secret is made: Errc::busy once the arena lies in
// memfd_secret. The environment variable LATCHKEY_SECRETS=locked does the same for a whole process.
Result<void> arena_force_locked();
ArenaStatus arena_status();

// Calls fn(bytes) for every mapped piece of the arena: for the process's own scan of its secrets.
// fn may make Secrets; no lock is held while it runs.
void arena_visit(void (*fn)(void* context, MutableBytes piece), void* context);

// Zeroes so that no compiler drops it.
void wipe(void* data, std::size_t size) noexcept;
inline void wipe(MutableBytes bytes) noexcept { wipe(bytes.data(), bytes.size()); }

// Overwrites the stack below the caller and clears all vector registers. Called at the end of each
// batch of cryptography, because spills and registers hold round keys. Needs 9 KiB of stack.
void burn_stack_and_registers() noexcept;

// A run of bytes in the arena, 64-byte aligned.
class SecretBytes {
 public:
  // Errc::no_memory when the lock limit or memory is exhausted, Errc::invalid for size 0. The bytes
  // are zero. What cannot be had as memfd_secret once the arena lies there is not looked for
  // elsewhere.
  static Result<SecretBytes> create(std::size_t size);

  SecretBytes() = default;
  SecretBytes(SecretBytes&& other) noexcept;
  SecretBytes& operator=(SecretBytes&& other) noexcept;
  SecretBytes(const SecretBytes&) = delete;
  SecretBytes& operator=(const SecretBytes&) = delete;
  ~SecretBytes();

  void reset() noexcept;  // wipes and gives back
  bool empty() const { return data_ == nullptr; }
  MutableBytes bytes() { return {data_, size_}; }
  Bytes bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// One T in the arena: for key schedules and hash states. T is trivially copyable and holds only
// bytes that may be zeroed.
template <class T>
class Secret {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 64);

 public:
  static Result<Secret> create() {
    LK_TRY(SecretBytes bytes, SecretBytes::create(sizeof(T)));
    Secret secret;
    secret.bytes_ = std::move(bytes);
    return secret;
  }
  bool empty() const { return bytes_.empty(); }
  void reset() noexcept { bytes_.reset(); }
  T& operator*() { return *reinterpret_cast<T*>(bytes_.bytes().data()); }
  const T& operator*() const { return *reinterpret_cast<const T*>(bytes_.bytes().data()); }
  T* operator->() { return &**this; }
  const T* operator->() const { return &**this; }

 private:
  SecretBytes bytes_;
};

}  // namespace latchkey
