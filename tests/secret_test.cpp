// base/secret.h: the arena of secrets. What must hold for both kinds runs here on the kind that
// this process got; what needs the other kind, or an arena not yet used, runs in a child of its
// own.

#include <gtest/gtest.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/env.h"
#include "base/hex.h"
#include "base/secret.h"

namespace latchkey {
namespace {

SecretBytes make(std::size_t size) {
  auto secret = SecretBytes::create(size);
  EXPECT_TRUE(secret.has_value()) << size;
  return secret ? *std::move(secret) : SecretBytes();
}

bool all_are(Bytes bytes, std::byte value) {
  return std::all_of(bytes.begin(), bytes.end(), [&](std::byte byte) { return byte == value; });
}

void fill(SecretBytes& secret, u8 value) {
  std::memset(secret.bytes().data(), value, secret.bytes().size());
}

// How often `needle` lies in the arena.
u64 count_in_arena(Bytes needle) {
  struct Search {
    Bytes needle;
    u64 found = 0;
  } search{needle};
  arena_visit(
      [](void* context, MutableBytes piece) {
        auto& s = *static_cast<Search*>(context);
        auto at = piece.begin();
        while ((at = std::search(at, piece.end(), s.needle.begin(), s.needle.end())) !=
               piece.end()) {
          ++s.found;
          ++at;
        }
      },
      &search);
  return search.found;
}

bool kernel_has_memfd_secret() {
  const long fd = syscall(SYS_memfd_secret, 0);
  if (fd >= 0) close(static_cast<int>(fd));
  return fd >= 0;
}

// The two ways of reading a process's memory from outside, turned on ourselves. True if `size`
// bytes came.
bool readable_by_vm_readv(const void* data, std::size_t size) {
  std::vector<std::byte> copy(size);
  const iovec local{copy.data(), size};
  const iovec remote{const_cast<void*>(data), size};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(size);
}
bool readable_by_proc_mem(const void* data, std::size_t size) {
  const int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  std::vector<std::byte> copy(size);
  const ssize_t count = pread(fd, copy.data(), size, reinterpret_cast<off_t>(data));
  close(fd);
  return count == static_cast<ssize_t>(size);
}

// The VmFlags line of the mapping that holds `data`; see proc(5).
std::string mapping_flags(const void* data) {
  std::ifstream smaps("/proc/self/smaps");
  const auto address = reinterpret_cast<unsigned long>(data);
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long first = 0;
    unsigned long last = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2)
      inside = address >= first && address < last;
    else if (inside && line.starts_with("VmFlags:"))
      return line + " ";
  }
  return {};
}

#define LK_DIE_UNLESS(condition)                                                   \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      _exit(1);                                                                    \
    }                                                                              \
  } while (false)

// Children start anew (threadsafe), so their arena is untouched.
class SecretDeathTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

// ---- one secret

TEST(Secret, TheKindIsTheBestThatTheKernelHas) {
  const SecretBytes secret = make(1);
  const ArenaStatus status = arena_status();
  const char* wish = std::getenv("LATCHKEY_SECRETS");
  if (wish != nullptr && std::string_view(wish) == "locked") {
    EXPECT_EQ(status.kind, ArenaKind::locked);
    EXPECT_EQ(status.reason, "LATCHKEY_SECRETS=locked");
  } else if (kernel_has_memfd_secret()) {
    EXPECT_EQ(status.kind, ArenaKind::memfd_secret);
    EXPECT_EQ(status.reason, "");
  } else {
    EXPECT_EQ(status.kind, ArenaKind::locked);
    EXPECT_NE(status.reason, "");
  }
}

TEST(Secret, IsZeroAlignedAndAsLargeAsAsked) {
  for (const std::size_t size : {1, 63, 64, 65, 4096, 5000}) {
    const SecretBytes secret = make(size);
    EXPECT_EQ(secret.bytes().size(), size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(secret.bytes().data()) % 64, 0U);
    EXPECT_TRUE(all_are(secret.bytes(), std::byte{0}));
    EXPECT_FALSE(secret.empty());
  }
}

TEST(Secret, MovesAndLeavesNothingBehind) {
  SecretBytes first = make(100);
  fill(first, 0x11);
  const std::byte* data = first.bytes().data();
  SecretBytes second(std::move(first));
  EXPECT_TRUE(first.empty());  // NOLINT: the state after the move is the contract
  EXPECT_EQ(first.bytes().size(), 0U);
  EXPECT_EQ(second.bytes().data(), data);
  const u64 used = arena_status().bytes_used;
  SecretBytes third = make(1000);
  third = std::move(second);  // gives back the thousand bytes
  EXPECT_EQ(arena_status().bytes_used, used);
  EXPECT_EQ(third.bytes().data(), data);
  EXPECT_TRUE(all_are(third.bytes(), std::byte{0x11}));
  SecretBytes& alias = third;
  third = std::move(alias);
  EXPECT_EQ(third.bytes().data(), data);
  third.reset();
  third.reset();
  EXPECT_TRUE(third.empty());
}

