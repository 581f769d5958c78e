// How long a removal takes until the key is absent: soft with everything closed after it, and hard,
// alternating in one run.
//
// key_removal/dirty_mib: one open file with so many MiB that nobody has flushed; under soft the
// last close flushes them, under hard they are dropped. key_removal/files: so many open files, none
// of them dirty. key_removal/files/others: beside them so many open files of another key, which
// should not matter. Adding the key and opening are not timed. Where it lies: disk.h.

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
  static Result<std::unique_ptr<Scene>> create(Disk& disk, u64 files, u64 others) {
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
    scene->files_ = files;
    return scene;
  }

  // Nanoseconds from the call until the key is absent; 0 for a failure.
  u64 remove(RemovalMode mode, u64 dirty_bytes) {
    if (!disk_.add_key(*volume_) || !open_files(files_) || !dirty(dirty_bytes)) return 0;
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
      LK_TRYV(volume::open_path(*volume_, Disk::kUser, fmt::format("/others/{}", i),
                                {.write = true, .create = true}));
    }
    return {};
  }
  Result<void> dirty(u64 bytes) {
    static const std::vector<std::byte> megabyte(kMiB, std::byte{0x5a});
    for (u64 offset = 0; offset < bytes; offset += kMiB)
      LK_TRYV(volume_->write(handles_[0], offset, megabyte));
    return {};
  }

  Disk& disk_;
  std::unique_ptr<volume::Volume> volume_;
  std::vector<volume::HandleId> handles_;
  u64 files_ = 0;
};

void key_removal(benchmark::State& state, u64 dirty_mib, u64 files, u64 others) {
  static const auto disk = Disk::create(kStoreBytes);
  if (!disk) {
    state.SkipWithError(disk.error().what);
    return;
  }
  const auto scene = Scene::create(**disk, files, others);
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
  state.counters["direct"] = (*disk)->direct() ? 1 : 0;
}

void by_dirty_mib(benchmark::State& state) {
  key_removal(state, static_cast<u64>(state.range(0)), 1, 0);
}
void by_files(benchmark::State& state) {
  key_removal(state, 0, static_cast<u64>(state.range(0)), 0);
}
void by_others(benchmark::State& state) {
  key_removal(state, 0, static_cast<u64>(state.range(0)), static_cast<u64>(state.range(1)));
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
    ->Args({10, 0})
    ->Args({10, 1000})
    ->Args({10, 10000})
    ->UseManualTime();

}  // namespace
}  // namespace latchkey

BENCHMARK_MAIN();
