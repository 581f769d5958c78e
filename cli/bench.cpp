// bench: throughput of encrypted writeback beside the same engine in clear. Both sides run the same
// path, plan, copies and checksums; in clear only derivation and cipher are replaced by a copy.
// They alternate.

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

struct Row {
  u64 extent_bytes = 0;
  double sealed = 0, clear = 0;  // MiB/s, medians
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

class Bench {
 public:
  Bench(const Common& common, const BenchArgs& args)
      : args_(args), progress_(common, "bench"), data_(kWriteBytes) {
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
    total_ = args_.extents.size() * args_.rounds * 2 * args_.size;
    for (const u64 extent : args_.extents) {
      std::vector<double> sealed, clear;
      for (u32 round = 0; round < args_.rounds; ++round) {
        LK_TRY(const double with, measure(extent, false));
        sealed.push_back(with);
        LK_TRY(const double without, measure(extent, true));
        clear.push_back(without);
      }
      rows.push_back({extent, median(sealed), median(clear)});
    }
    return rows;
  }

 private:
  // One file, written from front to back and made durable.
  Result<double> measure(u64 extent, bool clear) {
    Env& env = system_env();
    volume::VolumeOptions options;
    options.clear_cipher = clear;
    options.extent_bytes = static_cast<u32>(extent);
    LK_TRY(Opened opened, open_volume(args_.image, options));
    volume::Volume& volume = *opened.volume;
    if (extent > u64{volume.facts().store.extent_blocks_max} * engine::kBlockBytes)
      return fail(Errc::invalid, "the store was made for shorter extents (mkfs --extent)");
    LK_TRY(const ScratchKey key, ScratchKey::create(env));
    LK_TRY(const crypto::KeyId id, key.add(volume, caller()));
    const std::string directory = scratch_directory("bench", env);
    LK_TRY(const auto inode, volume::make_directory(volume, caller(), directory));
    LK_TRYV(volume.set_policy(caller(), inode, id));
    const auto elapsed = write_file(volume, directory + "/file");
    auto removed = volume::remove_tree(volume, directory);
    auto closed = volume.close();
    if (!elapsed) return elapsed;
    LK_TRYV(removed);
    LK_TRYV(closed);
    return static_cast<double>(args_.size) / static_cast<double>(kMiB) / *elapsed;
  }

  Result<double> write_file(volume::Volume& volume, const std::string& path) {
    Env& env = system_env();
    volume::OpenFlags flags;
    flags.write = flags.create = true;
    LK_TRY(const volume::HandleId handle, volume::open_path(volume, caller(), path, flags));
    const u64 start = env.monotonic_ns();
    Result<void> result;
    for (u64 offset = 0; result && offset < args_.size; offset += kWriteBytes) {
      const u64 size = std::min(kWriteBytes, args_.size - offset);
      if (interrupted()) {
        result = fail(Errc::canceled, "interrupted; nothing of it is left there");
        break;
      }
      if (auto wrote = volume.write(handle, offset, Bytes(data_).first(size)); !wrote)
        result = std::unexpected(wrote.error());
      done_ += size;
      progress_.update(done_, total_, "B");
    }
    if (result) result = volume.fsync(handle);
    const u64 end = env.monotonic_ns();
    auto closed = volume.close_handle(handle);
    LK_TRYV(result);
    LK_TRYV(closed);
    return static_cast<double>(end - start) / 1e9;
  }

  const BenchArgs& args_;
  Progress progress_;
  std::vector<std::byte> data_;
  u64 done_ = 0, total_ = 0;
};

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
  if (!common.json) fmt::print("extent      sealed       clear   ratio\n");
  for (const Row& row : *rows) {
    const double ratio = row.sealed / row.clear;
    if (common.json)
      list.push_back({{"extent_bytes", row.extent_bytes},
                      {"sealed_mib_s", row.sealed},
                      {"clear_mib_s", row.clear},
                      {"ratio", ratio}});
    else
      fmt::print("{:8} {:6.0f} MiB/s {:6.0f} MiB/s {:6.3f}\n", format_bytes(row.extent_bytes),
                 row.sealed, row.clear, ratio);
  }
  if (common.json)
    print_json(common, {{"rows", list}, {"rounds", args.rounds}, {"size_bytes", args.size}});
  return Exit::ok;
}

}  // namespace latchkey::cli
