// What sharing costs, and whether giving it up disturbs anybody.
//
// clone/mib: clone of a file of so many MiB, until it is durable. snapshot/files: snapshot of a
// subvolume of so many files of one block, until it is durable. snapshot_removal/files: a snapshot
// of such a subvolume, half of whose files were removed since, goes: first by itself, then beside
// writers, whose longest stall stands beside that of the same writers in as long a time without it.
// A writer overwrites 4 KiB at random in a file of its own of 16 MiB, with an fsync every 64
// writes; a stall is how long one call took. Bytes are those that the device was given. Where it
// lies: disk.h. Making the files is not timed.

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "base/wait.h"
#include "bench/disk.h"
#include "bench/sides.h"

namespace latchkey {
namespace {

using bench::Disk;
using bench::timed;
using volume::HandleId;

constexpr u64 kStoreBytes = 2560 * kMiB;
constexpr u64 kPage = 4096;
constexpr u64 kFilesADirectory = 1000;
constexpr u64 kWriterBytes = 16 * kMiB;
constexpr u64 kWriters = 2;
constexpr u64 kWritesAnFsync = 64;
constexpr volume::OpenFlags kCreate{.write = true, .create = true};

double ms(u64 ns) { return static_cast<double>(ns) / 1e6; }

// --- writers -------------------------------------------------------------------------------------

class Writers {
 public:
  struct Stalls {
    u64 write_ns = 0, fsync_ns = 0;  // the longest
    u64 writes = 0;
  };

  explicit Writers(volume::Volume& volume) : volume_(volume) {}

  Result<void> create() {
    const std::vector<std::byte> bytes(kMiB, std::byte{0x5a});
    for (u64 i = 0; i < kWriters; ++i) {
      LK_TRY(const HandleId handle,
             volume::open_path(volume_, Disk::kUser, fmt::format("/vault/writer{}", i), kCreate));
      for (u64 at = 0; at < kWriterBytes; at += kMiB) LK_TRYV(volume_.write(handle, at, bytes));
      handles_.push_back(handle);
    }
    return volume_.sync();
  }
  void start() {
    stop_ = false;
    stalls_.assign(kWriters, {});
    for (u64 i = 0; i < kWriters; ++i) threads_.emplace_back([this, i] { work(i); });
  }
  Stalls stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    Stalls all;
    for (const Stalls& one : stalls_) {
      all.write_ns = std::max(all.write_ns, one.write_ns);
      all.fsync_ns = std::max(all.fsync_ns, one.fsync_ns);
      all.writes += one.writes;
    }
    return all;
  }
  bool failed() const { return failed_; }

 private:
  void work(u64 index) {
    std::mt19937_64 random(index + 1);
    const std::vector<std::byte> bytes(kPage, std::byte{0xa5});
    Stalls& stalls = stalls_[index];
    while (!stop_) {
      const u64 at = random() % (kWriterBytes / kPage) * kPage;
      bool done = true;
      const u64 write_ns =
          timed([&] { done = volume_.write(handles_[index], at, bytes).has_value(); });
      stalls.write_ns = std::max(stalls.write_ns, write_ns);
      if (++stalls.writes % kWritesAnFsync == 0) {
        const u64 fsync_ns = timed([&] { done = done && volume_.fsync(handles_[index]); });
        stalls.fsync_ns = std::max(stalls.fsync_ns, fsync_ns);
      }
      if (!done) failed_ = true;
    }
  }

  volume::Volume& volume_;
  std::vector<HandleId> handles_;
  std::vector<std::thread> threads_;
  std::vector<Stalls> stalls_;
  std::atomic<bool> stop_{false}, failed_{false};
};

// --- scenes --------------------------------------------------------------------------------------

// A volume with what a benchmark needs, made once.
class Scene {
 public:
  static Result<std::unique_ptr<Scene>> create(u64 files) {
    static Result<std::unique_ptr<Disk>> disk = Disk::create(kStoreBytes);
    if (!disk) return std::unexpected(disk.error());
    std::unique_ptr<Scene> scene(new Scene(**disk));
    LK_TRYV((*disk)->format());
    LK_TRY(scene->volume_, (*disk)->open({}));
    LK_TRY(scene->vault_, volume::resolve(*scene->volume_, "/vault"));
    if (files != 0) LK_TRYV(scene->make_tree(files));
    LK_TRYV(scene->volume_->sync());
    return scene;
  }

