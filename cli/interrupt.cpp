#include "cli/interrupt.h"

#include <array>
#include <csignal>
#include <cstdio>

namespace latchkey::cli {

namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP};

volatile std::sig_atomic_t g_signal = 0;  // the one that came

void note_signal(int number) { g_signal = number; }

}  // namespace

InterruptGuard::InterruptGuard() {
  for (const int number : kSignals) {
    struct sigaction before{};
    // nohup and background jobs ignore some: so it stays.
    if (::sigaction(number, nullptr, &before) != 0 || before.sa_handler == SIG_IGN) continue;
    struct sigaction action{};
    action.sa_handler = note_signal;
    action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
    (void)::sigaction(number, &action, nullptr);
  }
}

InterruptGuard::~InterruptGuard() {
  if (g_signal == 0) return;
  std::fflush(nullptr);
  (void)std::signal(g_signal, SIG_DFL);
  (void)std::raise(g_signal);
}

bool interrupted() { return g_signal != 0; }

}  // namespace latchkey::cli