TEST(Secret, IsWipedWhenGivenBack) {
  SecretBytes secret = make(777);
  fill(secret, 0xa5);
  const Bytes view = secret.bytes();
  ASSERT_TRUE(all_are(view, std::byte{0xa5}));
  secret.reset();
  EXPECT_TRUE(all_are(view, std::byte{0}));  // still mapped: the arena keeps its pages
}

TEST(Secret, LeavesNoCopyInTheArena) {
  std::vector<std::byte> needle(32);
  system_env().random(needle);
  EXPECT_EQ(count_in_arena(needle), 0U);
  {
    SecretBytes secret = make(32);
    std::copy(needle.begin(), needle.end(), secret.bytes().begin());
    EXPECT_EQ(count_in_arena(needle), 1U);
    SecretBytes moved(std::move(secret));
    EXPECT_EQ(count_in_arena(needle), 1U);
  }
  EXPECT_EQ(count_in_arena(needle), 0U);
}

TEST(Secret, HoldsATypedValue) {
  struct State {
    u64 words[9];
  };
  auto state = Secret<State>::create();
  ASSERT_TRUE(state.has_value());
  EXPECT_EQ((*state)->words[8], 0U);
  (*state)->words[8] = 42;
  Secret<State> moved = *std::move(state);
  EXPECT_EQ((*moved).words[8], 42U);
  moved.reset();
  EXPECT_TRUE(moved.empty());
}

// ---- the arena

TEST(Arena, LargePiecesFitAndAreUsedAgain) {
  const u64 used = arena_status().bytes_used;
  SecretBytes table = make(800 * kKiB);
  SecretBytes larger = make(2 * kMiB + 1);
  ASSERT_FALSE(table.empty() || larger.empty());
  fill(table, 0x77);
  fill(larger, 0x88);
  EXPECT_TRUE(all_are(table.bytes(), std::byte{0x77}));
  const u64 mapped = arena_status().bytes_mapped;
  table.reset();
  larger.reset();
  EXPECT_EQ(arena_status().bytes_used, used);
  for (int i = 0; i < 3; ++i) {
    const SecretBytes again = make(2 * kMiB + 1);
    EXPECT_TRUE(all_are(again.bytes(), std::byte{0}));
  }
  EXPECT_EQ(arena_status().bytes_mapped, mapped);
}

TEST(Arena, AbsurdSizesAreErrors) {
  EXPECT_EQ(SecretBytes::create(0).error().code, Errc::invalid);
  for (const u64 size : {kGiB + 1, u64{1} << 40, ~u64{0}, ~u64{0} - 63})
    EXPECT_EQ(SecretBytes::create(size).error().code, Errc::no_memory) << size;
}

struct Owned {
  SecretBytes secret;
  u8 tag = 0;
};

