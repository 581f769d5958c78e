#include "extent/map.h"

#include <algorithm>

#include "base/check.h"

namespace latchkey::extent {

namespace {

constexpr u64 kBlock = 4096;
// Offsets in files and on devices fit a signed 64-bit number of bytes.
constexpr u64 kBlocksMax = (u64{1} << 63) / kBlock;

bool fits(u64 first, u64 count) { return first <= kBlocksMax && count <= kBlocksMax - first; }

// Takes `range` out of one entry that touches it.
void cut(const MapEntry& entry, FileRange range, MapEdit& edit) {
  const u64 first = std::max(entry.file_block, range.first_block);
  const u64 end = std::min(entry.file_end(), range.end());
  if (first >= end) return;
  const u64 before = first - entry.file_block;
  const u64 inside = end - first;
  const u64 after = entry.file_end() - end;
  const auto place = [&](u64 distance) {
    return entry.promised ? entry.disk_block : entry.disk_block + distance;
  };
  if (entry.promised)
    edit.ended.push_back({entry.disk_block, inside});
  else
    edit.release.push_back({place(before), static_cast<u32>(inside)});
  // The front part keeps its key, so putting it replaces the old record.
  if (before == 0)
    edit.erase.push_back(entry.file_block);
  else
    edit.put.push_back(
        {entry.file_block, entry.disk_block, static_cast<u32>(before), entry.promised});
  if (after != 0)
    edit.put.push_back({end, place(before + inside), static_cast<u32>(after), entry.promised});
}

}  // namespace

MapEdit punch(const std::vector<MapEntry>& overlapping, FileRange range) {
  LK_CHECK(fits(range.first_block, range.blocks));
  MapEdit edit;
  u64 previous_end = 0;
  for (const MapEntry& entry : overlapping) {
    LK_CHECK(entry.blocks != 0 && entry.file_block >= previous_end);
    previous_end = entry.file_end();
    cut(entry, range, edit);
  }
  return edit;
}

MapEdit replace(const std::vector<MapEntry>& overlapping, FileRange range,
                const std::vector<MapEntry>& fresh) {
  MapEdit edit = punch(overlapping, range);
  u64 previous_end = range.first_block;
  for (const MapEntry& entry : fresh) {
    LK_CHECK(entry.blocks != 0 && entry.file_block >= previous_end);
    previous_end = entry.file_end();
    LK_CHECK(previous_end <= range.end());
    std::erase(edit.erase, entry.file_block);  // the put replaces that record
    edit.put.push_back(entry);
  }
  return edit;
}

MapDisk encode(const MapEntry& entry) {
  LK_CHECK(entry.blocks != 0 && fits(entry.file_block, entry.blocks));
  LK_CHECK(entry.promised || fits(entry.disk_block, entry.blocks));
  return MapDisk{entry.disk_block, entry.blocks, entry.promised ? kMapPromised : 0};
}

Result<MapEntry> decode_map(u64 key_offset, Bytes value) {
  if (value.size() != sizeof(MapDisk)) return fail(Errc::malformed, "map record: size");
  if (key_offset % kBlock != 0) return fail(Errc::malformed, "map record: offset inside a block");
  const auto disk = load_disk<MapDisk>(value);
  if ((disk.flags & ~kMapPromised) != 0) return fail(Errc::malformed, "map record: unknown flags");
  const MapEntry entry{key_offset / kBlock, disk.disk_block, disk.blocks, disk.flags != 0};
  if (entry.blocks == 0) return fail(Errc::malformed, "map record: no blocks");
  if (!fits(entry.file_block, entry.blocks) ||
      (!entry.promised && !fits(entry.disk_block, entry.blocks)))
    return fail(Errc::malformed, "map record: out of range");
  return entry;
}

}  // namespace latchkey::extent
