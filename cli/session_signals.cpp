#include "cli/session_signals.h"

#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "base/check.h"

namespace latchkey::cli {

namespace {

constexpr std::size_t kStackBytes = 64 * kKiB;
constexpr std::size_t kFrameBytes = 4096;
constexpr u32 kFramesMax = 6000;

std::atomic<u64> g_counted{0};
std::atomic<u32> g_kept{0};
std::array<std::array<std::byte, kFrameBytes>, kFramesMax> g_frames;
constinit thread_local volatile sig_atomic_t t_keeping = 0;

void on_signal(int, siginfo_t*, void* context) {
  g_counted.fetch_add(1, std::memory_order_relaxed);
  if (t_keeping == 0) return;
  const u32 index = g_kept.fetch_add(1, std::memory_order_relaxed);
  if (index >= kFramesMax) return;
  // The kernel's struct _fpx_sw_bytes says how much it saved (asm/sigcontext.h).
  constexpr std::size_t kSaysAt = 464, kPlainBytes = 512;
  constexpr u32 kMagic = 0x46505853;
  const auto* saved = reinterpret_cast<const std::byte*>(
      static_cast<const ucontext_t*>(context)->uc_mcontext.fpregs);
  std::array<u32, 2> says;
  std::memcpy(says.data(), saved + kSaysAt, sizeof says);
  const std::size_t size = says[0] == kMagic ? says[1] : kPlainBytes;
  std::memcpy(g_frames[index].data(), saved, std::min(size, kFrameBytes));
}

}  // namespace

void keep_signals() {
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
  LK_CHECK(::sigaction(SIGUSR1, &action, nullptr) == 0);
}

u64 signals_counted() { return g_counted.load(std::memory_order_relaxed); }

KeptFrames::KeptFrames() { t_keeping = 1; }

KeptFrames::~KeptFrames() { t_keeping = 0; }

SignalStack::SignalStack() : memory_(new std::byte[kStackBytes]) {
  const stack_t stack{.ss_sp = memory_.get(), .ss_flags = 0, .ss_size = kStackBytes};
  LK_CHECK(::sigaltstack(&stack, nullptr) == 0);
}

SignalStack::~SignalStack() {
  const stack_t none{.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = 0};
  LK_CHECK(::sigaltstack(&none, nullptr) == 0);
}

}  // namespace latchkey::cli
