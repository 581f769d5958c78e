#include "tests/sim/fiber.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/no_wait.h"
#include "base/secret_work.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LK_SIM_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define LK_SIM_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define LK_SIM_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define LK_SIM_TSAN 1
#endif

#ifdef LK_SIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef LK_SIM_TSAN
#include <sanitizer/tsan_interface.h>
#endif

// Saves what a call preserves on the stack that is left, and takes it from the one that is entered.
// Control words are the same in all fibers.
extern "C" void latchkey_switch_stack(void** left, void* entered);
asm(R"(
.text
.globl latchkey_switch_stack
.type latchkey_switch_stack, @function
latchkey_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size latchkey_switch_stack, .-latchkey_switch_stack
.globl latchkey_fiber_start
.type latchkey_fiber_start, @function
latchkey_fiber_start:
  movq %rbx, %rdi
  call *%r12
  ud2
.size latchkey_fiber_start, .-latchkey_fiber_start
)");
extern "C" void latchkey_fiber_start();

namespace latchkey::tests {
namespace {

#ifdef LK_SIM_ASAN
constexpr u64 kStackBytes = 1 * kMiB;  // its frames are several times as large
#else
constexpr u64 kStackBytes = 256 * kKiB;
#endif
constexpr u64 kGuardBytes = 4096;

// Stacks that no fiber has now; they stay mapped, so a new fiber touches no new memory.
std::vector<std::byte*>& idle_stacks() {
  static std::vector<std::byte*> stacks;
  return stacks;
}

std::byte* take_stack() {
  std::vector<std::byte*>& idle = idle_stacks();
  if (!idle.empty()) {
    const auto lowest = std::ranges::min_element(idle);
    std::byte* stack = *lowest;
    idle.erase(lowest);
    return stack;
  }
  void* mapped = ::mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  LK_CHECK_MSG(mapped != MAP_FAILED, "no memory for a fiber's stack");
  LK_CHECK(::mprotect(mapped, kGuardBytes, PROT_NONE) == 0);
  return static_cast<std::byte*>(mapped) + kGuardBytes;
}

}  // namespace

Fiber::Fiber(std::function<void()> body) : body_(std::move(body)), stack_(take_stack()) {
  // As latchkey_switch_stack() leaves a stack: r15 r14 r13 r12 rbx rbp, and where to return to.
  auto** top = reinterpret_cast<void**>(stack_ + kStackBytes);
  *--top = nullptr;  // two, so that the start has a stack on 16 bytes
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&latchkey_fiber_start);
  *--top = nullptr;                                 // rbp: the end of every backtrace
  *--top = this;                                    // rbx
  *--top = reinterpret_cast<void*>(&Fiber::enter);  // r12
  for (int i = 0; i < 3; ++i) *--top = nullptr;
  own_top_ = static_cast<void*>(top);
#ifdef LK_SIM_TSAN
  watched_.own_context = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  LK_CHECK_MSG(!begun_ || ended_, "a fiber goes before it has ended");
#ifdef LK_SIM_TSAN
  __tsan_destroy_fiber(watched_.own_context);
#endif
  idle_stacks().push_back(stack_);
}

std::span<const std::byte> Fiber::live_stack() const {
  const auto* top = static_cast<const std::byte*>(own_top_);
  return {top, static_cast<std::size_t>(stack_ + kStackBytes - top)};
}

void Fiber::wipe_dead_stack(u64 bytes) {
  auto* top = static_cast<std::byte*>(own_top_);
  LK_CHECK(bytes <= static_cast<u64>(top - stack_));
  std::fill(top - bytes, top, std::byte{0});
}

void Fiber::swap_thread_state() {
  std::swap(no_wait_depth, no_wait_depth_);
  std::swap(secret_work_depth, secret_work_depth_);
}

void Fiber::resume() {
  LK_CHECK(!ended_);
  begun_ = true;
  swap_thread_state();
#ifdef LK_SIM_TSAN
  watched_.outside_context = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(watched_.own_context, 0);
#endif
#ifdef LK_SIM_ASAN
  __sanitizer_start_switch_fiber(&watched_.outside_fake_stack, stack_, kStackBytes);
#endif
  latchkey_switch_stack(&outside_top_, own_top_);
#ifdef LK_SIM_ASAN
  __sanitizer_finish_switch_fiber(watched_.outside_fake_stack, nullptr, nullptr);
#endif
  swap_thread_state();
}

void Fiber::pause() {
#ifdef LK_SIM_TSAN
  __tsan_switch_to_fiber(watched_.outside_context, 0);
#endif
#ifdef LK_SIM_ASAN
  __sanitizer_start_switch_fiber(&watched_.own_fake_stack, watched_.outside_bottom,
                                 watched_.outside_size);
#endif
  latchkey_switch_stack(&own_top_, outside_top_);
#ifdef LK_SIM_ASAN
  __sanitizer_finish_switch_fiber(watched_.own_fake_stack, &watched_.outside_bottom,
                                  &watched_.outside_size);
#endif
}

void Fiber::enter(Fiber* self) {
#ifdef LK_SIM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &self->watched_.outside_bottom,
                                  &self->watched_.outside_size);
#endif
  self->body_();
  self->body_ = nullptr;
  self->leave_for_good();
}

void Fiber::leave_for_good() {
  ended_ = true;
#ifdef LK_SIM_TSAN
  __tsan_switch_to_fiber(watched_.outside_context, 0);
#endif
#ifdef LK_SIM_ASAN
  __sanitizer_start_switch_fiber(nullptr, watched_.outside_bottom, watched_.outside_size);
#endif
  latchkey_switch_stack(&own_top_, outside_top_);
  LK_CHECK_MSG(false, "an ended fiber was resumed");
}

}  // namespace latchkey::tests
