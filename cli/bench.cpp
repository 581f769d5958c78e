// bench: throughput of encrypted writeback, and of reading it back from the device, beside the same
// engine in clear. Both sides run the same path, plan, copies and checksums; in clear only
// derivation and cipher are replaced by a copy. They alternate.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "cli/interrupt.h"
#include "cli/load.h"

namespace latchkey::cli {

namespace {

constexpr u64 kWriteBytes = kMiB;

// Of one round, or the medians of all: MiB/s.
struct Rates {
  double write = 0, read = 0;
};

struct Row {
  u64 extent_bytes = 0;
  Rates sealed, clear;
  keymgr::SlotCounters slots;  // of all sealed rounds
};

Rates median(const std::vector<Rates>& rounds) {
  const auto of = [&](double Rates::* which) {
    std::vector<double> values;
    values.reserve(rounds.size());
    for (const Rates& round : rounds) values.push_back(round.*which);
    std::ranges::sort(values);
    return values[values.size() / 2];
  };
  return {of(&Rates::write), of(&Rates::read)};
}

class Bench {
 public:
  Bench(const Common& common, const BenchArgs& args)
      : args_(args), progress_(common, "bench"), data_(kWriteBytes), read_(kWriteBytes) {
    // Incompressible and not of the cache's liking: a fresh megabyte a megabyte would measure the
    // generator.
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i < data_.size(); i += 8) {
      const u64 word = random();
      std::memcpy(data_.data() + i, &word, 8);
    }
  }

  Result<std::vector<Row>> run() {
    std::vector<Row> rows;
    total_ = args_.extents.size() * args_.rounds * 4 * args_.size;
    for (const u64 extent : args_.extents) {
      Row row;
      row.extent_bytes = extent;
      std::vector<Rates> sealed, clear;
      for (u32 round = 0; round < args_.rounds; ++round) {
        LK_TRY(const Rates with, measure(row, false));
        sealed.push_back(with);
        LK_TRY(const Rates without, measure(row, true));
        clear.push_back(without);
      }
      row.sealed = median(sealed);
      row.clear = median(clear);
      rows.push_back(row);
    }
    return rows;
  }

 private:
  struct Scratch {
    ScratchKey key;
    std::string directory;
    volume::VolumeOptions options;
  };

  // One file, written from front to back and made durable; then read by a volume that was opened
  // anew, so that nothing of it is in memory.
  Result<Rates> measure(Row& row, bool clear) {
    Scratch scratch{ScratchKey::create(system_env()), scratch_directory("bench", system_env()), {}};
    scratch.options.clear_cipher = clear;
    scratch.options.extent_bytes = static_cast<u32>(row.extent_bytes);
    scratch.options.key_slots = args_.key_slots;
    Rates rates;
    auto wrote = write_phase(scratch, rates);
    keymgr::SlotCounters slots;
    auto read = wrote ? read_phase(scratch, rates, slots) : std::move(wrote);
    LK_TRYV(read);
    if (!clear) {
      row.slots.capacity = slots.capacity;
      row.slots.hits += slots.hits;
      row.slots.misses += slots.misses;
      row.slots.evictions += slots.evictions;
    }
    return rates;
  }

  Result<void> write_phase(const Scratch& scratch, Rates& rates) {
    LK_TRY(Opened opened, open_volume(args_.image, scratch.options));
    volume::Volume& volume = *opened.volume;
    if (scratch.options.extent_bytes >
        u64{volume.facts().store.extent_blocks_max} * engine::kBlockBytes)
      return fail(Errc::invalid, "the store was made for shorter extents (mkfs --extent)");
    LK_TRY(const crypto::KeyId id, scratch.key.add(volume, caller()));
    LK_TRY(const auto inode, volume::make_directory(volume, caller(), scratch.directory));
    LK_TRYV(volume.set_policy(caller(), inode, id));
    auto rate = write_file(volume, scratch.directory + "/file");
    Result<void> result;
    if (rate)
      rates.write = *rate;
    else
      result = std::unexpected(rate.error());
    if (!result)
      if (auto removed = volume::remove_tree(volume, scratch.directory); !removed) return removed;
    auto closed = volume.close();
    return result ? closed : result;
  }

  Result<void> read_phase(const Scratch& scratch, Rates& rates, keymgr::SlotCounters& slots) {
    LK_TRY(Opened opened, open_volume(args_.image, scratch.options));
    volume::Volume& volume = *opened.volume;
    LK_TRYV(scratch.key.add(volume, caller()));
    auto rate = read_file(volume, scratch.directory + "/file");
    slots = volume.facts().slots;
    auto removed = volume::remove_tree(volume, scratch.directory);
    auto closed = volume.close();
    LK_TRY(rates.read, std::move(rate));
    LK_TRYV(removed);
    return closed;
  }

