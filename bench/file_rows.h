#pragma once
// The workloads that file systems are compared by: for each what is there before, what is timed,
// and what is left to be removed. Sizes are one system's share of a device of 1 GiB.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "bench/file_sides.h"

namespace latchkey::bench {

constexpr u64 kFileBytes = 256 * kMiB;
constexpr u64 kRandomPages = 16384;
constexpr u64 kSyncedWrites = 1024;
constexpr u64 kSyncedFiles = 512;
constexpr u64 kSmallFiles = 4096;
constexpr u32 kDepth = 32;

struct FileNeeds {
  bool cold = false;  // the system is mounted anew between prepare() and run()
  bool direct = false;
  bool copies = false;
};
struct FileRow {
  std::string_view name;
  u64 bytes = 0;       // that run() moves
  u64 operations = 0;  // of run(); a row of 1 MiB each is told in bytes
  void (*prepare)(FileSide& side, Data& data) = nullptr;
  void (*run)(FileSide& side, Data& data) = nullptr;
  void (*clear)(FileSide& side) = nullptr;
  FileNeeds needs{};
};

namespace rows {

inline void nothing(FileSide&, Data&) {}
inline void make_file(FileSide& side, Data& data) {
  side.open("file", {.fresh = true});
  for (u64 at = 0; at < kFileBytes; at += kMiB) side.write(at, data.next(kMiB));
  side.fsync();
  side.close();
}
inline void remove_file(FileSide& side) { side.remove("file"); }

// The same places for every system and round.
inline std::vector<u64> places(u64 count) {
  std::mt19937_64 random(7);
  std::vector<u64> offsets(count);
  for (u64& offset : offsets) offset = random() % (kFileBytes / kPage) * kPage;
  return offsets;
}

inline void read_file(FileSide& side, Data& data) {
  side.open("file", {.write = false});
  for (u64 at = 0; at < kFileBytes; at += kMiB) side.read(at, data.next(kMiB));
  side.close();
}
inline void write_direct(FileSide& side, Data& data) {
  side.open("file", {.fresh = true, .direct = true});
  for (u64 at = 0; at < kFileBytes; at += kMiB) side.write(at, data.next(kMiB));
  side.fsync();
  side.close();
}
template <FileSide::Way kWay>
void pages_direct(FileSide& side, Data& data) {
  side.open("file", {.direct = true, .write = kWay == FileSide::Way::write});
  side.pages(kWay, places(kRandomPages), kDepth, data);
  if (kWay == FileSide::Way::write) side.fsync();
  side.close();
}
inline void write_pages(FileSide& side, Data& data) {
  side.open("file", {});
  for (const u64 offset : places(kRandomPages)) side.write(offset, data.next(kPage));
  side.fsync();
  side.close();
}
inline void write_pages_synced(FileSide& side, Data& data) {
  side.open("file", {});
  for (const u64 offset : places(kSyncedWrites)) {
    side.write(offset, data.next(kPage));
    side.fsync();
  }
  side.close();
}

inline std::string small(u64 number) { return fmt::format("small-{}", number); }
template <u64 kCount, bool kSynced>
void make_small(FileSide& side, Data& data) {
  for (u64 i = 0; i < kCount; ++i) {
    side.open(small(i), {.fresh = true});
    side.write(0, data.next(kPage));
    if (kSynced) side.fsync();
    side.close();
  }
  if (!kSynced) side.settle();
}
inline void read_small(FileSide& side, Data& data) {
  for (u64 i = 0; i < kSmallFiles; ++i) {
    side.open(small(i), {.write = false});
    side.read(0, data.next(kPage));
    side.close();
  }
}
template <u64 kCount>
void remove_small(FileSide& side) {
  for (u64 i = 0; i < kCount; ++i) side.remove(small(i));
}
inline void copy_file(FileSide& side, Data&) { side.copy("file", "copy", kFileBytes); }
inline void remove_both(FileSide& side) {
  side.remove("file");
  side.remove("copy");
}

}  // namespace rows

inline constexpr u64 kMiBs = kFileBytes / kMiB, kRandomBytes = kRandomPages * kPage;
inline constexpr auto kFileRows = std::to_array<FileRow>({
    {"sequential_write", kFileBytes, kMiBs, rows::nothing, rows::make_file, rows::remove_file},
    {"sequential_read",
     kFileBytes,
     kMiBs,
     rows::make_file,
     rows::read_file,
     rows::remove_file,
     {.cold = true}},
    {"direct_write",
     kFileBytes,
     kMiBs,
     rows::nothing,
     rows::write_direct,
     rows::remove_file,
     {.direct = true}},
    {"direct_random_write",
     kRandomBytes,
     kRandomPages,
     rows::make_file,
     rows::pages_direct<FileSide::Way::write>,
     rows::remove_file,
     {.direct = true}},
    {"direct_random_read",
     kRandomBytes,
     kRandomPages,
     rows::make_file,
     rows::pages_direct<FileSide::Way::read>,
     rows::remove_file,
     {.cold = true, .direct = true}},
    {"random_write", kRandomBytes, kRandomPages, rows::make_file, rows::write_pages,
     rows::remove_file},
    {"synced_write", u64{kSyncedWrites} * kPage, kSyncedWrites, rows::make_file,
     rows::write_pages_synced, rows::remove_file},
    {"synced_create", u64{kSyncedFiles} * kPage, kSyncedFiles, rows::nothing,
     rows::make_small<kSyncedFiles, true>, rows::remove_small<kSyncedFiles>},
    {"small_create", u64{kSmallFiles} * kPage, kSmallFiles, rows::nothing,
     rows::make_small<kSmallFiles, false>, rows::remove_small<kSmallFiles>},
    {"small_read",
     u64{kSmallFiles} * kPage,
     kSmallFiles,
     rows::make_small<kSmallFiles, false>,
     rows::read_small,
     rows::remove_small<kSmallFiles>,
     {.cold = true}},
    {"copy",
     kFileBytes,
     kMiBs,
     rows::make_file,
     rows::copy_file,
     rows::remove_both,
     {.copies = true}},
});

inline const FileRow* file_row(std::string_view name) {
  const auto row = std::ranges::find(kFileRows, name, &FileRow::name);
  return row == kFileRows.end() ? nullptr : &*row;
}

}  // namespace latchkey::bench
