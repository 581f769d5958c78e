// How long a removal takes until the key is absent: soft with everything closed after it, and hard,
// alternating in one run; then every mode's call by itself, and what a seal costs.
//
// key_removal/dirty_mib: one open file with so many MiB that nobody has flushed; under soft the
// last close flushes them, under hard they are dropped. key_removal/files: so many open files, none
// of them dirty. key_removal/files/others: beside them so many open files of another key, and
// key_removal/files/others_dirty_mib so many MiB that one of those has dirty: neither should
// matter. removal_call: until the call returns, of ten open files with 16 MiB dirty in the first,
// and until the key is absent; suspend ends with the key's return. sealed_call/extents: of one open
// file with so many extents, each under a key of its own; `own_key_bytes` is the locked memory that
// they take. Adding the key and opening are not timed. Where it lies: disk.h.

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <vector>

#include "base/check.h"
#include "bench/disk.h"
#include "bench/sides.h"

namespace latchkey {
namespace {

using bench::Disk;
using bench::Sides;
using bench::timed;
using keymgr::RemovalMode;

constexpr u64 kStoreBytes = 1024 * kMiB;
constexpr u64 kDirtyBytesMax = 1024 * kMiB;  // twice of what is ever dirty: nobody flushes early

std::string name(u64 number) { return fmt::format("/vault/{}", number); }

// A volume with `files` files of the key, and `others` open ones of another key.
class Scene {
 public:
  static Result<std::unique_ptr<Scene>> create(Disk& disk, u64 files, u64 others,
                                               u64 others_dirty_bytes = 0) {
    std::unique_ptr<Scene> scene(new Scene(disk));
    volume::VolumeOptions options;
    options.dirty_bytes_max = kDirtyBytesMax;
    options.commit_interval_ms = 0;
    LK_TRYV(disk.format());
    LK_TRY(scene->volume_, disk.open(options));
    LK_TRYV(scene->open_files(files));
    LK_TRYV(scene->close_files());
    LK_TRYV(scene->open_others(others));
    LK_TRYV(scene->volume_->sync());
    if (others_dirty_bytes != 0) LK_TRYV(scene->dirty(scene->other_, others_dirty_bytes));
    scene->files_ = files;
    return scene;
  }
  // Of one file whose every block is an extent.
  static Result<std::unique_ptr<Scene>> create_of_extents(Disk& disk, u64 extents) {
    std::unique_ptr<Scene> scene(new Scene(disk));
    volume::VolumeOptions options;
    options.dirty_bytes_max = kDirtyBytesMax;
    options.commit_interval_ms = 0;
    options.extent_bytes = engine::kBlockBytes;
    LK_TRYV(disk.format());
    LK_TRY(scene->volume_, disk.open(options));
    LK_TRYV(scene->open_files(1));
    const std::vector<std::byte> block(engine::kBlockBytes, std::byte{0x5a});
    for (u64 i = 0; i < extents; ++i)
      LK_TRYV(scene->volume_->write(scene->handles_[0], i * engine::kBlockBytes, block));
    LK_TRYV(scene->volume_->fsync(scene->handles_[0]));
    LK_TRYV(scene->close_files());
    LK_TRYV(scene->volume_->sync());
    scene->files_ = 1;
    return scene;
  }

  struct Call {
    u64 ns = 0;         // of the call; 0 for a failure
    u64 absent_ns = 0;  // until the key is absent, with the handles closed after the call
    volume::RemovalReport report;
  };
  Call call(RemovalMode mode, u64 dirty_bytes) {
    Call call;
    if (!disk_.add_key(*volume_) || !open_files(files_) || !dirty(handles_[0], dirty_bytes))
      return call;
    // Safe is for those who have left.
    if (keymgr::removal_row(mode).refuse_when_busy && !close_files()) return call;
    Result<void> removed;
    call.ns = timed([&] {
      removed = volume_->remove_key(Disk::kUser, disk_.key_id(), {.mode = mode}, call.report);
    });
    call.absent_ns = call.ns;
    if (call.report.state != keymgr::KeyState::absent)
      call.absent_ns += timed([&] { (void)close_files(); });
    (void)close_files();
    if (!removed) call.ns = 0;
    return call;
  }

  // Nanoseconds from the call until the key is absent; 0 for a failure.
  u64 remove(RemovalMode mode, u64 dirty_bytes) {
    if (!disk_.add_key(*volume_) || !open_files(files_) || !dirty(handles_[0], dirty_bytes))
      return 0;
    const crypto::KeyId& id = disk_.key_id();
    bool absent = false;
    const u64 ns = timed([&] {
      const auto report = volume_->remove_key(Disk::kUser, id, mode);
      if (report && report->state != keymgr::KeyState::absent) {
        for (const volume::HandleId handle : handles_) (void)volume_->close_handle(handle);
        handles_.clear();
      }
      absent =
          volume_->key_status(Disk::kUser, id).state == keymgr::KeyState::absent && bool{report};
    });
    (void)close_files();  // hard left them open; they say that data was lost
    return absent ? ns : 0;
  }

 private:
  explicit Scene(Disk& disk) : disk_(disk) {}

