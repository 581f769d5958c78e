// Ours beside OpenSSL and, where it is installed, libgcrypt, alternating in one run. XTS by kernel,
// data unit, direction and memory: 128 KiB that stay in the second cache, or the next of 256 MiB
// that were not touched for long, stored past the caches on our side. Extent keys derived and
// expanded; OpenSSL with an HKDF context kept and its cipher keyed again. The sides' bytes are
// compared before anything is timed. Data and keys of this program are not secret.
//
//   xts_encrypt/backend:native/kernel:vaes512/unit:4096/memory:cache
//   extent_key_derive/backend:native/batch:8
//
// Counters: SIDE_mib_s, SIDE_bytes_cycle, SIDE_us (of one key), ratio (ours to the best other).

#include <benchmark/benchmark.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "bench/libraries.h"
#include "bench/sides.h"
#include "crypto/xts.h"

namespace latchkey {
namespace {

using bench::OpensslHkdf;
using bench::OpensslXts;
using bench::Sides;
using bench::timed;

constexpr std::size_t kRunBytes = 128 * kKiB;
constexpr std::size_t kBatchBytes = 2 * kMiB;  // as writeback seals at a time
constexpr std::size_t kDramBytes = 256 * kMiB;
constexpr u64 kUnits[] = {512, kKiB, 4 * kKiB, 16 * kKiB, 128 * kKiB, kMiB};
constexpr u32 kKeysAPass = 64;

std::vector<std::byte> pattern(std::size_t size, u32 seed) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>((i + seed) * 2654435761U >> 24);
  return bytes;
}

template <class T>
Secret<T> secret() {
  auto made = Secret<T>::create();
  LK_CHECK_MSG(made.has_value(), "no locked memory");
  return std::move(*made);
}

// Input and output of one pass after the other: always the same, or the next of many, so that the
// caches have forgotten it.
class Pieces {
 public:
  Pieces(std::size_t piece, bool dram)
      : piece_(piece), input_(pattern(dram ? kDramBytes : piece, 1)), output_(input_.size() + 64) {
    while (reinterpret_cast<std::uintptr_t>(output_.data() + skip_) % 64 != 0) ++skip_;
  }
  Bytes input() const { return Bytes(input_).subspan(at_, piece_); }
  MutableBytes output() { return MutableBytes(output_).subspan(skip_ + at_, piece_); }
  void next() { at_ = (at_ + piece_) % input_.size(); }

 private:
  const std::size_t piece_;
  std::vector<std::byte> input_, output_;
  std::size_t skip_ = 0, at_ = 0;
};

struct XtsCase {
  std::string kernel;
  bool seal = true;
  bool dram = false;
  u32 unit_bytes = 0;

