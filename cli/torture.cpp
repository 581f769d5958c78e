// torture: writers write to files of their own, some fsync, while a remover removes the key and
// adds it again. A writer appends until the writers together have filled their share of the store,
// then it overwrites its own records in place. Every acknowledged write call is remembered; at the
// end the store is closed, opened again from the device, and each is looked for (torture_ledger.h).
// All counts are of write calls; an attempt whose open was refused counts as a refused write call.
// One that found no space is tried again later and not counted.

#include <fmt/format.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/wait.h"
#include "cli/interrupt.h"
#include "cli/load.h"
#include "cli/torture_ledger.h"

namespace latchkey::cli {

namespace {

constexpr u32 kFilesAWriter = 4;
constexpr u64 kMillisecond = 1'000'000;  // in ns
// The rest is for blocks that a commit must give back first, and for what is there already.
constexpr u64 kShareOfSpace = 4;
constexpr u64 kBudgetBytesMin = kMiB;

struct Counts {
  u64 acknowledged = 0, acknowledged_after_removal = 0, refused = 0, removals = 0;
  u64 reported_lost = 0, silently_lost = 0;
};

// Shared by the threads of one run.
struct Arena {
  volume::Volume& volume;
  volume::InodeId directory;
  std::atomic<u64> append_bytes;  // that may still be appended
  std::atomic<bool> stop{false};
  std::atomic<bool> removed{false};  // between a removal and the next add
  std::atomic<bool> broken{false};   // a writer gave up
  std::atomic<u64> bytes_told{0};    // lost, by removal reports

  bool may_append(u64 size) {
    u64 left = append_bytes;
    while (left >= size && !append_bytes.compare_exchange_weak(left, left - size)) {
    }
    return left >= size;
  }
};

class Writer {
 public:
  Writer(Arena& arena, u32 number, u64 seed) : arena_(arena), random_(seed * 1000 + number) {
    for (u32 i = 0; i < kFilesAWriter; ++i) {
      files.emplace_back();
      files.back().name = fmt::format("writer-{}-file-{}", number, i);
    }
  }

  std::vector<TortureFile> files;
  u64 acknowledged = 0, after_removal = 0, refused = 0;
  std::optional<Error> broken;  // anything but a refusal or a told loss

  void run() {
    while (!arena_.stop && !broken) visit(files[random_() % files.size()]);
    if (broken) arena_.broken = true;
  }

 private:
  // Opens a file, writes for a while, closes it.
  void visit(TortureFile& file) {
    volume::OpenFlags flags;
    flags.write = flags.create = true;
    auto handle =
        arena_.volume.open_file(caller(), arena_.directory, file.name, flags, 0600, file.name);
    if (!handle) {
      if (handle.error().code == Errc::no_key || handle.error().code == Errc::busy)
        ++refused;
      else if (handle.error().code != Errc::no_space)
        broken = handle.error();
      pause_for(kMillisecond / 5);
      return;
    }
    const u32 writes = 1 + static_cast<u32>(random_() % 40);
    for (u32 i = 0; i < writes && !arena_.stop; ++i)
      if (!write(file, *handle)) break;
    if (auto closed = arena_.volume.close_handle(*handle); !closed) told(file, closed.error());
  }

  bool write(TortureFile& file, volume::HandleId handle) {
    const u32 size = 1 + static_cast<u32>(random_() % kTortureWriteBytesMax);
    const auto seed = static_cast<u32>(random_());
    const bool removed_before = arena_.removed;
    Result<void> wrote;
    if (arena_.may_append(size))
      wrote = append(file, handle, size, seed);
    else if (!file.records.empty())
      wrote = overwrite(file.records[random_() % file.records.size()], handle, seed);
    else
      return false;  // of another file
    if (!wrote) {
      if (wrote.error().code == Errc::no_space)
        pause_for(5 * kMillisecond);
      else if (wrote.error().code == Errc::no_key)
        ++refused;
      else
        told(file, wrote.error());
      return false;
    }
    ++acknowledged;
    if (removed_before && arena_.removed) ++after_removal;
    if (random_() % 4 == 0)
      if (auto synced = arena_.volume.fsync(handle); !synced) {
        told(file, synced.error());
        return false;
      }
    if (random_() % 8 == 0) pause_for(2 * kMillisecond);
    return true;
  }

  Result<void> append(TortureFile& file, volume::HandleId handle, u32 size, u32 seed) {
    const MutableBytes data = MutableBytes(buffer_).first(size);
    fill_from_seed(data, seed);
    LK_TRY(const u64 offset, arena_.volume.append(handle, data));
    file.appended(offset, size, seed);
    return {};
  }

  Result<void> overwrite(TortureRecord& record, volume::HandleId handle, u32 seed) {
    const MutableBytes data = MutableBytes(buffer_).first(record.size);
    fill_from_seed(data, seed);
    auto wrote = arena_.volume.write(handle, record.offset, data);
    if (!wrote) {
      TortureFile::overwrite_refused(record, seed);
      return std::unexpected(wrote.error());
    }
    TortureFile::overwritten(record, seed);
    return {};
  }

  void told(TortureFile& file, const Error& error) {
    if (error.code == Errc::no_key || error.code == Errc::io)
      file.loss_told = true;
    else
      broken = error;
  }

  Arena& arena_;
  std::mt19937_64 random_;
  std::vector<std::byte> buffer_ = std::vector<std::byte>(kTortureWriteBytesMax);
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
    if (counts_.silently_lost != 0) return counts_;  // a damaged store may refuse the rest, too
    LK_TRYV(removed);
    LK_TRYV(closed);
    return counts_;
  }

 private:
  Result<void> write_under_removal(volume::Volume& volume, const ScratchKey& key,
                                   const std::string& directory) {
    const u64 budget = volume.facts().space.blocks_available * engine::kBlockBytes / kShareOfSpace;
    if (budget < kBudgetBytesMin) return fail(Errc::no_space, "the store has too little room");
    LK_TRY(const crypto::KeyId id, key.add(volume, caller()));
    LK_TRY(const auto inode, volume::make_directory(volume, caller(), directory));
    LK_TRYV(volume.set_policy(caller(), inode, id));
    Arena arena{volume, inode, budget};
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
      pause_for((5 + random() % 60) * kMillisecond);
      auto report = arena.volume.remove_key(caller(), id, mode_);
      if (!report) return std::unexpected(report.error());
      arena.removed = true;
      arena.bytes_told += report->bytes_lost;
      ++counts_.removals;
      pause_for((5 + random() % 60) * kMillisecond);
      arena.removed = false;
      LK_TRYV(key.add(arena.volume, caller()));
      progress.update((env.monotonic_ns() - start) / 1'000'000'000, args_.seconds, "seconds");
    }
    return {};
  }

  Result<void> count(volume::Volume& volume, const std::string& directory) {
    TortureCount count(volume, caller(), bytes_told_);
    for (const auto& writer : writers_)
      for (const TortureFile& file : writer->files)
        LK_TRYV(count.look_for(file, directory + "/" + file.name));
    counts_.reported_lost = count.reported_lost;
    counts_.silently_lost = count.silently_lost;
    return {};
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
  const bool goes_on = keymgr::removal_row(*mode).later_io == keymgr::LaterIo::succeeds;
  if (goes_on && counts->acknowledged_after_removal == 0) return Exit::nothing_exercised;
  return Exit::ok;
}

}  // namespace latchkey::cli
