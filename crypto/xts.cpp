#include "crypto/xts.h"

#include <atomic>

#include "base/check.h"
#include "crypto/aes.h"
#include "crypto/kernel.h"

namespace latchkey::crypto {
namespace {

// Best first; the first usable row is the one that this process takes. The portable one is usable
// everywhere, so what follows it is taken only when it is asked for.
constexpr std::array kKernels{&kVaes512Kernel,  &kVaes256Kernel, &kAesniKernel,
                              &kPortableKernel, &kOpensslKernel, &kKcapiKernel};

// Set once by the first caller, or by xts_force_kernel() before any key is expanded. All racing
// first callers store the same row, so the order of their stores does not matter.
std::atomic<const Kernel*> chosen{nullptr};

const Kernel* best_kernel() {
  for (const Kernel* row : kKernels)
    if (row->usable()) return row;
  LK_CHECK_MSG(false, "no kernel is usable");
  return nullptr;
}

constexpr u32 kUnitBytesMax = kMiB;

void check_run(XtsRun run, std::size_t input_bytes, MutableBytes output) {
  LK_CHECK(run.unit_bytes >= kBlockBytes && run.unit_bytes <= kUnitBytesMax);
  LK_CHECK(run.unit_bytes % kBlockBytes == 0 && input_bytes % run.unit_bytes == 0);
  LK_CHECK(output.size() == input_bytes);
}

UnitSource side_by_side(XtsRun run, Bytes input) {
  return {input.data(), nullptr, input.size() / run.unit_bytes, run.unit_bytes};
}

}  // namespace

const Kernel& kernel() {
  const Kernel* row = chosen.load(std::memory_order_relaxed);
  if (row == nullptr) {
    row = best_kernel();
    chosen.store(row, std::memory_order_relaxed);
  }
  return *row;
}

void xts_expand(Bytes raw, XtsKey& key) {
  LK_CHECK(raw.size() == kXtsKeyBytes);
  kernel().expand(raw, key);
}

void xts_seal(const XtsKey& key, XtsRun run, Bytes input, MutableBytes output) {
  check_run(run, input.size(), output);
  kernel().seal(key, run, side_by_side(run, input), output.data());
}

void xts_seal_scattered(const XtsKey& key, XtsRun run, std::span<const std::byte* const> units,
                        MutableBytes output) {
  check_run(run, units.size() * run.unit_bytes, output);
  kernel().seal(key, run, {nullptr, units.data(), units.size(), run.unit_bytes}, output.data());
}

void xts_open(const XtsKey& key, XtsRun run, Bytes input, MutableBytes output) {
  check_run(run, input.size(), output);
  kernel().open(key, run, side_by_side(run, input), output.data());
}

std::string_view xts_kernel() { return kernel().name; }

bool xts_force_kernel(std::string_view name) {
  for (const Kernel* row : kKernels) {
    if (row->name != name) continue;
    if (!row->usable()) return false;
    chosen.store(row, std::memory_order_relaxed);
    return true;
  }
  return false;
}

std::span<const KernelInfo> xts_kernels() {
  static const auto kernels = [] {
    std::array<KernelInfo, kKernels.size()> rows{};
    for (std::size_t i = 0; i < rows.size(); ++i)
      rows[i] = {kKernels[i]->name, kKernels[i]->usable()};
    return rows;
  }();
  return kernels;
}

}  // namespace latchkey::crypto
