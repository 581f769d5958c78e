#include <algorithm>
#include <cstring>

#include "extent/map.h"
#include "volume/format.h"
#include "volume/subvolumes.h"

namespace latchkey::volume {

std::vector<std::byte> encode_subvolume(const Subvolume& subvolume) {
  SubvolumeDisk disk{};
  disk.flags =
      (subvolume.read_only ? kSubvolumeReadOnly : 0) | (subvolume.removed ? kSubvolumeRemoved : 0);
  disk.parent = subvolume.directory.subvolume;
  disk.directory = subvolume.directory.number;
  disk.origin = subvolume.origin;
  disk.created_ns = static_cast<u64>(subvolume.created_ns);
  disk.name_size = static_cast<u8>(subvolume.stored.size());
  std::vector<std::byte> value(sizeof disk + subvolume.stored.size());
  store_disk(value, disk);
  std::memcpy(value.data() + sizeof disk, subvolume.stored.data(), subvolume.stored.size());
  return value;
}

Result<Subvolume> decode_subvolume(Bytes value) {
  if (value.size() < sizeof(SubvolumeDisk))
    return fail(Errc::malformed, "the record of a subvolume is malformed");
  const auto disk = load_disk<SubvolumeDisk>(value);
  Subvolume subvolume;
  subvolume.read_only = (disk.flags & kSubvolumeReadOnly) != 0;
  subvolume.removed = (disk.flags & kSubvolumeRemoved) != 0;
  subvolume.directory = {disk.parent, disk.directory};
  subvolume.origin = disk.origin;
  subvolume.created_ns = static_cast<i64>(disk.created_ns.get());
  const Bytes name = value.subspan(sizeof disk);
  subvolume.stored.assign(reinterpret_cast<const char*>(name.data()), name.size());
  const auto canonical = encode_subvolume(subvolume);
  if (!std::ranges::equal(canonical, value))
    return fail(Errc::malformed, "the record of a subvolume is malformed");
  return subvolume;
}

Result<void> put_subvolume(engine::Transaction& transaction, engine::TreeId id,
                           const Subvolume& subvolume) {
  return transaction.put(kSubvolumeTree, subvolume_key(id), encode_subvolume(subvolume));
}

Result<engine::TreeId> take_subvolume_id(engine::Transaction& transaction) {
  LK_TRY(const auto record, transaction.get(kSubvolumeTree, kSubvolumeIdKey));
  if (!record || record->value.size() != sizeof(Le64))
    return fail(Errc::malformed, "the store has no counter of subvolumes");
  const engine::TreeId id = load_disk<Le64>(record->value);
  if (!engine::is_subvolume(id) || id == ~u64{0})
    return fail(Errc::malformed, "the counter of subvolumes is wrong");
  const Le64 next(id + 1);
  LK_TRYV(transaction.put(kSubvolumeTree, kSubvolumeIdKey, std::as_bytes(std::span(&next, 1))));
  return id;
}

std::optional<engine::BlockRun> runs_of(const engine::Key& key, Bytes value) {
  if (key.type != kMapType || key.object < kRootNumber) return std::nullopt;
  const auto entry = extent::decode_map(key.offset, value);
  if (!entry || entry->promised) return std::nullopt;
  return engine::BlockRun{entry->disk_block, entry->blocks};
}

}  // namespace latchkey::volume