  Result<double> write_file(volume::Volume& volume, const std::string& path) {
    LK_TRY(const volume::HandleId handle,
           volume::open_path(volume, caller(), path, {.write = true, .create = true}));
    const u64 start = system_env().monotonic_ns();
    auto result = by_megabytes([&](u64 offset, u64 size) {
      return volume.write(handle, offset, Bytes(data_).first(size));
    });
    if (result) result = volume.fsync(handle);
    return ended(volume, handle, start, result);
  }

  Result<double> read_file(volume::Volume& volume, const std::string& path) {
    LK_TRY(const volume::HandleId handle, volume::open_path(volume, caller(), path, {}));
    const u64 start = system_env().monotonic_ns();
    auto result = by_megabytes([&](u64 offset, u64 size) -> Result<void> {
      LK_TRY(const u64 got, volume.read(handle, offset, MutableBytes(read_).first(size)));
      if (got != size || std::memcmp(read_.data(), data_.data(), size) != 0)
        return fail(Errc::damaged, "the file does not read as it was written");
      return {};
    });
    return ended(volume, handle, start, result);
  }

  template <class Fn>
  Result<void> by_megabytes(const Fn& fn) {
    for (u64 offset = 0; offset < args_.size; offset += kWriteBytes) {
      const u64 size = std::min(kWriteBytes, args_.size - offset);
      if (interrupted()) return fail(Errc::canceled, "interrupted; nothing of it is left there");
      LK_TRYV(fn(offset, size));
      done_ += size;
      progress_.update(done_, total_, "B");
    }
    return {};
  }

  // MiB/s since `start`.
  Result<double> ended(volume::Volume& volume, volume::HandleId handle, u64 start,
                       const Result<void>& result) {
    const u64 end = system_env().monotonic_ns();
    auto closed = volume.close_handle(handle);
    LK_TRYV(result);
    LK_TRYV(closed);
    return static_cast<double>(args_.size) / static_cast<double>(kMiB) * 1e9 /
           static_cast<double>(end - start);
  }

  const BenchArgs& args_;
  Progress progress_;
  std::vector<std::byte> data_, read_;
  u64 done_ = 0, total_ = 0;
};

nlohmann::json describe_row(const Row& row) {
  return {{"extent_bytes", row.extent_bytes},
          {"sealed_mib_s", row.sealed.write},
          {"clear_mib_s", row.clear.write},
          {"ratio", row.sealed.write / row.clear.write},
          {"read_sealed_mib_s", row.sealed.read},
          {"read_clear_mib_s", row.clear.read},
          {"read_ratio", row.sealed.read / row.clear.read},
          {"key_slots", describe_slots(row.slots)}};
}

}  // namespace

Exit run_bench(const Common& common, const BenchArgs& args) {
  if (args.rounds == 0 || args.size == 0)
    return report_usage(common, "bench", "needs at least one round and one byte");
  for (const u64 extent : args.extents)
    if (extent == 0 || extent % engine::kBlockBytes != 0)
      return report_usage(common, "bench", "an extent is a multiple of 4 KiB");
  const InterruptGuard guard;
  auto rows = Bench(common, args).run();
  if (!rows) return report_image(common, args.image, rows.error());
  nlohmann::json list = nlohmann::json::array();
  if (!common.json)
    fmt::print("{:27}{:28}{}\n{:8}  {:>8}{:>8}{:>8}   {:>8}{:>8}{:>8}   {:>9}{:>9}{:>9}\n", "",
               "write and fsync, MiB/s", "read, MiB/s          key slots", "extent", "sealed",
               "clear", "ratio", "sealed", "clear", "ratio", "hits", "misses", "evicted");
  for (const Row& row : *rows) {
    if (common.json)
      list.push_back(describe_row(row));
    else
      fmt::print("{:8}  {:8.0f}{:8.0f}{:8.3f}   {:8.0f}{:8.0f}{:8.3f}   {:9}{:9}{:9}\n",
                 format_bytes(row.extent_bytes), row.sealed.write, row.clear.write,
                 row.sealed.write / row.clear.write, row.sealed.read, row.clear.read,
                 row.sealed.read / row.clear.read, row.slots.hits, row.slots.misses,
                 row.slots.evictions);
  }
  if (common.json)
    print_json(common, {{"rows", list}, {"rounds", args.rounds}, {"size_bytes", args.size}});
  return Exit::ok;
}

}  // namespace latchkey::cli
