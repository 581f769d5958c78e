#include "volume/back_items.h"

#include <algorithm>

namespace latchkey::volume {

namespace {

Result<void> scan_hash(const engine::View& view, InodeId inode, u64 base,
                       const std::function<bool(const engine::Key&, Bytes)>& fn) {
  return view.scan(inode.subvolume, {inode.number, kBackType, base},
                   {inode.number, kBackType, base + kEntrySlots - 1}, fn);
}

}  // namespace

Result<std::optional<engine::Key>> find_back(const engine::View& view, InodeId inode,
                                             const NameOfInode& name) {
  std::optional<engine::Key> found;
  LK_TRYV(scan_hash(view, inode, back_offset(name), [&](const engine::Key& key, Bytes value) {
    const auto back = decode_back(value);
    if (!back || *back != name) return true;
    found = key;
    return false;
  }));
  return found;
}

Result<engine::Key> place_of_back(const engine::View& view, InodeId inode, const NameOfInode& name,
                                  const std::optional<engine::Key>& old) {
  const u64 base = back_offset(name);
  if (old && (old->offset & ~(kEntrySlots - 1)) == base) return *old;
  u64 place = base;
  LK_TRYV(scan_hash(view, inode, base, [&](const engine::Key& key, Bytes) {
    if (key.offset == place) ++place;
    return true;
  }));
  if (place == base + kEntrySlots) return fail(Errc::no_space, "too many names of one hash");
  return engine::Key{inode.number, kBackType, place};
}

Result<std::vector<InodeId>> parents_of(const engine::View& view, InodeId inode) {
  std::vector<InodeId> parents;
  Result<void> wrong;
  LK_TRYV(view.scan(inode.subvolume, {inode.number, kBackType, 0},
                    {inode.number, kBackType, ~u64{0}}, [&](const engine::Key&, Bytes value) {
                      const auto back = decode_back(value);
                      if (back)
                        parents.push_back({inode.subvolume, back->directory});
                      else
                        wrong = std::unexpected(back.error());
                      return back.has_value();
                    }));
  LK_TRYV(wrong);
  std::ranges::sort(parents);
  const auto again = std::ranges::unique(parents);
  parents.erase(again.begin(), again.end());
  return parents;
}

Result<InodeId> parent_of(const engine::View& view, InodeId directory) {
  LK_TRY(const auto record,
         view.at_or_after(directory.subvolume, {directory.number, kBackType, 0}));
  if (!record || record->key.object != directory.number || record->key.type != kBackType)
    return fail(Errc::malformed, "a directory without a parent");
  LK_TRY(const NameOfInode back, decode_back(record->value));
  return InodeId{directory.subvolume, back.directory};
}

}  // namespace latchkey::volume
