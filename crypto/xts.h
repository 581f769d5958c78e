#pragma once
// AES-256-XTS over whole data units (IEEE 1619; tweak = le64(unit index) || 0, as fscrypt).
//
// Nothing here allocates, locks or fails after the key is expanded. Kernels: VAES with 512-bit or
// 256-bit registers, AES-NI, each eight registers abreast; a portable one for CPUs without AES-NI.
// Chosen once at run time, the best that the CPU has.

#include <array>
#include <string_view>

#include "base/secret.h"
#include "base/types.h"

namespace latchkey::crypto {

inline constexpr std::size_t kXtsKeyBytes = 64;  // 32 data key, 32 tweak key
inline constexpr u32 kUnitBytes = 4096;          // one data unit of ours

// Expanded schedules. Lives in the arena only: Secret<XtsKey>, or a slot of a table that does.
struct alignas(64) XtsKey {
  std::array<std::byte, 15 * 16> encrypt;
  std::array<std::byte, 15 * 16> decrypt;  // equivalent inverse cipher
  std::array<std::byte, 15 * 16> tweak;
  std::array<std::byte, kXtsKeyBytes> raw;  // used without schedules of ours only, else zero
};

// `raw` is 64 bytes in the arena; the caller wipes it. It may be key.raw.
void xts_expand(Bytes raw, XtsKey& key);

// Seals or opens input.size() / unit_bytes whole units; the first has tweak `first_unit`, the next
// one more. unit_bytes is a multiple of 16 from 16 to 1 MiB (64 KiB for kcapi); output.size() ==
// input.size(); the two are the same memory or do not overlap. The caller has a SecretWork around
// its batch.
struct XtsRun {
  u64 first_unit = 0;
  u32 unit_bytes = kUnitBytes;
  // The output is not read again soon (an I/O buffer that leaves by DMA, far more data than the
  // caches hold): it goes past the caches where the kernel can and `output` is 64-byte aligned.
  bool streaming = false;
};
void xts_seal(const XtsKey& key, XtsRun run, Bytes input, MutableBytes output);
void xts_open(const XtsKey& key, XtsRun run, Bytes input, MutableBytes output);
// Units that lie apart, `units[i]` with unit_bytes each; output.size() is all of them. One call for
// many units is faster than a call each: a unit's tweak is made ready while the one before it is
// sealed, and its bytes are fetched.
void xts_seal_scattered(const XtsKey& key, XtsRun run, std::span<const std::byte* const> units,
                        MutableBytes output);

// "vaes512", "vaes256", "aesni", "portable", "openssl" or "kcapi": what this process uses.
// force_kernel is for tests and `--xts-kernel`; false when the CPU, or for kcapi the operating
// system, lacks it.
std::string_view xts_kernel();
bool xts_force_kernel(std::string_view name);
// Every kernel of this build, and whether this CPU can run it.
struct KernelInfo {
  std::string_view name;
  bool usable;
};
std::span<const KernelInfo> xts_kernels();

}  // namespace latchkey::crypto
