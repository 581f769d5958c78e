// torture: writers append to files of their own, some fsync, while a remover removes the key and
// adds it again. Every acknowledged write call is remembered; at the end the store is closed,
// opened again from the device, and each is looked for. All counts are of write calls; an attempt
// whose open was refused counts as a refused write call.

#include <fmt/format.h>

#include <atomic>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "cli/interrupt.h"
#include "cli/load.h"

namespace latchkey::cli {

namespace {

constexpr u32 kFilesAWriter = 4;
constexpr u64 kWriteBytesMax = 48 * kKiB;

struct Acknowledged {
  u64 offset = 0;
  u32 size = 0;
  u32 seed = 0;
};

// One file of one writer.
struct File {
  std::string name;
  std::vector<Acknowledged> writes;
  bool loss_told = false;  // fsync or close of a handle said so
};

struct Counts {
  u64 acknowledged = 0, acknowledged_after_removal = 0, refused = 0, removals = 0;
  u64 reported_lost = 0, silently_lost = 0;
};

void fill(MutableBytes bytes, u32 seed) {
  std::mt19937 random(seed);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
}

// Shared by the threads of one run.
struct Arena {
  volume::Volume& volume;
  volume::InodeNumber directory = 0;
  std::atomic<bool> stop{false};
  std::atomic<bool> removed{false};  // between a removal and the next add
  std::atomic<bool> broken{false};   // a writer gave up
  std::atomic<u64> bytes_told{0};    // lost, by removal reports
};

class Writer {
 public:
  Writer(Arena& arena, u32 number, u64 seed) : arena_(arena), random_(seed * 1000 + number) {
    for (u32 i = 0; i < kFilesAWriter; ++i) {
      files.emplace_back();
      files.back().name = fmt::format("writer-{}-file-{}", number, i);
    }
  }

  std::vector<File> files;
  u64 acknowledged = 0, after_removal = 0, refused = 0;
  std::optional<Error> broken;  // anything but a refusal or a told loss

  void run() {
    while (!arena_.stop && !broken) visit(files[random_() % files.size()]);
    if (broken) arena_.broken = true;
  }

 private:
  // Opens a file, appends for a while, closes it.
  void visit(File& file) {
    volume::OpenFlags flags;
    flags.write = flags.create = true;
    auto handle =
        arena_.volume.open_file(caller(), arena_.directory, file.name, flags, 0600, file.name);
    if (!handle) {
      if (handle.error().code == Errc::no_key || handle.error().code == Errc::busy)
        ++refused;
      else
        broken = handle.error();
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      return;
    }
    const u32 writes = 1 + static_cast<u32>(random_() % 40);
    for (u32 i = 0; i < writes && !arena_.stop; ++i)
      if (!append(file, *handle)) break;
    if (auto closed = arena_.volume.close_handle(*handle); !closed) told(file, closed.error());
  }

  bool append(File& file, volume::HandleId handle) {
    Acknowledged write;
    write.size = 1 + static_cast<u32>(random_() % kWriteBytesMax);
    write.seed = static_cast<u32>(random_());
    const MutableBytes data = MutableBytes(buffer_).first(write.size);
    fill(data, write.seed);
    const bool removed_before = arena_.removed;
    auto wrote = arena_.volume.append(handle, data);
    if (!wrote) {
      if (wrote.error().code == Errc::no_key)
        ++refused;
      else
        told(file, wrote.error());
      return false;
    }
    write.offset = *wrote;
    file.writes.push_back(write);
    ++acknowledged;
    if (removed_before && arena_.removed) ++after_removal;
    if (random_() % 4 == 0)
      if (auto synced = arena_.volume.fsync(handle); !synced) {
        told(file, synced.error());
        return false;
      }
    if (random_() % 8 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    return true;
  }

  void told(File& file, const Error& error) {
    if (error.code == Errc::no_key || error.code == Errc::io)
      file.loss_told = true;
    else
      broken = error;
  }

  Arena& arena_;
  std::mt19937_64 random_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kWriteBytesMax + 1);
};

class Torture {
 public:
  Torture(const Common& common, const TortureArgs& args, keymgr::RemovalMode mode)
      : common_(common), args_(args), mode_(mode) {}

  Result<Counts> run() {
    Env& env = system_env();
    LK_TRY(const ScratchKey key, ScratchKey::create(env));
    const std::string directory = scratch_directory("torture", env);
    for (u32 i = 0; i < args_.writers; ++i) writers_.push_back(nullptr);
    Result<void> wrote;
    {
      LK_TRY(Opened opened, open_volume(args_.image, {}));
      wrote = write_under_removal(*opened.volume, key, directory);
      auto closed = opened.volume->close();
      if (wrote) wrote = closed;
    }
    // Counting, from the device and never from the cache.
    LK_TRY(Opened opened, open_volume(args_.image, {}));
    LK_TRYV(key.add(*opened.volume, caller()));
    if (wrote) wrote = count(*opened.volume, directory);
    auto removed = volume::remove_tree(*opened.volume, directory);
    auto closed = opened.volume->close();
    LK_TRYV(wrote);
    LK_TRYV(removed);
    LK_TRYV(closed);
    return counts_;
  }

