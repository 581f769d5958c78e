#include "cli/session_signals.h"

#include <signal.h>

#include <atomic>

#include "base/check.h"

namespace latchkey::cli {

namespace {

constexpr std::size_t kStackBytes = 64 * kKiB;
std::atomic<u64> g_counted{0};

void count(int) { g_counted.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

void count_signals() {
  struct sigaction action{};
  action.sa_handler = count;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  LK_CHECK(::sigaction(SIGUSR1, &action, nullptr) == 0);
}

u64 signals_counted() { return g_counted.load(std::memory_order_relaxed); }

SignalStack::SignalStack() : memory_(new std::byte[kStackBytes]) {
  const stack_t stack{.ss_sp = memory_.get(), .ss_flags = 0, .ss_size = kStackBytes};
  LK_CHECK(::sigaltstack(&stack, nullptr) == 0);
}

SignalStack::~SignalStack() {
  const stack_t none{.ss_sp = nullptr, .ss_flags = SS_DISABLE, .ss_size = 0};
  LK_CHECK(::sigaltstack(&none, nullptr) == 0);
}

}  // namespace latchkey::cli