  Result<void> open_files(u64 count) {
    for (u64 i = 0; i < count; ++i) {
      LK_TRY(const auto handle,
             volume::open_path(*volume_, Disk::kUser, name(i), {.write = true, .create = true}));
      handles_.push_back(handle);
    }
    return {};
  }
  Result<void> close_files() {
    Result<void> first;
    for (const volume::HandleId handle : handles_)
      if (auto closed = volume_->close_handle(handle); !closed && first) first = closed;
    handles_.clear();
    return first;
  }
  Result<void> open_others(u64 count) {
    if (count == 0) return {};
    LK_TRY(const auto id, volume_->add_key(Disk::kUser, tests::in_arena(tests::raw_key(2))));
    LK_TRY(const auto directory, volume::make_directory(*volume_, Disk::kUser, "/others"));
    LK_TRYV(volume_->set_policy(Disk::kUser, directory, id));
    for (u64 i = 0; i < count; ++i) {
      LK_TRY(other_, volume::open_path(*volume_, Disk::kUser, fmt::format("/others/{}", i),
                                       {.write = true, .create = true}));
    }
    return {};
  }
  Result<void> dirty(volume::HandleId handle, u64 bytes) {
    static const std::vector<std::byte> megabyte(kMiB, std::byte{0x5a});
    for (u64 offset = 0; offset < bytes; offset += kMiB)
      LK_TRYV(volume_->write(handle, offset, megabyte));
    return {};
  }

  Disk& disk_;
  std::unique_ptr<volume::Volume> volume_;
  std::vector<volume::HandleId> handles_;
  volume::HandleId other_{};  // of those that are open under the other key
  u64 files_ = 0;
};

Disk* the_disk(benchmark::State& state) {
  static const auto disk = Disk::create(kStoreBytes);
  if (!disk) state.SkipWithError(disk.error().what);
  return disk ? disk->get() : nullptr;
}

void key_removal(benchmark::State& state, u64 dirty_mib, u64 files, u64 others,
                 u64 others_dirty_mib) {
  Disk* disk = the_disk(state);
  if (disk == nullptr) return;
  const auto scene = Scene::create(*disk, files, others, others_dirty_mib * kMiB);
  if (!scene) {
    state.SkipWithError(scene.error().what);
    return;
  }
  Sides sides(state, {"soft", "hard"});
  for (auto _ : state)
    if (!sides.pass({[&] { return (*scene)->remove(RemovalMode::soft, dirty_mib * kMiB); },
                     [&] { return (*scene)->remove(RemovalMode::hard, dirty_mib * kMiB); }}))
      break;
  sides.report_us();
  state.counters["direct"] = disk->direct() ? 1 : 0;
}

void removal_call(benchmark::State& state, RemovalMode mode) {
  Disk* disk = the_disk(state);
  if (disk == nullptr) return;
  const auto scene = Scene::create(*disk, 10, 0);
  if (!scene) {
    state.SkipWithError(scene.error().what);
    return;
  }
  std::vector<double> absent_ms;
  for (auto _ : state) {
    const Scene::Call call = (*scene)->call(mode, 16 * kMiB);
    if (call.ns == 0) {
      state.SkipWithError("the removal failed");
      return;
    }
    state.SetIterationTime(static_cast<double>(call.ns) / 1e9);
    absent_ms.push_back(static_cast<double>(call.absent_ns) / 1e6);
    state.counters["lost"] = static_cast<double>(call.report.bytes_lost);
  }
  state.counters["absent_ms"] = bench::median(absent_ms);
}

void sealed_call(benchmark::State& state) {
  Disk* disk = the_disk(state);
  if (disk == nullptr) return;
  const auto scene = Scene::create_of_extents(*disk, static_cast<u64>(state.range(0)));
  if (!scene) {
    state.SkipWithError(scene.error().what);
    return;
  }
  for (auto _ : state) {
    const Scene::Call call = (*scene)->call(RemovalMode::sealed, 0);
    if (call.ns == 0) {
      state.SkipWithError("the removal failed");
      return;
    }
    state.SetIterationTime(static_cast<double>(call.ns) / 1e9);
    state.counters["own_keys"] = static_cast<double>(call.report.own_keys);
    state.counters["own_key_bytes"] = static_cast<double>(call.report.own_key_bytes);
  }
}

void by_dirty_mib(benchmark::State& state) {
  key_removal(state, static_cast<u64>(state.range(0)), 1, 0, 0);
}
void by_files(benchmark::State& state) {
  key_removal(state, 0, static_cast<u64>(state.range(0)), 0, 0);
}
void by_others(benchmark::State& state) {
  key_removal(state, 0, static_cast<u64>(state.range(0)), static_cast<u64>(state.range(1)), 0);
}
void by_others_dirty(benchmark::State& state) {
  key_removal(state, 0, static_cast<u64>(state.range(0)), 1, static_cast<u64>(state.range(1)));
}

BENCHMARK(by_dirty_mib)
    ->Name("key_removal")
    ->ArgName("dirty_mib")
    ->Arg(0)
    ->Arg(1)
    ->Arg(4)
    ->Arg(16)
    ->Arg(64)
    ->Arg(256)
    ->UseManualTime();
BENCHMARK(by_files)
    ->Name("key_removal")
    ->ArgName("files")
    ->RangeMultiplier(10)
    ->Range(1, 10000)
    ->UseManualTime();
BENCHMARK(by_others)
    ->Name("key_removal")
    ->ArgNames({"files", "others"})
    ->Args({10, 10})
    ->Args({10, 1000})
    ->Args({10, 100000})
    ->UseManualTime();
BENCHMARK(by_others_dirty)
    ->Name("key_removal")
    ->ArgNames({"files", "others_dirty_mib"})
    ->Args({10, 0})
    ->Args({10, 64})
    ->Args({10, 512})
    ->UseManualTime();
BENCHMARK(sealed_call)->ArgName("extents")->RangeMultiplier(10)->Range(1, 100000)->UseManualTime();

const bool kModesRegistered = [] {
  for (const keymgr::RemovalRow& row : keymgr::removal_rows())
    benchmark::RegisterBenchmark(("removal_call/" + std::string(row.name)).c_str(), removal_call,
                                 row.mode)
        ->UseManualTime();
  return true;
}();

}  // namespace
}  // namespace latchkey

BENCHMARK_MAIN();