 private:
  Result<void> write_under_removal(volume::Volume& volume, const ScratchKey& key,
                                   const std::string& directory) {
    LK_TRY(const crypto::KeyId id, key.add(volume, caller()));
    LK_TRY(const auto inode, volume::make_directory(volume, caller(), directory));
    LK_TRYV(volume.set_policy(caller(), inode, id));
    Arena arena{volume, inode};
    std::vector<std::thread> threads;
    for (u32 i = 0; i < args_.writers; ++i) {
      writers_[i] = std::make_unique<Writer>(arena, i, args_.seed);
      threads.emplace_back([writer = writers_[i].get()] { writer->run(); });
    }
    const auto removing = remove_and_add(arena, key, id);
    arena.stop = true;
    for (std::thread& thread : threads) thread.join();
    LK_TRYV(removing);
    bytes_told_ = arena.bytes_told;
    for (const auto& writer : writers_) {
      if (writer->broken) return std::unexpected(*writer->broken);
      counts_.acknowledged += writer->acknowledged;
      counts_.acknowledged_after_removal += writer->after_removal;
      counts_.refused += writer->refused;
    }
    return {};
  }

  Result<void> remove_and_add(Arena& arena, const ScratchKey& key, const crypto::KeyId& id) {
    Env& env = system_env();
    std::mt19937_64 random(args_.seed);
    Progress progress(common_, "torture");
    const u64 start = env.monotonic_ns();
    const u64 duration = u64{args_.seconds} * 1'000'000'000;
    while (env.monotonic_ns() - start < duration && !arena.broken) {
      if (interrupted()) return fail(Errc::canceled, "interrupted; nothing of it is left there");
      std::this_thread::sleep_for(std::chrono::milliseconds(5 + random() % 60));
      auto report = arena.volume.remove_key(caller(), id, mode_);
      if (!report) return std::unexpected(report.error());
      arena.removed = true;
      arena.bytes_told += report->bytes_lost;
      ++counts_.removals;
      std::this_thread::sleep_for(std::chrono::milliseconds(5 + random() % 60));
      arena.removed = false;
      LK_TRYV(key.add(arena.volume, caller()));
      progress.update((env.monotonic_ns() - start) / 1'000'000'000, args_.seconds, "seconds");
    }
    return {};
  }

  Result<void> count(volume::Volume& volume, const std::string& directory) {
    std::vector<std::byte> read(kWriteBytesMax + 1), expected(kWriteBytesMax + 1);
    u64 bytes_missing = 0;
    for (const auto& writer : writers_) {
      for (const File& file : writer->files) {
        if (file.writes.empty()) continue;
        LK_TRY(const auto handle,
               volume::open_path(volume, caller(), join_path(directory, file.name), {}));
        for (const Acknowledged& write : file.writes) {
          const MutableBytes got = MutableBytes(read).first(write.size);
          const MutableBytes want = MutableBytes(expected).first(write.size);
          fill(want, write.seed);
          auto size = volume.read(handle, write.offset, got);
          if (size && *size == write.size && std::memcmp(got.data(), want.data(), write.size) == 0)
            continue;
          bytes_missing += write.size;
          // Told by its handle, or within what the removals' reports counted.
          if (file.loss_told || bytes_missing <= bytes_told_)
            ++counts_.reported_lost;
          else
            ++counts_.silently_lost;
        }
        LK_TRYV(volume.close_handle(handle));
      }
    }
    return {};
  }

  static std::string join_path(const std::string& directory, const std::string& name) {
    return directory + "/" + name;
  }

  const Common& common_;
  const TortureArgs& args_;
  const keymgr::RemovalMode mode_;
  std::vector<std::unique_ptr<Writer>> writers_;
  Counts counts_;
  u64 bytes_told_ = 0;
};

}  // namespace

Exit run_torture(const Common& common, const TortureArgs& args) {
  const auto mode = keymgr::parse_removal_mode(args.mode);
  if (!mode) return report_usage(common, args.mode, "is not a removal mode");
  if (!keymgr::removal_row(*mode).implemented)
    return report_error(common, args.mode,
                        Error{Errc::unsupported, "this removal mode does not work yet"});
  const InterruptGuard guard;
  auto counts = Torture(common, args, *mode).run();
  if (!counts) return report_image(common, args.image, counts.error());
  if (common.json)
    print_json(common, {{"acknowledged", counts->acknowledged},
                        {"acknowledged_after_removal", counts->acknowledged_after_removal},
                        {"refused", counts->refused},
                        {"removals", counts->removals},
                        {"reported_lost", counts->reported_lost},
                        {"silently_lost", counts->silently_lost}});
  else
    fmt::print(
        "{} write calls acknowledged, {} of them after a removal; {} refused; {} removals;\n"
        "{} reported lost, {} silently lost\n",
        counts->acknowledged, counts->acknowledged_after_removal, counts->refused, counts->removals,
        counts->reported_lost, counts->silently_lost);
  if (counts->silently_lost != 0) return Exit::integrity;
  if (*mode == keymgr::RemovalMode::soft && counts->acknowledged_after_removal == 0)
    return Exit::nothing_exercised;
  return Exit::ok;
}

}  // namespace latchkey::cli
