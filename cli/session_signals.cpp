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
constexpr u32 kPhasesMax = 4, kFramesMax = 3000;

using Frame = std::array<std::byte, kFrameBytes>;
struct Phase {
  std::unique_ptr<std::array<Frame, kFramesMax>> frames;  // set before the phase begins, and stays
  std::atomic<u32> seen{0};
};

std::atomic<u64> g_counted{0};
std::array<Phase, kPhasesMax> g_phases;
std::atomic<u32> g_begun{0};  // the last of them is the one of now
constinit thread_local volatile sig_atomic_t t_keeping = 0;

void on_signal(int, siginfo_t*, void* context) {
  g_counted.fetch_add(1, std::memory_order_relaxed);
  if (t_keeping == 0) return;
  Phase& phase = g_phases[g_begun.load(std::memory_order_acquire) - 1];
  const u32 index = phase.seen.fetch_add(1, std::memory_order_relaxed);
  if (index >= kFramesMax) return;
  // The kernel's struct _fpx_sw_bytes says how much it saved (asm/sigcontext.h).
  constexpr std::size_t kSaysAt = 464, kPlainBytes = 512;
  constexpr u32 kMagic = 0x46505853;
  const auto* saved = reinterpret_cast<const std::byte*>(
      static_cast<const ucontext_t*>(context)->uc_mcontext.fpregs);
  std::array<u32, 2> says;
  std::memcpy(says.data(), saved + kSaysAt, sizeof says);
  const std::size_t size = says[0] == kMagic ? says[1] : kPlainBytes;
  std::memcpy((*phase.frames)[index].data(), saved, std::min(size, kFrameBytes));
}

}  // namespace

bool begin_signal_phase() {
  const u32 begun = g_begun.load(std::memory_order_relaxed);
  if (begun == kPhasesMax) return false;
  g_phases[begun].frames = std::make_unique<std::array<Frame, kFramesMax>>();
  g_begun.store(begun + 1, std::memory_order_release);
  if (begun != 0) return true;
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
  LK_CHECK(::sigaction(SIGUSR1, &action, nullptr) == 0);
  return true;
}

std::vector<SignalPhase> signal_phases() {
  std::vector<SignalPhase> phases;
  for (u32 i = 0; i < g_begun.load(std::memory_order_relaxed); ++i) {
    const u32 seen = g_phases[i].seen.load(std::memory_order_relaxed);
    const u32 kept = std::min(seen, kFramesMax);
    phases.push_back({kept, seen - kept});
  }
  return phases;
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
