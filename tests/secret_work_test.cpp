// Goal: no signal handler's frame holds a key. While a thread works with secrets its signals wait,
// and when they come the registers are burnt.
// Method: a handler that keeps a copy of every frame the kernel made for it, on an alternative
// stack; a thread that sends signals to all others as fast as it can while they derive, seal and
// open. Needles (states, keys, round keys) are looked for in all frames. The same storm over the
// same ciphers without a SecretWork shows that the frames are where keys would be.

#include "base/secret_work.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <unordered_set>

#include "crypto/names.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kFramesAreReal = false;  // ThreadSanitizer calls handlers later, from its own code
#else
constexpr bool kFramesAreReal = true;
#endif

std::string blocked_signals() {
  std::ifstream status("/proc/thread-self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("SigBlk:")) return line.substr(line.find_last_of('\t') + 1);
  return "?";
}
// All but SIGKILL and SIGSTOP, which nobody can block.
constexpr const char* kAllSignals = "fffffffffffbfeff";

std::atomic<u32> g_seen{0};
void count_signal(int) { g_seen.fetch_add(1, std::memory_order_relaxed); }

TEST(SecretWorkTest, signals_wait_until_the_outermost_one_ends) {
  struct sigaction action{}, before{};
  action.sa_handler = count_signal;
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  const std::string mask = blocked_signals();
  ASSERT_NE(mask, kAllSignals);
  g_seen = 0;
  {
    const SecretWork outer;
    {
      const SecretWork inner;
      EXPECT_EQ(blocked_signals(), kAllSignals);
      ::raise(SIGUSR1);
    }
    EXPECT_EQ(blocked_signals(), kAllSignals);
    EXPECT_EQ(g_seen, 0U);
  }
  EXPECT_EQ(blocked_signals(), mask);
  EXPECT_EQ(g_seen, 1U);
  ::sigaction(SIGUSR1, &before, nullptr);
}

TEST(SecretWorkTest, what_the_caller_blocked_stays_blocked) {
  std::thread([] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &set, nullptr), 0);
    const std::string mask = blocked_signals();
    {
      const SecretWork work;
    }
    EXPECT_EQ(blocked_signals(), mask);
  }).join();
}

// ---- frames

constexpr std::size_t kFrameWords = 480;  // general registers, x87, SSE, AVX, AVX-512
constexpr u32 kFramesMax = 6000;
constexpr u32 kEnough = 150;
constexpr u64 kStormNsMax = 200'000'000'000;  // where none come it fails
struct Frames {
  std::atomic<u32> count{0};  // of signals; those beyond kFramesMax are not kept
  std::vector<std::array<u64, kFrameWords>> kept{kFramesMax};
};
Frames* g_frames = nullptr;

// Until there are so many frames; a failure where they do not come.
class Wanted {
 public:
  Wanted(const Frames& frames, u32 count) : frames_(frames), count_(count) {}
  bool more() const {
    if (frames_.count >= count_) return false;
    const bool in_time = system_env().monotonic_ns() - begin_ < kStormNsMax;
    EXPECT_TRUE(in_time) << frames_.count << " of " << count_ << " signals came";
    return in_time;
  }

 private:
  const Frames& frames_;
  u32 count_;
  u64 begin_ = system_env().monotonic_ns();
};

// The kernel's frame is no variable of anybody's: AddressSanitizer knows nothing of it.
__attribute__((no_sanitize("address"))) void copy(const void* from, void* to, std::size_t size) {
  for (std::size_t i = 0; i < size / 8; ++i)
    static_cast<u64*>(to)[i] = static_cast<const volatile u64*>(from)[i];
}

