// Encrypted writing through the library beside ext4's plain, buffered writing, each on a loop
// device of the same kind, alternating in one run; and how many bytes reached the device for each
// byte written. Needs root, loop devices, mkfs.ext4. Where the images lie: disk.h.
//
// sequential: a new file, a MiB at a time, one fsync. random: 4 KiB at random places of a file that
// is there, one fsync at the end. each: the same with an fsync after each. create: small new files,
// each written and fsynced.

#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "base/check.h"
#include "bench/disk.h"
#include "bench/loop.h"
#include "bench/sides.h"

namespace latchkey {
namespace {

using bench::Disk;
using bench::Ext4;
using bench::LoopDevice;
using bench::Sides;
using bench::timed;

constexpr u64 kDeviceBytes = 2 * kGiB;
constexpr u64 kSequentialBytes = 256 * kMiB;
constexpr u64 kFileBytes = 256 * kMiB;  // that random writes go to
constexpr u64 kPage = 4 * kKiB;
constexpr u64 kRandomWrites = 16384;
constexpr u64 kSyncedWrites = 2048;
constexpr u64 kSmallFiles = 512;

// Fresh bytes for every write: what is written twice stays in the cache, real data does not.
class Data {
 public:
  Data() : bytes_(64 * kMiB) {
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i < bytes_.size(); i += 8) {
      const u64 word = random();
      std::memcpy(bytes_.data() + i, &word, sizeof word);
    }
  }
  Bytes next(u64 size) {
    if (at_ + size > bytes_.size()) at_ = 0;
    at_ += size;
    return Bytes(bytes_).subspan(at_ - size, size);
  }

 private:
  std::vector<std::byte> bytes_;
  u64 at_ = 0;
};

// What both sides can do with one file at a time. Anything that fails stops the benchmark.
class Side {
 public:
  virtual ~Side() = default;
  virtual void open(const std::string& name, bool fresh) = 0;
  virtual void write(u64 offset, Bytes data) = 0;
  virtual void fsync() = 0;
  virtual void close() = 0;
  virtual void remove(const std::string& name) = 0;
  virtual void settle() = 0;  // nothing of what was done is left to be done
  virtual u64 bytes_written() const = 0;
};

class Ours final : public Side {
 public:
  Ours() {
    auto loop = LoopDevice::create(kDeviceBytes);
    LK_CHECK_MSG(loop.has_value(), "a loop device");
    loop_ = std::move(*loop);
    auto disk = Disk::create_on(loop_->path());
    LK_CHECK_MSG(disk.has_value(), "a store on the loop device");
    disk_ = std::move(*disk);
    auto volume = disk_->open({});
    LK_CHECK_MSG(volume.has_value(), "the store opens");
    volume_ = std::move(*volume);
  }
  void open(const std::string& name, bool fresh) override {
    const auto handle = volume::open_path(*volume_, Disk::kUser, path(name),
                                          {.write = true, .create = fresh, .exclusive = fresh});
    LK_CHECK(handle.has_value());
    handle_ = *handle;
  }
  void write(u64 offset, Bytes data) override {
    LK_CHECK(volume_->write(handle_, offset, data).has_value());
  }
  void fsync() override { LK_CHECK(volume_->fsync(handle_).has_value()); }
  void close() override { LK_CHECK(volume_->close_handle(handle_).has_value()); }
  void remove(const std::string& name) override {
    LK_CHECK(volume::remove_tree(*volume_, path(name)).has_value());
  }
  void settle() override { LK_CHECK(volume_->sync().has_value()); }
  u64 bytes_written() const override { return loop_->bytes_written(); }

 private:
  static std::string path(const std::string& name) { return "/vault/" + name; }

  std::unique_ptr<LoopDevice> loop_;
  std::unique_ptr<Disk> disk_;
  std::unique_ptr<volume::Volume> volume_;
  volume::HandleId handle_{};
};

class Theirs final : public Side {
 public:
  Theirs() {
    auto ext4 = Ext4::create(kDeviceBytes);
    LK_CHECK_MSG(ext4.has_value(), "an ext4 on a loop device");
    ext4_ = std::move(*ext4);
  }
  void open(const std::string& name, bool fresh) override {
    const int flags = O_RDWR | O_CLOEXEC | (fresh ? O_CREAT | O_EXCL : 0);
    file_ = engine::Fd(::open(ext4_->path(name).c_str(), flags, 0600));
    LK_CHECK(file_.valid());
  }
  void write(u64 offset, Bytes data) override {
    LK_CHECK(::pwrite(file_.get(), data.data(), data.size(), static_cast<off_t>(offset)) ==
             static_cast<ssize_t>(data.size()));
  }
  void fsync() override { LK_CHECK(::fsync(file_.get()) == 0); }
  void close() override { file_ = engine::Fd(); }
  void remove(const std::string& name) override {
    LK_CHECK(::unlink(ext4_->path(name).c_str()) == 0);
  }
  void settle() override {
    const engine::Fd root(::open(ext4_->path(".").c_str(), O_RDONLY | O_CLOEXEC));
    LK_CHECK(::syncfs(root.get()) == 0);
  }
  u64 bytes_written() const override { return ext4_->device().bytes_written(); }