  Result<HandleId> make_file(const std::string& path, u64 bytes) {
    LK_TRY(const HandleId handle, volume::open_path(*volume_, Disk::kUser, path, kCreate));
    const std::vector<std::byte> piece(std::min(bytes, u64{kMiB}), std::byte{0x5a});
    for (u64 at = 0; at < bytes; at += piece.size()) LK_TRYV(volume_->write(handle, at, piece));
    return handle;
  }
  Result<void> snapshot(const std::string& name) {
    LK_TRY(const auto tree, volume::resolve(*volume_, "/vault/tree"));
    return ended(volume_->snapshot(Disk::kUser, tree, vault_, name, true));
  }
  Result<void> remove(const std::string& name) {
    LK_TRYV(volume_->remove_subvolume(vault_, name));
    return volume_->finish_removals();
  }
  // Every second one of the tree, so that a snapshot alone has them.
  Result<void> thin_out() {
    for (u64 i = 0; i < files_; i += 2) {
      LK_TRY(const auto place, volume::resolve_parent(*volume_, path_of(i)));
      LK_TRYV(volume_->unlink(place.directory, place.name));
    }
    return volume_->sync();
  }
  Result<void> fill_again() {
    for (u64 i = 0; i < files_; i += 2) LK_TRYV(put(i));
    return volume_->sync();
  }
  // Everything is referred to as often as it is counted, and what nothing refers to is free.
  Result<void> close_and_check() {
    LK_TRYV(volume_->close());
    volume_.reset();
    LK_TRY(const auto check, disk_.check());
    return check.findings.empty() ? Result<void>{} : fail(Errc::damaged, "check has findings");
  }
  u64 blocks_used() const { return volume_->facts().space.blocks_used; }
  volume::Volume& volume() { return *volume_; }
  Disk& disk() { return disk_; }
  volume::InodeId vault() const { return vault_; }

 private:
  explicit Scene(Disk& disk) : disk_(disk) {}

  template <class T>
  static Result<void> ended(const Result<T>& result) {
    if (!result) return std::unexpected(result.error());
    return {};
  }
  static std::string path_of(u64 file) {
    return fmt::format("/vault/tree/{}/{}", file / kFilesADirectory, file);
  }
  Result<void> put(u64 file) {
    LK_TRY(const HandleId handle, make_file(path_of(file), kPage));
    return volume_->close_handle(handle);
  }
  Result<void> make_tree(u64 files) {
    files_ = files;
    LK_TRYV(volume_->create_subvolume(Disk::kUser, vault_, "tree", 0755));
    for (u64 i = 0; i < files; ++i) {
      if (i % kFilesADirectory == 0)
        LK_TRYV(volume::make_directory(*volume_, Disk::kUser,
                                       fmt::format("/vault/tree/{}", i / kFilesADirectory)));
      LK_TRYV(put(i));
    }
    return {};
  }