__attribute__((no_sanitize("address"))) void keep_frame(int, siginfo_t*, void* context) {
  const u32 index = g_frames->count.fetch_add(1, std::memory_order_relaxed);
  if (index >= kFramesMax) return;
  std::byte* slot = reinterpret_cast<std::byte*>(g_frames->kept[index].data());
  const auto* user = static_cast<const ucontext_t*>(context);
  copy(user->uc_mcontext.gregs, slot, sizeof user->uc_mcontext.gregs);
  // The kernel's struct _fpx_sw_bytes says how much it saved (asm/sigcontext.h).
  const auto* saved = reinterpret_cast<const std::byte*>(user->uc_mcontext.fpregs);
  constexpr u64 kMagic = 0x46505853, kMagicAt = 464, kPlainBytes = 512;
  u64 size;
  copy(saved + kMagicAt, &size, 8);
  size = (size & 0xffffffff) == kMagic ? size >> 32 : kPlainBytes;
  const std::size_t room = sizeof(g_frames->kept[index]) - sizeof user->uc_mcontext.gregs;
  copy(saved, slot + sizeof user->uc_mcontext.gregs, std::min<std::size_t>(size, room));
}

class AlternativeStack {
 public:
  AlternativeStack() : memory_(64 * kKiB) {
    const stack_t stack{.ss_sp = memory_.data(), .ss_flags = 0, .ss_size = memory_.size()};
    EXPECT_EQ(::sigaltstack(&stack, &before_), 0);
  }
  ~AlternativeStack() { ::sigaltstack(&before_, nullptr); }

 private:
  std::vector<std::byte> memory_;
  stack_t before_{};
};

// Signals for every thread but its own, until it dies.
class Storm {
 public:
  explicit Storm(Frames& frames) {
    g_frames = &frames;
    struct sigaction action{};
    action.sa_sigaction = keep_frame;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    EXPECT_EQ(::sigaction(SIGUSR2, &action, nullptr), 0);
    thread_ = std::thread([this] { send(); });
  }
  ~Storm() {
    stopping_ = true;
    thread_.join();
    ::signal(SIGUSR2, SIG_IGN);  // some are still on their way
  }

 private:
  void send() {
    const long own = ::syscall(SYS_gettid), process = ::getpid();
    while (!stopping_) {
      for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
        const long task = std::stol(entry.path().filename());
        if (task != own) ::syscall(SYS_tgkill, process, task, SIGUSR2);
      }
      std::this_thread::yield();
    }
  }
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

// Eight bytes each: what is in a register lies at a multiple of eight in its frame.
class Needles {
 public:
  void add(Bytes secret) {
    for (std::size_t at = 0; at + 8 <= secret.size(); at += 8) {
      u64 word;
      std::memcpy(&word, secret.data() + at, 8);
      words_.insert(word);
    }
  }
  void add_key(const crypto::HkdfState& state, const crypto::Nonce& nonce) {
    auto key = Secret<crypto::XtsKey>::create();
    ASSERT_TRUE(key);
    const SecretWork work;
    crypto::derive_extent_key(state, nonce, **key);
    for (const Bytes schedule :
         {Bytes((*key)->encrypt), Bytes((*key)->decrypt), Bytes((*key)->tweak)})
      add(schedule);
    words_.erase(0);  // the schedules of a kernel that has none
  }
  u32 frames_with_one(const Frames& frames) const {
    u32 found = 0;
    for (u32 i = 0; i < std::min(frames.count.load(), kFramesMax); ++i)
      found += std::ranges::any_of(frames.kept[i], [&](u64 word) { return words_.contains(word); });
    return found;
  }

 private:
  std::unordered_set<u64> words_;
};

struct Keys {
  Keys() : state(*Secret<crypto::HkdfState>::create()), key(*Secret<crypto::XtsKey>::create()) {
    const SecretBytes master = master_key(9);
    crypto::hkdf_extract(master.bytes(), *state);
    system_env().random(nonce.bytes);
    needles.add(std::as_bytes(std::span(&*state, 1)));
    needles.add_key(*state, nonce);
  }
  // The portable kernel and OpenSSL's keep theirs inside OpenSSL.
  static bool has_no_schedules() {
    return crypto::xts_kernel() == "portable" || crypto::xts_kernel() == "openssl";
  }
  // One batch: a derivation, a seal, an open.
  void work(std::vector<std::byte>& data) {
    crypto::derive_extent_key(*state, nonce, *key);
    crypto::xts_seal(*key, {}, data, data);
    crypto::xts_open(*key, {}, data, data);
  }
  Secret<crypto::HkdfState> state;
  Secret<crypto::XtsKey> key;
  crypto::Nonce nonce;
  Needles needles;
};