 private:
  std::unique_ptr<Ext4> ext4_;
  engine::Fd file_;
};

// One of the workloads: what is not timed before it, what is, and what clears up.
struct Workload {
  u64 bytes = 0;       // written by run()
  u64 operations = 0;  // of run()
  void (*prepare)(Side& side, Data& data) = nullptr;
  void (*run)(Side& side, Data& data, std::mt19937_64& random) = nullptr;
  void (*clear)(Side& side) = nullptr;
};

void make_file(Side& side, Data& data) {
  side.open("file", true);
  for (u64 offset = 0; offset < kFileBytes; offset += kMiB) side.write(offset, data.next(kMiB));
  side.fsync();
}
void remove_file(Side& side) {
  side.close();
  side.remove("file");
}
std::string small_name(u64 number) { return fmt::format("small-{}", number); }

const Workload kSequential{kSequentialBytes, kSequentialBytes / kMiB,
                           [](Side& side, Data&) { side.open("file", true); },
                           [](Side& side, Data& data, std::mt19937_64&) {
                             for (u64 at = 0; at < kSequentialBytes; at += kMiB)
                               side.write(at, data.next(kMiB));
                             side.fsync();
                           },
                           remove_file};

const Workload kRandom{kRandomWrites * kPage, kRandomWrites, make_file,
                       [](Side& side, Data& data, std::mt19937_64& random) {
                         for (u64 i = 0; i < kRandomWrites; ++i)
                           side.write(random() % (kFileBytes / kPage) * kPage, data.next(kPage));
                         side.fsync();
                       },
                       remove_file};

const Workload kEach{kSyncedWrites * kPage, kSyncedWrites, make_file,
                     [](Side& side, Data& data, std::mt19937_64& random) {
                       for (u64 i = 0; i < kSyncedWrites; ++i) {
                         side.write(random() % (kFileBytes / kPage) * kPage, data.next(kPage));
                         side.fsync();
                       }
                     },
                     remove_file};

const Workload kCreate{kSmallFiles * kPage, kSmallFiles, [](Side&, Data&) {},
                       [](Side& side, Data& data, std::mt19937_64&) {
                         for (u64 i = 0; i < kSmallFiles; ++i) {
                           side.open(small_name(i), true);
                           side.write(0, data.next(kPage));
                           side.fsync();
                           side.close();
                         }
                       },
                       [](Side& side) {
                         for (u64 i = 0; i < kSmallFiles; ++i) side.remove(small_name(i));
                       }};

struct Turn {
  u64 ns = 0, device_bytes = 0;
};

Turn turn(Side& side, const Workload& work, u64 seed) {
  static Data data;
  std::mt19937_64 random(seed);
  work.prepare(side, data);
  side.settle();
  const u64 before = side.bytes_written();
  const u64 ns = timed([&] { work.run(side, data, random); });
  const u64 after = side.bytes_written();
  work.clear(side);
  side.settle();
  return {ns, after - before};
}

void beside_ext4(benchmark::State& state, const Workload& work) {
  if (::geteuid() != 0) {
    state.SkipWithError("loop devices and mounts need root");
    return;
  }
  Ours ours;
  Theirs theirs;
  u64 seed = 0, rounds = 0;
  std::array<u64, 2> device_bytes{};
  const auto one = [&](Side& side, std::size_t number) {
    const Turn done = turn(side, work, seed);
    device_bytes[number] += done.device_bytes;
    return done.ns;
  };
  Sides sides(state, {"latchkey", "ext4"});
  for (auto _ : state) {
    ++seed;
    ++rounds;
    if (!sides.pass({[&] { return one(ours, 0); }, [&] { return one(theirs, 1); }})) break;
  }
  const bool large = work.bytes / work.operations >= kMiB;
  sides.report(
      large ? static_cast<double>(work.bytes) / double{kMiB} : static_cast<double>(work.operations),
      large ? "mib_s" : "op_s");
  const double written = static_cast<double>(work.bytes * rounds);
  state.counters["latchkey_bytes_a_byte"] = static_cast<double>(device_bytes[0]) / written;
  state.counters["ext4_bytes_a_byte"] = static_cast<double>(device_bytes[1]) / written;
}

constexpr i64 kRounds = 7;
BENCHMARK_CAPTURE(beside_ext4, sequential, kSequential)->UseManualTime()->Iterations(kRounds);
BENCHMARK_CAPTURE(beside_ext4, random, kRandom)->UseManualTime()->Iterations(kRounds);
BENCHMARK_CAPTURE(beside_ext4, each, kEach)->UseManualTime()->Iterations(kRounds);
BENCHMARK_CAPTURE(beside_ext4, create, kCreate)->UseManualTime()->Iterations(kRounds);

}  // namespace
}  // namespace latchkey

BENCHMARK_MAIN();