  Disk& disk_;
  std::unique_ptr<volume::Volume> volume_;
  volume::InodeId vault_;
  u64 files_ = 0;
};

void tell(benchmark::State& state, const Result<void>& done) {
  if (!done) state.SkipWithError(done.error().what);
}

// --- benchmarks ----------------------------------------------------------------------------------

Result<void> clones(benchmark::State& state) {
  LK_TRY(const auto scene, Scene::create(0));
  const u64 bytes = static_cast<u64>(state.range(0)) * kMiB;
  LK_TRY(const HandleId from, scene->make_file("/vault/from", bytes));
  volume::Volume& volume = scene->volume();
  LK_TRYV(volume.sync());
  LK_TRY(const auto rows, volume.map(from));
  std::vector<double> written;
  for (auto _ : state) {
    LK_TRY(const HandleId to, volume::open_path(volume, Disk::kUser, "/vault/to", kCreate));
    const u64 before = scene->disk().bytes_written();
    Result<void> done;
    const u64 ns = timed([&] {
      done = volume.clone_range(from, 0, to, 0, 0);
      if (done) done = volume.fsync(to);
    });
    LK_TRYV(done);
    state.SetIterationTime(static_cast<double>(ns) / 1e9);
    written.push_back(static_cast<double>(scene->disk().bytes_written() - before));
    LK_TRYV(volume.close_handle(to));
    LK_TRYV(volume.unlink(scene->vault(), "to"));
    LK_TRYV(volume.sync());
  }
  state.counters["extents"] = static_cast<double>(rows.size());
  state.counters["bytes_written"] = bench::median(written);
  return {};
}

Result<void> snapshots(benchmark::State& state) {
  LK_TRY(const auto scene, Scene::create(static_cast<u64>(state.range(0))));
  std::vector<double> written;
  u64 number = 0;
  for (auto _ : state) {
    const u64 before = scene->disk().bytes_written();
    Result<void> done;
    const u64 ns = timed([&] { done = scene->snapshot(fmt::format("then{}", number++)); });
    LK_TRYV(done);
    state.SetIterationTime(static_cast<double>(ns) / 1e9);
    written.push_back(static_cast<double>(scene->disk().bytes_written() - before));
  }
  state.counters["bytes_written"] = bench::median(written);
  return {};
}

Result<void> removals(benchmark::State& state) {
  const u64 files = static_cast<u64>(state.range(0));
  LK_TRY(const auto scene, Scene::create(files));
  Writers writers(scene->volume());
  LK_TRYV(writers.create());
  // By itself: what it costs and what it frees.
  LK_TRYV(scene->snapshot("alone"));
  LK_TRYV(scene->thin_out());
  const u64 used = scene->blocks_used(), before = scene->disk().bytes_written();
  Result<void> done;
  const u64 alone_ns = timed([&] {
    done = scene->remove("alone");
    if (done) done = scene->volume().sync();
  });
  LK_TRYV(done);
  state.counters["alone_ms"] = ms(alone_ns);
  state.counters["alone_bytes_written"] =
      static_cast<double>(scene->disk().bytes_written() - before);
  state.counters["alone_blocks_freed"] = static_cast<double>(used - scene->blocks_used());
  std::vector<double> with_write, with_fsync, without_write, without_fsync, rate;
  for (auto _ : state) {
    LK_TRYV(scene->fill_again());
    LK_TRYV(scene->snapshot("then"));
    LK_TRYV(scene->thin_out());
    writers.start();
    const u64 ns = timed([&] { done = scene->remove("then"); });
    const Writers::Stalls with = writers.stop();
    LK_TRYV(done);
    writers.start();
    std::atomic<u32> nobody_wakes{0};
    (void)wait_on(nobody_wakes, 0, ns);
    const Writers::Stalls without = writers.stop();
    if (writers.failed()) return fail(Errc::io, "a writer failed");
    state.SetIterationTime(static_cast<double>(ns) / 1e9);
    with_write.push_back(ms(with.write_ns));
    with_fsync.push_back(ms(with.fsync_ns));
    without_write.push_back(ms(without.write_ns));
    without_fsync.push_back(ms(without.fsync_ns));
    rate.push_back(static_cast<double>(with.writes) / static_cast<double>(without.writes));
  }
  const auto longest = [](const std::vector<double>& all) {
    return all.empty() ? 0 : *std::ranges::max_element(all);
  };
  state.counters["write_stall_ms"] = longest(with_write);
  state.counters["write_stall_ms_without"] = longest(without_write);
  state.counters["fsync_stall_ms"] = longest(with_fsync);
  state.counters["fsync_stall_ms_without"] = longest(without_fsync);
  state.counters["writes_ratio"] = bench::median(rate);
  return scene->close_and_check();
}

void clone(benchmark::State& state) { tell(state, clones(state)); }
void snapshot(benchmark::State& state) { tell(state, snapshots(state)); }
void snapshot_removal(benchmark::State& state) { tell(state, removals(state)); }

BENCHMARK(clone)->ArgName("mib")->Arg(64)->Arg(1024)->UseManualTime()->Iterations(5)->Unit(
    benchmark::kMillisecond);
BENCHMARK(snapshot)->ArgName("files")->Arg(1000)->Arg(100000)->UseManualTime()->Iterations(5)->Unit(
    benchmark::kMillisecond);
BENCHMARK(snapshot_removal)
    ->ArgName("files")
    ->Arg(1000)
    ->Arg(100000)
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace latchkey

BENCHMARK_MAIN();
