// Writeback sealed and clear, alternating in one run: the same path, plan, copies and checksums,
// only derivation and cipher replaced by a copy. By longest extent and by queue depth.
//
// writeback_flush is what fsync does with dirty pages that are in memory already: plan, derive,
// seal, write, commit. writeback_write is the whole of writing a file and its fsync, with the
// workers that start at half of the dirty limit. Where they lie: disk.h.

#include <benchmark/benchmark.h>

#include <cstring>
#include <random>
#include <vector>

#include "bench/disk.h"
#include "bench/sides.h"

namespace latchkey {
namespace {

using bench::Disk;
using bench::Sides;
using bench::timed;

constexpr u64 kStoreBytes = 640 * kMiB;
constexpr u64 kFlushBytes = 24 * kMiB;  // below half of the dirty limit
constexpr u64 kWriteBytes = 96 * kMiB;
constexpr const char* kFile = "/vault/file";

enum class Timed : u8 { flush, write };

const std::vector<std::byte>& megabyte() {
  static const std::vector<std::byte> bytes = [] {
    std::mt19937_64 random(1);
    std::vector<std::byte> made(kMiB);
    for (std::size_t i = 0; i < made.size(); i += 8) {
      const u64 word = random();
      std::memcpy(made.data() + i, &word, sizeof word);
    }
    return made;
  }();
  return bytes;
}

Result<void> write_megabytes(volume::Volume& volume, volume::HandleId handle, u64 size) {
  for (u64 offset = 0; offset < size; offset += kMiB)
    LK_TRYV(volume.write(handle, offset, megabyte()));
  return {};
}

// One new file, removed afterwards; nanoseconds of what is timed.
Result<u64> measure(Disk& disk, const volume::VolumeOptions& options, Timed what) {
  LK_TRY(const auto volume, disk.open(options));
  LK_TRY(const auto handle, volume::open_path(*volume, Disk::kUser, kFile,
                                              {.write = true, .create = true, .truncate = true}));
  Result<void> result;
  u64 ns = 0;
  if (what == Timed::flush) {
    LK_TRYV(write_megabytes(*volume, handle, kFlushBytes));
    ns = timed([&] { result = volume->fsync(handle); });
  } else {
    ns = timed([&] {
      result = write_megabytes(*volume, handle, kWriteBytes);
      if (result) result = volume->fsync(handle);
    });
  }
  LK_TRYV(result);
  LK_TRYV(volume->close_handle(handle));
  LK_TRYV(volume::remove_tree(*volume, kFile));
  LK_TRYV(volume->close());
  return ns;
}

void writeback(benchmark::State& state, Timed what) {
  static const auto disk = Disk::create(kStoreBytes);
  if (!disk) {
    state.SkipWithError(disk.error().what);
    return;
  }
  volume::VolumeOptions options;
  options.extent_bytes = static_cast<u32>(state.range(0));
  options.queue_depth = static_cast<u32>(state.range(1));
  options.commit_interval_ms = 0;  // the only commit is the one that is timed
  const auto side = [&](bool clear) {
    options.clear_cipher = clear;
    return measure(**disk, options, what).value_or(0);
  };
  Sides sides(state, {"sealed", "clear"});
  for (auto _ : state)
    if (!sides.pass({[&] { return side(false); }, [&] { return side(true); }})) break;
  const u64 bytes = what == Timed::flush ? kFlushBytes : kWriteBytes;
  sides.report(static_cast<double>(bytes) / double{kMiB}, "mib_s");
  state.SetBytesProcessed(static_cast<i64>(bytes) * state.iterations());
  state.counters["direct"] = (*disk)->direct() ? 1 : 0;
}

void extents_and_depths(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"extent", "qd"});
  for (const i64 extent : {4 * kKiB, 16 * kKiB, 128 * kKiB, kMiB})
    for (const i64 depth : {1, 8, 32}) bench->Args({extent, depth});
  bench->UseManualTime();
}

BENCHMARK_CAPTURE(writeback, flush, Timed::flush)
    ->Name("writeback_flush")
    ->Apply(extents_and_depths);
BENCHMARK_CAPTURE(writeback, write, Timed::write)
    ->Name("writeback_write")
    ->Apply(extents_and_depths);

}  // namespace
}  // namespace latchkey

BENCHMARK_MAIN();
