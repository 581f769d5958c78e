// wipe() and burn_stack_and_registers() of base/secret.h.

#include <cstring>

#include "base/secret.h"

#if !defined(__x86_64__)
#error "latchkey knows the registers that hold round keys on x86-64 only"
#endif

namespace latchkey {
namespace {

struct Registers {
  bool avx = false;
  bool avx512 = false;
};

Registers detect() {
  __builtin_cpu_init();
  return {.avx = __builtin_cpu_supports("avx") != 0,
          .avx512 = __builtin_cpu_supports("avx512f") != 0};
}

// A plain global, so that its reader calls nothing and has no frame. Before main() it may still say
// that there is SSE only; nothing holds a secret so early.
const Registers g_registers = detect();

}  // namespace

void wipe(void* data, std::size_t size) noexcept {
  if (size == 0) return;
  std::memset(data, 0, size);
  // The barrier reads all memory as far as the compiler knows, so the stores before it stay.
  asm volatile("" : : "r"(data) : "memory");
}

// Calls nothing and keeps nothing on the stack: a frame would have holes that the burn leaves out.
// For the same reason no sanitizer may add calls or guard zones. All registers named here belong to
// a called function; those that it must preserve are the caller's.
__attribute__((noinline, no_sanitize("address"), no_sanitize("thread"),
               no_sanitize("undefined"))) void
burn_stack_and_registers() noexcept {
  // 8 KiB below the return address.
  asm volatile(
      "leaq -8192(%%rsp), %%rdi\n\txorl %%eax, %%eax\n\tmovl $1024, %%ecx\n\tcld\n\trep stosq" ::
          : "rax", "rcx", "rdi", "cc", "memory");
  if (g_registers.avx) {
    // All of zmm0 to zmm15, not only their lower halves.
    asm volatile("vzeroall" ::: "memory");
  } else {
    asm volatile(
        "pxor %%xmm0, %%xmm0\n\tpxor %%xmm1, %%xmm1\n\tpxor %%xmm2, %%xmm2\n\t"
        "pxor %%xmm3, %%xmm3\n\tpxor %%xmm4, %%xmm4\n\tpxor %%xmm5, %%xmm5\n\t"
        "pxor %%xmm6, %%xmm6\n\tpxor %%xmm7, %%xmm7\n\tpxor %%xmm8, %%xmm8\n\t"
        "pxor %%xmm9, %%xmm9\n\tpxor %%xmm10, %%xmm10\n\tpxor %%xmm11, %%xmm11\n\t"
        "pxor %%xmm12, %%xmm12\n\tpxor %%xmm13, %%xmm13\n\tpxor %%xmm14, %%xmm14\n\t"
        "pxor %%xmm15, %%xmm15" ::
            : "memory");
  }
  if (g_registers.avx512) {
    asm volatile(
        "vpxord %%zmm16, %%zmm16, %%zmm16\n\tvpxord %%zmm17, %%zmm17, %%zmm17\n\t"
        "vpxord %%zmm18, %%zmm18, %%zmm18\n\tvpxord %%zmm19, %%zmm19, %%zmm19\n\t"
        "vpxord %%zmm20, %%zmm20, %%zmm20\n\tvpxord %%zmm21, %%zmm21, %%zmm21\n\t"
        "vpxord %%zmm22, %%zmm22, %%zmm22\n\tvpxord %%zmm23, %%zmm23, %%zmm23\n\t"
        "vpxord %%zmm24, %%zmm24, %%zmm24\n\tvpxord %%zmm25, %%zmm25, %%zmm25\n\t"
        "vpxord %%zmm26, %%zmm26, %%zmm26\n\tvpxord %%zmm27, %%zmm27, %%zmm27\n\t"
        "vpxord %%zmm28, %%zmm28, %%zmm28\n\tvpxord %%zmm29, %%zmm29, %%zmm29\n\t"
        "vpxord %%zmm30, %%zmm30, %%zmm30\n\tvpxord %%zmm31, %%zmm31, %%zmm31" ::
            : "memory");
  }
  asm volatile(
      "xorl %%edx, %%edx\n\txorl %%esi, %%esi\n\txorl %%edi, %%edi\n\txorl %%r8d, %%r8d\n\t"
      "xorl %%r9d, %%r9d\n\txorl %%r10d, %%r10d\n\txorl %%r11d, %%r11d" ::
          : "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc", "memory");
}

}  // namespace latchkey
