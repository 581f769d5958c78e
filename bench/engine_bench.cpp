// The ring alone: sequential transfers by size and queue depth through the Io contract, from
// registered memory, on a file of 256 MiB made for the run. The file lies in LATCHKEY_BENCH_PATH (a
// folder), else TMPDIR, else /var/tmp; what it lies on decides the figures, so "direct" in the
// counters says whether O_DIRECT was in force.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine/file_device.h"
#include "tests/support/temp_file.h"

namespace latchkey {
namespace {

constexpr u64 kDeviceBytes = 256 * kMiB;

std::string bench_folder() {
  const char* chosen = std::getenv("LATCHKEY_BENCH_PATH");
  return chosen != nullptr && *chosen != '\0' ? chosen : tests::TempFolder::disk_folder();
}

// One device and ring, and `depth` Ops that are submitted again as they complete.
class Pump {
 public:
  static Result<std::unique_ptr<Pump>> create(u64 op_bytes, u32 depth) {
    std::unique_ptr<Pump> pump(new Pump);
    LK_TRY(pump->device_,
           engine::open_device(pump->folder_.file("device"), {.create_size = kDeviceBytes}));
    LK_TRY(pump->io_,
           pump->device_->make_io(
               {.queue_depth = depth, .buffer_bytes = op_bytes * depth, .single_thread = true}));
    std::memset(pump->io_->buffer().data(), 0x5a, pump->io_->buffer().size());
    pump->ops_.resize(depth);
    // Written once, so that reads find data and writes overwrite: allocation is not the subject.
    LK_TRYV(pump->run(engine::OpKind::write, op_bytes, kDeviceBytes / op_bytes));
    LK_TRYV(engine::flush_sync(*pump->io_));
    return pump;
  }

  Result<void> run(engine::OpKind kind, u64 op_bytes, u64 count) {
    left_ = count;
    failed_ = false;
    for (std::size_t i = 0; i < ops_.size() && left_ > 0; ++i) {
      ops_[i] = {.kind = kind,
                 .data = io_->buffer().subspan(i * op_bytes, op_bytes),
                 .done = [](engine::Op& op) { static_cast<Pump*>(op.owner)->again(op); },
                 .owner = this};
      start(ops_[i]);
    }
    while (io_->pending() != 0) {
      LK_TRY([[maybe_unused]] const u32 ran, io_->tick(1));
    }
    if (failed_) return fail(Errc::io, "an op failed");
    return {};
  }

  Result<void> flush() { return engine::flush_sync(*io_); }
  bool direct() const { return device_->info().direct; }

 private:
  Pump() : folder_(bench_folder()) {}

  void start(engine::Op& op) {
    op.offset = next_;
    next_ = (next_ + op.data.size()) % kDeviceBytes;
    --left_;
    io_->submit(op);
  }
  void again(engine::Op& op) {
    failed_ = failed_ || op.result != static_cast<i64>(op.data.size());
    if (left_ > 0) start(op);
  }

  tests::TempFolder folder_;
  std::unique_ptr<engine::Device> device_;
  std::unique_ptr<engine::Io> io_;
  std::vector<engine::Op> ops_;
  u64 next_ = 0;
  u64 left_ = 0;
  bool failed_ = false;
};

void ring(benchmark::State& state, engine::OpKind kind) {
  const auto op_bytes = static_cast<u64>(state.range(0));
  const auto depth = static_cast<u32>(state.range(1));
  const u64 count = std::max<u64>(depth, 8 * kMiB / op_bytes);
  auto pump = Pump::create(op_bytes, depth);
  if (!pump) {
    state.SkipWithError(pump.error().what);
    return;
  }
  for (auto _ : state) {
    if (!(*pump)->run(kind, op_bytes, count)) {
      state.SkipWithError("an op failed");
      break;
    }
  }
  state.SetBytesProcessed(static_cast<i64>(count * op_bytes) * state.iterations());
  state.SetItemsProcessed(static_cast<i64>(count) * state.iterations());
  state.counters["direct"] = (*pump)->direct() ? 1 : 0;
}

void flush_after_write(benchmark::State& state) {
  auto pump = Pump::create(kMiB, 1);
  if (!pump) {
    state.SkipWithError(pump.error().what);
    return;
  }
  for (auto _ : state) {
    if (!(*pump)->run(engine::OpKind::write, kMiB, 1) || !(*pump)->flush()) {
      state.SkipWithError("an op failed");
      break;
    }
  }
  state.SetBytesProcessed(static_cast<i64>(kMiB) * state.iterations());
}

void sizes_and_depths(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"size", "qd"});
  for (const i64 size : {4 * kKiB, 128 * kKiB, kMiB}) {
    for (const i64 depth : {1, 8, 32}) bench->Args({size, depth});
  }
  bench->UseRealTime();
}

BENCHMARK_CAPTURE(ring, write, engine::OpKind::write)->Name("ring_write")->Apply(sizes_and_depths);
BENCHMARK_CAPTURE(ring, read, engine::OpKind::read)->Name("ring_read")->Apply(sizes_and_depths);
BENCHMARK(flush_after_write)->Name("ring_write_flush/size:1048576")->UseRealTime();

}  // namespace
}  // namespace latchkey

BENCHMARK_MAIN();
