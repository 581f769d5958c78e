// wipe() and burn_stack_and_registers(): what cryptography leaves in memory, on the stack and in
// vector registers is gone. Each probe is shown to find its pattern first.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/secret.h"

// Sanitizers must not move or guard the frames that are looked at.
#define LK_BARE \
  __attribute__((noinline, no_sanitize("address"), no_sanitize("thread"), no_sanitize("undefined")))

namespace latchkey {
namespace {

constexpr u8 kPattern = 0xc3;

TEST(Wipe, ZeroesExactlyWhatItIsGiven) {
  std::array<std::byte, 64> bytes;
  bytes.fill(std::byte{kPattern});
  wipe(MutableBytes(bytes).subspan(3, 50));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    EXPECT_EQ(bytes[i], i >= 3 && i < 53 ? std::byte{0} : std::byte{kPattern}) << i;
  wipe(nullptr, 0);
}

// ---- registers

using Function = void (*)();

LK_BARE void nothing() { asm volatile(""); }
LK_BARE void burn() { burn_stack_and_registers(); }

// Loads the pattern into all vector registers, calls, and stores what they hold then: in one piece
// of assembly, so that no compiler's code comes in between. The stack moves past the red zone.
#define LK_AROUND_CALL(load, store)                                    \
  "movq %%rsp, %%r12\n\tsubq $256, %%rsp\n\tandq $-64, %%rsp\n\t" load \
  "callq *%%r14\n\t"                                                   \
  "movq %%r12, %%rsp\n\t" store

#define LK_LOW_16(move)                                                                    \
  move(0) move(1) move(2) move(3) move(4) move(5) move(6) move(7) move(8) move(9) move(10) \
      move(11) move(12) move(13) move(14) move(15)
#define LK_HIGH_16(move)                                                                    \
  move(16) move(17) move(18) move(19) move(20) move(21) move(22) move(23) move(24) move(25) \
      move(26) move(27) move(28) move(29) move(30) move(31)
#define LK_LOAD_XMM(n) "movdqu 16*" #n "(%%rbx), %%xmm" #n "\n\t"
#define LK_STORE_XMM(n) "movdqu %%xmm" #n ", 16*" #n "(%%r13)\n\t"
#define LK_LOAD_ZMM(n) "vmovdqu64 64*" #n "(%%rbx), %%zmm" #n "\n\t"
#define LK_STORE_ZMM(n) "vmovdqu64 %%zmm" #n ", 64*" #n "(%%r13)\n\t"
#define LK_CLOBBERS                                                                             \
  "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "cc", "memory", "xmm0",   \
      "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
      "xmm12", "xmm13", "xmm14", "xmm15"

LK_BARE void around_call_sse(Function call, const std::byte* in, std::byte* out) {
  register const std::byte* in_register asm("rbx") = in;
  register std::byte* out_register asm("r13") = out;
  register Function call_register asm("r14") = call;
  asm volatile(LK_AROUND_CALL(LK_LOW_16(LK_LOAD_XMM), LK_LOW_16(LK_STORE_XMM))
               :
               : "r"(in_register), "r"(out_register), "r"(call_register)
               : LK_CLOBBERS);
}

__attribute__((target("avx512f"))) LK_BARE void around_call_avx512(Function call,
                                                                   const std::byte* in,
                                                                   std::byte* out) {
  register const std::byte* in_register asm("rbx") = in;
  register std::byte* out_register asm("r13") = out;
  register Function call_register asm("r14") = call;
  asm volatile(LK_AROUND_CALL(LK_LOW_16(LK_LOAD_ZMM) LK_HIGH_16(LK_LOAD_ZMM),
                              LK_LOW_16(LK_STORE_ZMM) LK_HIGH_16(LK_STORE_ZMM))
               :
               : "r"(in_register), "r"(out_register), "r"(call_register)
               : LK_CLOBBERS, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",
                 "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
}

void check_registers(void (*around_call)(Function, const std::byte*, std::byte*),
                     std::size_t size) {
  const std::vector<std::byte> in(size, std::byte{kPattern});
  std::vector<std::byte> out(size);
  around_call(nothing, in.data(), out.data());
  ASSERT_EQ(out, in) << "the probe does not see what registers hold";
  around_call(burn, in.data(), out.data());
  EXPECT_EQ(out, std::vector<std::byte>(size)) << "a register survived";
}

TEST(Burn, ClearsTheSseRegisters) { check_registers(around_call_sse, 16 * 16); }

TEST(Burn, ClearsTheAvx512Registers) {
  if (!__builtin_cpu_supports("avx512f")) GTEST_SKIP() << "the CPU has no AVX-512";
  check_registers(around_call_avx512, 32 * 64);
}

// ---- stack

constexpr std::size_t kFrameBytes = 6000;

// Leaves a frame full of the pattern below its caller and says where it lies, through `frame`: a
// returned address of a local would be a warning.
LK_BARE void leave_frame(std::uintptr_t* frame) {
  volatile std::byte bytes[kFrameBytes];
  for (std::size_t i = 0; i < kFrameBytes; ++i) bytes[i] = std::byte{kPattern};
  *frame = reinterpret_cast<std::uintptr_t>(&bytes[0]);
}

// Calls nothing, so that its own frame is all that it disturbs.
LK_BARE std::size_t count_pattern(std::uintptr_t frame) {
  const volatile u8* bytes = reinterpret_cast<const volatile u8*>(frame);
  std::size_t count = 0;
  for (std::size_t i = 0; i < kFrameBytes; ++i) count += bytes[i] == kPattern ? 1 : 0;
  return count;
}

// All three calls from one frame, so that the frames they make lie in the same place.
LK_BARE std::array<std::size_t, 2> counts_before_and_after() {
  std::uintptr_t frame = 0;
  leave_frame(&frame);
  const std::size_t before = count_pattern(frame);
  leave_frame(&frame);
  burn_stack_and_registers();
  return {before, count_pattern(frame)};
}

TEST(Burn, OverwritesTheStackBelowTheCaller) {
  const auto [before, after] = counts_before_and_after();
  // The return address of the look lies above the frame; what the look itself keeps may lie in it.
  EXPECT_GT(before, kFrameBytes * 9 / 10) << "the probe does not see what the stack holds";
  EXPECT_EQ(after, 0U) << "a frame survived";
}

}  // namespace
}  // namespace latchkey