// One random step; false when a byte is not what its owner wrote, or not zero at first.
bool step(std::mt19937& random, std::vector<Owned>& owned, u64 owned_max) {
  if (owned.size() < owned_max && random() % 2 == 0) {
    const u32 size = 1 + random() % (random() % 8 == 0 ? 20'000 : 400);
    auto secret = SecretBytes::create(size);
    if (!secret || !all_are(secret->bytes(), std::byte{0})) return false;
    owned.push_back({*std::move(secret), static_cast<u8>(1 + random() % 255)});
    fill(owned.back().secret, owned.back().tag);
  } else if (!owned.empty()) {
    std::swap(owned[random() % owned.size()], owned.back());
    if (!all_are(owned.back().secret.bytes(), static_cast<std::byte>(owned.back().tag)))
      return false;
    owned.pop_back();
  }
  return true;
}

TEST(Arena, RandomUseByManyThreadsNeverOverlaps) {
  const u32 seed = std::random_device{}();
  SCOPED_TRACE(seed);
  const u64 used = arena_status().bytes_used;
  std::vector<std::thread> threads;
  std::vector<int> failed_at(3, -1);
  for (u32 thread = 0; thread < 3; ++thread)
    threads.emplace_back([&failed_at, seed, thread] {
      std::mt19937 random(seed + thread);
      std::vector<Owned> owned;
      for (int i = 0; i < 20'000 && failed_at[thread] < 0; ++i)
        if (!step(random, owned, 300)) failed_at[thread] = i;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed_at, std::vector<int>(3, -1));
  EXPECT_EQ(arena_status().bytes_used, used);
  // All came back together: what the small ones were carved from is one piece again.
  const u64 mapped = arena_status().bytes_mapped;
  const SecretBytes whole = make(200 * kKiB);
  EXPECT_EQ(arena_status().bytes_mapped, mapped);
}

TEST(Arena, MemfdSecretCannotBeReadFromOutside) {
  const SecretBytes secret = make(64);
  if (arena_status().kind != ArenaKind::memfd_secret) GTEST_SKIP() << arena_status().reason;
  const std::vector<std::byte> plain(64);
  ASSERT_TRUE(readable_by_vm_readv(plain.data(), 64));
  ASSERT_TRUE(readable_by_proc_mem(plain.data(), 64));
  EXPECT_FALSE(readable_by_vm_readv(secret.bytes().data(), 64));
  EXPECT_FALSE(readable_by_proc_mem(secret.bytes().data(), 64));
}

TEST(Arena, StaysOutOfDumpsForksAndSwap) {
  const SecretBytes secret = make(64);
  const std::string flags = mapping_flags(secret.bytes().data());
  const bool memfd = arena_status().kind == ArenaKind::memfd_secret;
  // Pages of memfd_secret are never swapped, whether the mapping is marked (6.1 does not) or not.
  EXPECT_TRUE(memfd || flags.find(" lo ") != std::string::npos) << flags;      // locked
  EXPECT_NE(flags.find(" dd "), std::string::npos) << flags;                   // not dumped
  EXPECT_NE(flags.find(memfd ? " dc " : " wf "), std::string::npos) << flags;  // not copied, wiped
}

// What a forked child of this process finds at `data`: the signal that it dies of, or 0 if all
// `size` bytes are zero there, or -1.
int probe_in_fork(const std::byte* data, std::size_t size) {
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGSEGV, SIG_DFL);  // a sanitizer's own handler would turn the signal into a report
    _exit(all_are({data, size}, std::byte{0}) ? 0 : 1);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) return -1;
  if (WIFSIGNALED(status)) return WTERMSIG(status);
  return WEXITSTATUS(status) == 0 ? 0 : -1;
}

TEST(Arena, AForkedChildHasNoSecrets) {
  SecretBytes secret = make(64);
  fill(secret, 0x5c);
  const int expected = arena_status().kind == ArenaKind::memfd_secret ? SIGSEGV : 0;
  EXPECT_EQ(probe_in_fork(secret.bytes().data(), 64), expected);
  EXPECT_TRUE(all_are(secret.bytes(), std::byte{0x5c}));
}

// ---- the other kind, and an arena not yet used

void check_locked_arena(std::string_view reason) {
  auto created = SecretBytes::create(300 * kKiB);
  LK_DIE_UNLESS(created.has_value());
  SecretBytes secret = *std::move(created);
  const ArenaStatus status = arena_status();
  LK_DIE_UNLESS(status.kind == ArenaKind::locked);
  LK_DIE_UNLESS(status.reason == reason);
  LK_DIE_UNLESS(all_are(secret.bytes(), std::byte{0}));
  fill(secret, 0xa5);
  const Bytes view = secret.bytes();
  // Readable from outside, unlike the other kind: the external scan relies on it.
  LK_DIE_UNLESS(readable_by_vm_readv(view.data(), view.size()));
  const std::string flags = mapping_flags(view.data());
  for (const char* flag : {" lo ", " dd ", " wf "})
    LK_DIE_UNLESS(flags.find(flag) != std::string::npos);
  LK_DIE_UNLESS(probe_in_fork(view.data(), view.size()) == 0);
  secret.reset();
  LK_DIE_UNLESS(all_are(view, std::byte{0}));
  LK_DIE_UNLESS(arena_status().bytes_used == 0);
}

TEST_F(SecretDeathTest, TheEnvironmentForcesLockedPages) {
  EXPECT_EXIT(
      {
        setenv("LATCHKEY_SECRETS", "locked", 1);
        check_locked_arena("LATCHKEY_SECRETS=locked");
        _exit(0);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(SecretDeathTest, TheCallerForcesLockedPages) {
  EXPECT_EXIT(
      {
        unsetenv("LATCHKEY_SECRETS");
        LK_DIE_UNLESS(arena_status().kind == ArenaKind::none);
        LK_DIE_UNLESS(arena_force_locked().has_value());
        LK_DIE_UNLESS(arena_force_locked().has_value());
        check_locked_arena("the caller forces locked pages");
        LK_DIE_UNLESS(arena_force_locked().has_value());
        _exit(0);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(SecretDeathTest, ForcingComesTooLateOnceTheArenaIsUsed) {
  if (!kernel_has_memfd_secret()) GTEST_SKIP() << "the kernel has no memfd_secret";
  EXPECT_EXIT(
      {
        unsetenv("LATCHKEY_SECRETS");
        LK_DIE_UNLESS(SecretBytes::create(1).has_value());
        const auto forced = arena_force_locked();
        LK_DIE_UNLESS(!forced.has_value() && forced.error().code == Errc::busy);
        LK_DIE_UNLESS(arena_status().kind == ArenaKind::memfd_secret);
        _exit(0);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(SecretDeathTest, AMisspeltWishIsAnError) {
  EXPECT_EXIT(
      {
        setenv("LATCHKEY_SECRETS", "lokced", 1);
        const auto secret = SecretBytes::create(1);
        LK_DIE_UNLESS(!secret.has_value() && secret.error().code == Errc::invalid);
        _exit(0);
      },
      testing::ExitedWithCode(0), "");
}

// An ordinary user's lock limit of `limit` bytes: root is bound by none.
void become_limited(u64 limit) {
  const rlimit memory{limit, limit};
  LK_DIE_UNLESS(setrlimit(RLIMIT_MEMLOCK, &memory) == 0);
  if (geteuid() == 0) LK_DIE_UNLESS(setresuid(65534, 65534, 65534) == 0);
}

// Linux 6.1 lets a process map more of it than its lock limit, as was seen; later ones do not.
bool kernel_counts_memfd_secret() {
  const pid_t child = fork();
  if (child == 0) {
    become_limited(0);
    const long fd = syscall(SYS_memfd_secret, 0);
    const bool ready = fd >= 0 && ftruncate(static_cast<int>(fd), 4096) == 0;
    LK_DIE_UNLESS(ready);
    _exit(mmap(nullptr, 4096, PROT_READ, MAP_SHARED, static_cast<int>(fd), 0) == MAP_FAILED ? 1
                                                                                            : 0);
  }
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

// Takes all that the limit allows, to the byte, and no more.
void check_exhaustion(u64 limit) {
  become_limited(limit);
  std::vector<SecretBytes> held;
  for (;;) {
    auto secret = SecretBytes::create(1024);
    if (!secret) {
      LK_DIE_UNLESS(secret.error().code == Errc::no_memory);
      break;
    }
    fill(*secret, 0x3c);
    held.push_back(*std::move(secret));
    LK_DIE_UNLESS(held.size() * 1024 <= limit);
  }
  const ArenaStatus status = arena_status();
  LK_DIE_UNLESS(status.bytes_mapped <= limit && status.bytes_used == held.size() * 1024);
  LK_DIE_UNLESS(held.size() * 1024 == limit);
  // Refused is not broken: the others hold, and what is given back is to be had again.
  LK_DIE_UNLESS(SecretBytes::create(8 * kMiB).error().code == Errc::no_memory);
  for (const SecretBytes& secret : held) LK_DIE_UNLESS(all_are(secret.bytes(), std::byte{0x3c}));
  held.pop_back();
  const auto again = SecretBytes::create(1024);
  LK_DIE_UNLESS(again.has_value() && all_are(again->bytes(), std::byte{0}));
  _exit(0);
}

// Not a multiple of a chunk: the last one is smaller.
constexpr u64 kLockLimit = 600 * kKiB;

TEST_F(SecretDeathTest, TheLockLimitIsAnErrorAndNoFallback) {
  if (!kernel_has_memfd_secret()) GTEST_SKIP() << "the kernel has no memfd_secret";
  if (!kernel_counts_memfd_secret()) GTEST_SKIP() << "the kernel does not count memfd_secret";
  EXPECT_EXIT(
      {
        unsetenv("LATCHKEY_SECRETS");
        LK_DIE_UNLESS(SecretBytes::create(1).has_value());
        LK_DIE_UNLESS(arena_status().kind == ArenaKind::memfd_secret);
        check_exhaustion(kLockLimit);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(SecretDeathTest, TheLockLimitBindsLockedPagesToo) {
  EXPECT_EXIT(
      {
        setenv("LATCHKEY_SECRETS", "locked", 1);
        check_exhaustion(kLockLimit);
      },
      testing::ExitedWithCode(0), "");
}

TEST_F(SecretDeathTest, NoLockLimitAtAllDecidesNothing) {
  if (kernel_has_memfd_secret() && !kernel_counts_memfd_secret())
    GTEST_SKIP() << "the kernel does not count memfd_secret";
  EXPECT_EXIT(
      {
        unsetenv("LATCHKEY_SECRETS");
        become_limited(0);
        LK_DIE_UNLESS(SecretBytes::create(1).error().code == Errc::no_memory);
        LK_DIE_UNLESS(arena_status().bytes_mapped == 0);
        _exit(0);
      },
      testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace latchkey
