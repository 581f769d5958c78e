#include "engine/extent_table.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace latchkey::engine {

namespace {

Key key_of(u64 block) { return {block, kExtentRecordType, 0}; }

Result<void> put_record(Forest& forest, const ExtentRecord& record) {
  return forest.put(kExtentTree, key_of(record.run.block), encode_extent(record));
}

}  // namespace

ExtentRecord part_of(const ExtentRecord& record, u32 from, u32 to) {
  ExtentRecord piece;
  piece.run = {record.run.block + from, to - from};
  piece.references = record.references;
  piece.first_unit = record.first_unit + from;
  piece.context = record.context;
  piece.checksums.assign(record.checksums.begin() + from, record.checksums.begin() + to);
  return piece;
}

Result<ExtentRecord> decode_extent(const Key& key, Bytes value) {
  const u64 at = key.object * kBlockBytes;
  if (key.type != kExtentRecordType || key.offset != 0 || value.size() < sizeof(ExtentHeadDisk))
    return fail(Errc::malformed, "an extent record is malformed", at);
  const auto head = load_disk<ExtentHeadDisk>(value);
  ExtentRecord record;
  record.run = {key.object, head.blocks};
  record.references = head.references;
  record.first_unit = head.first_unit;
  const u64 size = sizeof head + u64{head.context_size} + u64{head.blocks} * sizeof(Le32);
  if (head.blocks == 0 || head.blocks > kRecordBlocksMax || head.references == 0 ||
      head.context_size > kContextBytesMax || head.flags != 0 || head.reserved != 0 ||
      value.size() != size || key.object + head.blocks < key.object)
    return fail(Errc::malformed, "an extent record is malformed", at);
  const Bytes context = value.subspan(sizeof head, head.context_size);
  record.context.assign(context.begin(), context.end());
  const Bytes sums = value.subspan(sizeof head + head.context_size);
  record.checksums.resize(head.blocks);
  for (u32 i = 0; i < head.blocks; ++i)
    record.checksums[i] = load_disk<Le32>(sums.subspan(i * sizeof(Le32)));
  return record;
}

std::vector<std::byte> encode_extent(const ExtentRecord& record) {
  LK_CHECK(record.context.size() <= kContextBytesMax);
  LK_CHECK(record.checksums.size() == record.run.count && record.run.count <= kRecordBlocksMax);
  ExtentHeadDisk head{};
  head.blocks = record.run.count;
  head.references = record.references;
  head.first_unit = record.first_unit;
  head.context_size = static_cast<u8>(record.context.size());
  std::vector<std::byte> value(sizeof head + record.context.size() +
                               record.checksums.size() * sizeof(Le32));
  store_disk(value, head);
  std::copy(record.context.begin(), record.context.end(), value.begin() + sizeof head);
  MutableBytes sums = MutableBytes(value).subspan(sizeof head + record.context.size());
  for (std::size_t i = 0; i < record.checksums.size(); ++i)
    store_disk(sums.subspan(i * sizeof(Le32)), Le32(record.checksums[i]));
  return value;
}

Result<ExtentRecord> find_extent(const Forest& forest, u64 block, u32 blocks_max) {
  Result<ExtentRecord> found =
      fail(Errc::damaged, "no extent record holds a block of the map", block * kBlockBytes);
  LK_TRYV(forest.visit_before(kExtentTree, {block, kExtentRecordType, ~u64{0}},
                              [&](const Key& key, Bytes value) {
                                // No node lies in an extent: behind its record here is none.
                                if (key.type == kNodeRecordType) return false;
                                auto record = decode_extent(key, value);
                                if (!record || record->run.end() > block) found = record;
                                return false;
                              }));
  if (!found) return found;
  const u32 from = static_cast<u32>(block - found->run.block);
  const u32 to = static_cast<u32>(std::min<u64>(found->run.count, u64{from} + blocks_max));
  return part_of(*found, from, to);
}

Result<void> insert_extent(Forest& forest, const ExtentRecord& extent) {
  for (u32 from = 0; from < extent.run.count; from += kRecordBlocksMax)
    LK_TRYV(put_record(forest,
                       part_of(extent, from, std::min(extent.run.count, from + kRecordBlocksMax))));
  return {};
}

Result<void> count_references(Forest& forest, BlockRun run, int delta,
                              std::vector<BlockRun>& freed) {
  while (run.count != 0) {
    LK_TRY(const ExtentRecord here, find_extent(forest, run.block, run.count));
    // The whole record that it is a part of.
    std::optional<Result<ExtentRecord>> whole;
    LK_TRYV(forest.visit_before(kExtentTree, {run.block, kExtentRecordType, ~u64{0}},
                                [&](const Key& key, Bytes value) {
                                  whole = decode_extent(key, value);
                                  return false;
                                }));
    LK_TRY(const ExtentRecord record, std::move(*whole));
    const u32 from = static_cast<u32>(run.block - record.run.block);
    const u32 to = from + here.run.count;
    ExtentRecord middle = part_of(record, from, to);
    if (delta > 0 && middle.references == ~u32{0})
      return fail(Errc::too_big, "a block has too many references", run.block * kBlockBytes);
    middle.references += static_cast<u32>(delta);
    if (from != 0) LK_TRYV(put_record(forest, part_of(record, 0, from)));
    if (to != record.run.count) LK_TRYV(put_record(forest, part_of(record, to, record.run.count)));
    if (middle.references != 0) {
      LK_TRYV(put_record(forest, middle));
    } else {
      if (from == 0) LK_TRYV(forest.erase(kExtentTree, key_of(record.run.block)));
      freed.push_back(middle.run);
    }
    run.block += here.run.count;
    run.count -= here.run.count;
  }
  return {};
}

}  // namespace latchkey::engine