  std::string name() const {
    return std::string(seal ? "xts_encrypt" : "xts_decrypt") + "/backend:native/kernel:" + kernel +
           "/unit:" + std::to_string(unit_bytes) + "/memory:" + (dram ? "dram" : "cache");
  }
};

// Somebody's XTS of all units of a run; the first has tweak 3.
using RunUnits = std::function<void(Bytes, MutableBytes)>;
constexpr u64 kFirstUnit = 3;

template <class Library>
RunUnits library_run(const XtsCase& what, Bytes raw) {
  auto library = std::make_shared<Library>(raw, what.seal);
  return [library, unit = what.unit_bytes](Bytes input, MutableBytes output) {
    library->run(kFirstUnit, unit, input, output);
  };
}

void xts(benchmark::State& state, const XtsCase& what) {
  const std::string before(crypto::xts_kernel());
  LK_CHECK(crypto::xts_force_kernel(what.kernel));
  const auto raw = pattern(crypto::kXtsKeyBytes, 7);
  auto key = secret<crypto::XtsKey>();
  crypto::xts_expand(raw, *key);
  const crypto::XtsRun run{kFirstUnit, what.unit_bytes, what.dram};
  std::vector<std::string> names{"ours", "openssl"};
  std::vector<RunUnits> runs{[&](Bytes input, MutableBytes output) {
                               (what.seal ? crypto::xts_seal : crypto::xts_open)(*key, run, input,
                                                                                 output);
                             },
                             library_run<OpensslXts>(what, raw)};
#if LK_HAVE_GCRYPT
  names.emplace_back("libgcrypt");
  runs.push_back(library_run<bench::GcryptXts>(what, raw));
#endif

  const std::size_t size = std::max<std::size_t>(kRunBytes, what.unit_bytes);
  Pieces pieces(size, what.dram);
  std::vector<std::byte> expected;
  std::vector<std::function<u64()>> turns;
  for (const RunUnits& side : runs) {
    side(pieces.input(), pieces.output());
    if (expected.empty()) expected.assign(pieces.output().begin(), pieces.output().end());
    if (!std::ranges::equal(expected, pieces.output())) state.SkipWithError("the sides differ");
    turns.emplace_back([&] {
      pieces.next();
      return timed([&] {
        side(pieces.input(), pieces.output());
        benchmark::ClobberMemory();
      });
    });
  }
  Sides sides(state, names, Sides::Cycles::yes);
  for (auto _ : state)
    if (!sides.pass(turns)) break;
  sides.report(static_cast<double>(size) / double{kMiB}, "mib_s");
  sides.report_cycles(static_cast<double>(size), "bytes_cycle");
  state.SetBytesProcessed(static_cast<i64>(size) * state.iterations());
  LK_CHECK(crypto::xts_force_kernel(before));
}

// What writeback does with a batch, in the two ways that it could be stored: pages that no cache
// holds are sealed, four at a time, into a buffer of two batches that is used again and again, and
// each page's checksum is read from what was sealed.
void seal_and_checksum(benchmark::State& state) {
  constexpr std::size_t kUnit = crypto::kUnitBytes, kSome = 4 * kUnit;
  const auto raw = pattern(crypto::kXtsKeyBytes, 7);
  auto key = secret<crypto::XtsKey>();
  crypto::xts_expand(raw, *key);
  Pieces pages(kBatchBytes, true);
  std::vector<std::byte> buffer(2 * kBatchBytes + 64);
  std::byte* const aligned =
      buffer.data() + (64 - reinterpret_cast<std::uintptr_t>(buffer.data()) % 64) % 64;
  std::size_t half = 0;
  u32 checksum = 0;
  const auto batch = [&](bool streaming) {
    pages.next();
    half ^= 1;
    const MutableBytes output(aligned + half * kBatchBytes, kBatchBytes);
    return timed([&] {
      for (std::size_t at = 0; at < kBatchBytes; at += kSome) {
        const MutableBytes some = output.subspan(at, kSome);
        crypto::xts_seal(*key, {at / kUnit, kUnit, streaming}, pages.input().subspan(at, kSome),
                         some);
        for (std::size_t page = 0; page < kSome; page += kUnit)
          checksum ^= crc32c(some.subspan(page, kUnit));
      }
      benchmark::DoNotOptimize(checksum);
    });
  };
  Sides sides(state, {"cached", "past_caches"});
  for (auto _ : state)
    if (!sides.pass({[&] { return batch(false); }, [&] { return batch(true); }})) break;
  sides.report(double{kBatchBytes} / double{kMiB}, "mib_s");
  state.SetBytesProcessed(i64{kBatchBytes} * state.iterations());
}

crypto::Nonce nonce_of(u64 number) {
  crypto::Nonce nonce;
  std::memcpy(nonce.bytes.data(), &number, sizeof number);
  return nonce;
}

// What sealing an extent costs before its first byte: derivation and both schedules, `batch` keys
// in a call. A pass ends by burning stack and registers, as writeback's batches do.
void extent_key_derive(benchmark::State& state) {
  constexpr std::size_t kBatchMax = 8;
  const auto batch = static_cast<std::size_t>(state.range(0));
  auto keys = secret<std::array<crypto::XtsKey, kBatchMax>>();
  const auto master = pattern(64, 11);
  auto states = secret<crypto::HkdfState>();
  crypto::hkdf_extract(master, *states);
  OpensslHkdf hkdf(master);
  std::vector<std::byte> raw(crypto::kXtsKeyBytes), ours_raw(crypto::kXtsKeyBytes);
  for (u64 i = 0; i < 3; ++i) {
    hkdf.extent_key(nonce_of(i), raw);
    crypto::hkdf_expand(*states, crypto::Context::per_extent, nonce_of(i).bytes, ours_raw);
    if (raw != ours_raw) state.SkipWithError("the two sides differ");
  }
  OpensslXts cipher(raw, true);
  u64 number = 0;
  Sides sides(state, {"ours", "openssl"});
  for (auto _ : state) {
    const auto ours = [&] {
      std::array<crypto::Nonce, kBatchMax> nonces;
      for (std::size_t i = 0; i < kKeysAPass; i += batch) {
        for (std::size_t j = 0; j < batch; ++j) nonces[j] = nonce_of(number + i + j);
        crypto::derive_extent_keys(*states, std::span(nonces).first(batch),
                                   std::span(*keys).first(batch));
      }
      burn_stack_and_registers();
    };
    const auto theirs = [&] {
      for (u32 i = 0; i < kKeysAPass; ++i) {
        hkdf.extent_key(nonce_of(number + i), raw);
        cipher.rekey(raw);
      }
    };
    if (!sides.pass({[&] { return timed(ours); }, [&] { return timed(theirs); }})) break;
    number += kKeysAPass;
  }
  sides.report_us(kKeysAPass);
  state.SetItemsProcessed(i64{kKeysAPass} * state.iterations());
}

// The derivation alone, and on our side the burning that each call of it ends with.
void hkdf_expand(benchmark::State& state) {
  const auto master = pattern(64, 11);
  auto states = secret<crypto::HkdfState>();
  crypto::hkdf_extract(master, *states);
  OpensslHkdf hkdf(master);
  std::vector<std::byte> raw(crypto::kXtsKeyBytes);
  Sides sides(state, {"ours", "openssl"});
  for (auto _ : state) {
    const auto ours = [&] {
      for (u32 i = 0; i < kKeysAPass; ++i)
        crypto::hkdf_expand(*states, crypto::Context::per_extent, nonce_of(i).bytes, raw);
    };
    const auto theirs = [&] {
      for (u32 i = 0; i < kKeysAPass; ++i) hkdf.extent_key(nonce_of(i), raw);
    };
    if (!sides.pass({[&] { return timed(ours); }, [&] { return timed(theirs); }})) break;
  }
  sides.report_us(kKeysAPass);
  state.SetItemsProcessed(i64{kKeysAPass} * state.iterations());
}

BENCHMARK(extent_key_derive)
    ->Name("extent_key_derive/backend:native")
    ->ArgName("batch")
    ->Arg(1)
    ->Arg(8)
    ->UseManualTime();
BENCHMARK(seal_and_checksum)->UseManualTime();
BENCHMARK(hkdf_expand)->Name("hkdf_expand/backend:native")->UseManualTime();

// Each kernel of ours that this processor runs. OpenSSL is the other side of every row, and the
// operating system is no match.
void register_xts() {
  for (const crypto::KernelInfo& kernel : crypto::xts_kernels()) {
    if (!kernel.usable || kernel.name == "kcapi" || kernel.name == "openssl") continue;
    for (const bool dram : {false, true})
      for (const bool seal : {true, false})
        for (const u64 unit : kUnits) {
          const XtsCase what{std::string(kernel.name), seal, dram, static_cast<u32>(unit)};
          benchmark::RegisterBenchmark(what.name().c_str(), [what](benchmark::State& state) {
            xts(state, what);
          })->UseManualTime();
        }
  }
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  latchkey::register_xts();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
