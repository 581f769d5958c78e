// Promises that a tree does not count as its maps have them: for the repair.

#include "volume/promises.h"

#include <algorithm>

#include "engine/format.h"
#include "volume/map_records.h"
#include "volume/subvolumes.h"

namespace latchkey::volume {

namespace {

constexpr engine::Key kLastKey{~u64{0}, 255, ~u64{0}};

// Of those that are there: one that is being dropped has given its promises up.
Result<std::vector<engine::TreeId>> subvolumes_of(const engine::View& view) {
  std::vector<engine::TreeId> ids;
  LK_TRYV(view.scan(kSubvolumeTree, {1, 0, 0}, kLastKey, [&](const engine::Key& key, Bytes value) {
    const auto subvolume = decode_subvolume(value);
    if (key.type == kSubvolumeType && subvolume && !subvolume->removed) ids.push_back(key.object);
    return true;
  }));
  return ids;
}

Result<u64> promised_in(const engine::View& view, engine::TreeId tree) {
  u64 blocks = 0;
  LK_TRYV(view.scan(tree, {}, kLastKey, [&](const engine::Key& key, Bytes value) {
    if (key.type != kMapType || key.object < kRootNumber) return true;
    const auto entry = extent::decode_map(key.offset, value);
    if (entry && entry->promised) blocks += blocks_held(*entry, tree);
    return true;
  }));
  return blocks;
}

}  // namespace

Result<std::vector<engine::Finding>> mend_promises(engine::Store& store) {
  std::vector<engine::Finding> mended;
  const auto trees = subvolumes_of(store.view());
  if (!trees) return mended;  // what cannot be read tells nothing
  const u64 blocks_total = store.space().blocks_total;
  for (const engine::TreeId tree : *trees) {
    const auto record = store.view().get(engine::kRootTree, {tree, engine::kTreeRecordType, 0});
    if (!record || !*record || (*record)->value.size() != sizeof(engine::TreeRecordDisk)) continue;
    const u64 counted = load_disk<engine::TreeRecordDisk>((*record)->value).promised_blocks;
    const auto promised = promised_in(store.view(), tree);
    if (!promised || *promised == counted || *promised > blocks_total) continue;
    LK_TRY(auto space, store.reserve({0, 4, 4 * sizeof(engine::TreeRecordDisk)}, true));
    LK_TRY(engine::Transaction transaction, store.begin(std::move(space)));
    LK_TRYV(transaction.recount_promises(tree, *promised));
    mended.push_back(
        {"promises were counted anew from the maps", "tree " + std::to_string(tree), true});
  }
  if (!mended.empty()) LK_TRYV(store.commit());
  return mended;
}

}  // namespace latchkey::volume
