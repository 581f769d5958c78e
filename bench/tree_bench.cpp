// What the trees cost by size: files in one directory, extents of one file.
//
// Each line grows what the line before it left, so lines are to be run in order and together. On a
// loop device (as root; else a file) up to a million, on a memory device that drops file data up to
// ten million. The store is opened anew before what is read is measured: its cache is then cold.
// LATCHKEY_BENCH_TREE_MAX bounds the sizes. bench/plot.py draws what is printed.

#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "base/check.h"
#include "bench/disk.h"
#include "bench/loop.h"
#include "bench/memory_device.h"
#include "bench/sides.h"

namespace latchkey {
namespace {

using bench::Disk;
using bench::timed;

constexpr u64 kPage = 4 * kKiB;
constexpr u64 kSamples = 2000;
constexpr u64 kCommits = 100;

const std::vector<std::byte>& page() {
  static const std::vector<std::byte> bytes(kPage, std::byte{0x5a});
  return bytes;
}

// A device of either kind with a store on it. What fails stops the benchmark.
class Store {
 public:
  explicit Store(bool memory) : memory_(memory) {
    if (memory) {
      auto device = bench::MemoryDevice::create(64 * kGiB, page());
      LK_CHECK_MSG(device.has_value(), "a memory device");
      kept_ = device->get();
      make(Disk::create_on(std::move(*device)));
    } else if (::geteuid() == 0) {
      auto loop = bench::LoopDevice::create(kDeviceBytes);
      LK_CHECK_MSG(loop.has_value(), "a loop device");
      loop_ = std::move(*loop);
      make(Disk::create_on(loop_->path()));
    } else {
      make(Disk::create(kDeviceBytes));
    }
    reopen();
  }
  ~Store() { LK_CHECK(volume_->close().has_value()); }
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  void reopen() {
    if (volume_ != nullptr) LK_CHECK(volume_->close().has_value());
    volume::VolumeOptions options;
    options.extent_bytes = kPage;  // as many extents as blocks
    options.clear_cipher = memory_;
    auto volume = disk_->open(options);
    LK_CHECK_MSG(volume.has_value(), "the store opens");
    volume_ = std::move(*volume);
  }
  volume::Volume& volume() { return *volume_; }
  // 0 where nobody counts.
  u64 bytes_written() const {
    return kept_ != nullptr   ? kept_->bytes_written()
           : loop_ != nullptr ? loop_->bytes_written()
                              : 0;
  }

 private:
  static constexpr u64 kDeviceBytes = 7 * kGiB;

  void make(Result<std::unique_ptr<Disk>> disk) {
    LK_CHECK_MSG(disk.has_value(), "a store");
    disk_ = std::move(*disk);
  }

  const bool memory_;
  std::unique_ptr<bench::LoopDevice> loop_;
  bench::MemoryDevice* kept_ = nullptr;  // the disk's own
  std::unique_ptr<Disk> disk_;
  std::unique_ptr<volume::Volume> volume_;
};

struct Counter {
  const char* name;
  double value;
};
using Counters = std::vector<Counter>;

double us_each(u64 ns, u64 count) {
  return static_cast<double>(ns) / 1e3 / static_cast<double>(count);
}

// Something that grows.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual void grow_to(u64 size) = 0;
  virtual Counters measure() = 0;
};

class Files final : public Subject {
 public:
  explicit Files(bool memory) : store_(memory) { find(); }

  void grow_to(u64 size) override {
    for (; size_ < size; ++size_) make(size_);
    LK_CHECK(store_.volume().sync().has_value());
  }
  Counters measure() override {
    store_.reopen();
    find();
    std::mt19937_64 random(size_);
    volume::Volume& volume = store_.volume();
    const u64 lookup = timed([&] {
      for (u64 i = 0; i < kSamples; ++i) {
        const auto found = volume.lookup(directory_, name(random() % size_));
        LK_CHECK(found.has_value() && volume.stat(*found).has_value());
      }
    });
    const u64 list = timed([&] { LK_CHECK(volume.read_directory(directory_)->size() == size_); });
    const u64 remove = timed([&] {
      for (u64 i = size_ - kSamples / 2; i < size_; ++i)
        LK_CHECK(volume.unlink(directory_, name(i)).has_value());
      LK_CHECK(volume.sync().has_value());
    });
    for (u64 i = size_ - kSamples / 2; i < size_; ++i) make(i);
    const u64 before = store_.bytes_written();
    const u64 commits = timed([&] {
      for (u64 i = 0; i < kCommits; ++i) {
        LK_CHECK(volume.unlink(directory_, name(i)).has_value());
        make(i);
        LK_CHECK(volume.sync().has_value());
      }
    });
    const u64 written = store_.bytes_written() - before;
    return {{"lookup_us", us_each(lookup, kSamples)},
            {"list_us", us_each(list, size_)},
            {"remove_us", us_each(remove, kSamples / 2)},
            {"commit_us", us_each(commits, kCommits)},
            {"commit_bytes", static_cast<double>(written) / double{kCommits}}};
  }

