#include "cli/torture_ledger.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "volume/paths.h"

namespace latchkey::cli {

namespace {

constexpr u64 kPageBytes = 4 * kKiB;

bool is_damage(const Error& error) {
  return error.code == Errc::damaged || error.code == Errc::malformed;
}

}  // namespace

void fill_from_seed(MutableBytes bytes, u32 seed) {
  std::mt19937_64 random(seed);
  while (!bytes.empty()) {
    const u64 word = random();
    const std::size_t size = std::min(bytes.size(), sizeof word);
    std::memcpy(bytes.data(), &word, size);
    bytes = bytes.subspan(size);
  }
}

void TortureFile::appended(u64 offset, u32 size, u32 seed) {
  while (!records.empty() && records.back().end() > offset) {
    const TortureRecord& cut = records.back();
    ++cut_writes;
    cut_bytes += cut.end() - std::max(offset, cut.offset);
    records.pop_back();
  }
  records.push_back({offset, size, seed, {}, {}});
}

void TortureFile::overwritten(TortureRecord& record, u32 seed) {
  record.replaced.insert(record.replaced.end(), record.refused.begin(), record.refused.end());
  record.replaced.push_back(record.seed);
  record.refused.clear();
  record.seed = seed;
}

void TortureFile::overwrite_refused(TortureRecord& record, u32 seed) {
  record.refused.push_back(seed);
}

TortureCount::TortureCount(volume::Volume& volume, volume::Caller who, u64 bytes_told)
    : volume_(volume),
      who_(who),
      bytes_told_(bytes_told),
      read_(kTortureWriteBytesMax),
      wanted_(kTortureWriteBytesMax),
      other_(kTortureWriteBytesMax) {}

Result<void> TortureCount::look_for(const TortureFile& file, const std::string& path) {
  if (file.cut_writes != 0) count_lost(file, file.cut_writes, file.cut_bytes);
  if (file.records.empty()) return {};
  auto handle = volume::open_path(volume_, who_, path, {});
  if (!handle) {
    if (handle.error().code != Errc::not_found && !is_damage(handle.error()))
      return std::unexpected(handle.error());
    silently_lost += file.records.size();
    return {};
  }
  Result<void> looked;
  for (const TortureRecord& record : file.records)
    if (looked = look_for(file, record, *handle); !looked) break;
  auto closed = volume_.close_handle(*handle);
  LK_TRYV(looked);
  return closed;
}

Result<u64> TortureCount::read_record(volume::HandleId handle, const TortureRecord& record) {
  u64 done = 0;
  while (done < record.size) {
    const MutableBytes rest = MutableBytes(read_).subspan(done, record.size - done);
    LK_TRY(const u64 got, volume_.read(handle, record.offset + done, rest));
    if (got == 0) break;
    done += got;
  }
  return done;
}

Result<void> TortureCount::look_for(const TortureFile& file, const TortureRecord& record,
                                    volume::HandleId handle) {
  const auto got = read_record(handle, record);
  if (!got) {
    if (!is_damage(got.error())) return std::unexpected(got.error());
    ++silently_lost;
    return {};
  }
  fill_from_seed(MutableBytes(wanted_).first(record.size), record.seed);
  if (*got == record.size && std::memcmp(read_.data(), wanted_.data(), record.size) == 0) return {};
  u64 lost = 0;
  for (u64 at = 0; at < record.size;) {
    const u64 size = std::min(kPageBytes - (record.offset + at) % kPageBytes, record.size - at);
    const Page page = judge(record, at, size, *got);
    if (page == Page::garbage) {
      ++silently_lost;
      return {};
    }
    if (page == Page::lost) lost += size;
    at += size;
  }
  if (lost != 0) count_lost(file, 1, lost);
  return {};
}

TortureCount::Page TortureCount::judge(const TortureRecord& record, u64 first, u64 size, u64 got) {
  const auto same = [&](const std::vector<std::byte>& bytes, u64 bytes_size) {
    return std::memcmp(read_.data() + first, bytes.data() + first, bytes_size) == 0;
  };
  if (first >= got) return Page::lost;
  // The file may end in this page: then what is left of it is somebody's, too.
  const u64 there = std::min(size, got - first);
  if (there == size && same(wanted_, size)) return Page::there;
  if (there == size && is_from(record.refused, record, first, size)) return Page::there;
  const Bytes piece = Bytes(read_).subspan(first, there);
  const bool hole = std::ranges::all_of(piece, [](std::byte byte) { return byte == std::byte{}; });
  if (hole || same(wanted_, there) || is_from(record.refused, record, first, there) ||
      is_from(record.replaced, record, first, there))
    return Page::lost;
  return Page::garbage;
}

bool TortureCount::is_from(const std::vector<u32>& seeds, const TortureRecord& record, u64 first,
                           u64 size) {
  return std::ranges::any_of(seeds, [&](u32 seed) {
    fill_from_seed(MutableBytes(other_).first(record.size), seed);
    return std::memcmp(read_.data() + first, other_.data() + first, size) == 0;
  });
}

void TortureCount::count_lost(const TortureFile& file, u64 writes, u64 bytes) {
  bytes_missing_ += bytes;
  if (file.loss_told || bytes_missing_ <= bytes_told_)
    reported_lost += writes;
  else
    silently_lost += writes;
}

}  // namespace latchkey::cli