class SignalFrames : public testing::Test {
 protected:
  void SetUp() override {
    if (!kFramesAreReal) GTEST_SKIP() << "under ThreadSanitizer";
  }
  void work_in_a_storm(bool guarded) {
    std::vector<std::byte> data(16 * crypto::kUnitBytes);
    const AlternativeStack stack;
    const Storm storm(frames_);
    for (const Wanted wanted(frames_, kEnough); wanted.more();) {
      std::optional<SecretWork> work;
      if (guarded) work.emplace();
      keys_.work(data);
    }
  }
  Frames frames_;
  Keys keys_;
};

TEST_F(SignalFrames, of_work_with_secrets_hold_none) {
  work_in_a_storm(true);
  EXPECT_EQ(keys_.needles.frames_with_one(frames_), 0U) << "of " << frames_.count;
}

// The scan is not blind: this is what SecretWork prevents.
TEST_F(SignalFrames, of_unguarded_work_hold_round_keys) {
  if (keys_.has_no_schedules()) GTEST_SKIP() << crypto::xts_kernel() << " has none of ours";
  work_in_a_storm(false);
  const u32 found = keys_.needles.frames_with_one(frames_);
  EXPECT_GT(found, 0U) << "of " << frames_.count;
  RecordProperty("frames_with_a_key", static_cast<int>(found));
}

TEST_F(SignalFrames, of_names_hold_no_name_key) {
  auto key = Secret<crypto::NameKey>::create();
  ASSERT_TRUE(key);
  crypto::derive_name_key(*keys_.state, keys_.nonce, **key);
  keys_.needles.add((*key)->encrypt);
  keys_.needles.add((*key)->decrypt);
  {
    const AlternativeStack stack;
    const Storm storm(frames_);
    for (const Wanted wanted(frames_, kEnough); wanted.more();) {
      crypto::derive_name_key(*keys_.state, keys_.nonce, **key);
      const std::string stored = crypto::encrypt_name(**key, "a name of some length");
      EXPECT_TRUE(crypto::decrypt_name(**key, stored));
    }
  }
  EXPECT_EQ(keys_.needles.frames_with_one(frames_), 0U) << "of " << frames_.count;
}

class SignalFramesOfAVolume : public VolumeTest {};

TEST_F(SignalFramesOfAVolume, hold_no_key_whoever_seals_or_reads) {
  if (!kFramesAreReal) GTEST_SKIP() << "under ThreadSanitizer";
  vault();
  Frames frames;
  Needles needles;
  std::array<volume::HandleId, 3> handles;
  std::array<std::vector<crypto::Nonce>, 3> nonces;  // of all extents that there ever were
  for (std::size_t i = 0; i < 3; ++i) handles[i] = open("/vault/file" + std::to_string(i));
  {
    const Storm storm(frames);
    const Wanted wanted(frames, 3 * kEnough);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < 3; ++i)
      threads.emplace_back([&, i, handle = handles[i]] {
        const AlternativeStack stack;
        std::vector<std::byte> data(256 * kKiB, std::byte{0x5a});
        do {
          EXPECT_TRUE(volume_->write(handle, 0, data));
          EXPECT_TRUE(volume_->fsync(handle));
          EXPECT_EQ(volume_->read(handle, 0, data).value_or(0), data.size());
          EXPECT_TRUE(volume_->read_directory(*resolve(*volume_, "/vault")));
          const auto rows = volume_->map(handle);
          for (const volume::MapRow& row : *rows) nonces[i].push_back(row.nonce);
        } while (wanted.more());
      });
    for (std::thread& thread : threads) thread.join();
  }
  Secret<crypto::HkdfState> state = *Secret<crypto::HkdfState>::create();
  crypto::hkdf_extract(master_key(7).bytes(), *state);
  needles.add(std::as_bytes(std::span(&*state, 1)));
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_FALSE(nonces[i].empty());
    for (const crypto::Nonce& nonce : nonces[i]) needles.add_key(*state, nonce);
    close(handles[i]);
  }
  EXPECT_EQ(needles.frames_with_one(frames), 0U) << "of " << frames.count;
}

}  // namespace
}  // namespace latchkey::tests