 private:
  static std::string name(u64 number) { return fmt::format("file-{:08}", number); }
  void find() { directory_ = volume::resolve(store_.volume(), "/vault").value(); }
  void make(u64 number) {
    const auto made = store_.volume().make_node(Disk::kUser, directory_, name(number),
                                                {.kind = volume::FileKind::regular, .mode = 0600});
    LK_CHECK(made.has_value());
  }

  Store store_;
  volume::InodeId directory_;
  u64 size_ = 0;
};

class Extents final : public Subject {
 public:
  explicit Extents(bool memory) : store_(memory) { open(true); }

  void grow_to(u64 size) override {
    for (; size_ < size; ++size_) write(size_);
    LK_CHECK(store_.volume().fsync(handle_).has_value());
  }
  Counters measure() override {
    LK_CHECK(store_.volume().close_handle(handle_).has_value());
    store_.reopen();
    open(false);
    volume::Volume& volume = store_.volume();
    std::mt19937_64 random(size_);
    std::vector<std::byte> into(kPage);
    const u64 read = timed([&] {
      for (u64 i = 0; i < kSamples; ++i)
        LK_CHECK(volume.read(handle_, random() % size_ * kPage, into).value() == kPage);
    });
    const u64 overwrite = timed([&] {
      for (u64 i = 0; i < kSamples; ++i) write(random() % size_);
      LK_CHECK(volume.fsync(handle_).has_value());
    });
    const u64 before = store_.bytes_written();
    const u64 synced = timed([&] {
      for (u64 i = 0; i < kCommits; ++i) {
        write(random() % size_);
        LK_CHECK(volume.sync().has_value());
      }
    });
    const u64 written = store_.bytes_written() - before;
    return {{"read_us", us_each(read, kSamples)},
            {"overwrite_us", us_each(overwrite, kSamples)},
            {"commit_us", us_each(synced, kCommits)},
            {"commit_bytes", static_cast<double>(written) / double{kCommits}}};
  }

 private:
  void open(bool fresh) {
    handle_ = volume::open_path(store_.volume(), Disk::kUser, "/vault/file",
                                {.write = true, .create = fresh})
                  .value();
  }
  void write(u64 block) {
    LK_CHECK(store_.volume().write(handle_, block * kPage, page()).has_value());
  }

  Store store_;
  volume::HandleId handle_{};
  u64 size_ = 0;
};

u64 largest() {
  const std::string chosen = bench::setting("LATCHKEY_BENCH_TREE_MAX");
  return chosen.empty() ? 10'000'000 : std::strtoull(chosen.c_str(), nullptr, 10);
}

// The growth itself is what is timed: each line's time is that of one step of it.
void tree(benchmark::State& state, const std::shared_ptr<std::unique_ptr<Subject>>& subject,
          const std::function<std::unique_ptr<Subject>()>& create, u64 size, u64 steps, bool last) {
  if (*subject == nullptr) *subject = create();
  u64 ns = 0;
  for (auto _ : state) {
    ns = timed([&] { (*subject)->grow_to(size); });
    state.SetIterationTime(static_cast<double>(ns) / 1e9);
  }
  state.counters["grow_us"] = us_each(ns, steps);
  for (const Counter& counter : (*subject)->measure()) state.counters[counter.name] = counter.value;
  if (last) subject->reset();
}

template <class Kind>
void add(const std::string& name, bool memory) {
  const u64 most = std::min<u64>(largest(), memory ? 10'000'000 : 1'000'000);
  const auto subject = std::make_shared<std::unique_ptr<Subject>>();
  for (u64 size = 10'000, before = 0; size <= most; before = size, size *= 10) {
    const bool last = size * 10 > most;
    benchmark::RegisterBenchmark(
        fmt::format("{}/{}/size:{}", name, memory ? "memory" : "loop", size).c_str(),
        [=](benchmark::State& state) {
          tree(
              state, subject, [memory] { return std::make_unique<Kind>(memory); }, size,
              size - before, last);
        })
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const bool memory : {false, true}) {
    latchkey::add<latchkey::Files>("files_in_a_directory", memory);
    latchkey::add<latchkey::Extents>("extents_in_a_file", memory);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
