#include "volume/check_subvolumes.h"

#include <fmt/format.h>

#include <algorithm>

namespace latchkey::volume {

namespace {

constexpr engine::Key kLastKey{~u64{0}, 255, ~u64{0}};

}  // namespace

void SubvolumeChecker::found(std::string what, engine::TreeId id) {
  findings_.push_back({std::move(what), fmt::format("subvolume {}", id), false});
}

Result<void> SubvolumeChecker::read(const engine::View& view) {
  LK_TRYV(read_trees(view));
  std::optional<u64> next;
  LK_TRYV(view.scan(kSubvolumeTree, {}, kLastKey, [&](const engine::Key& key, Bytes value) {
    if (key == kSubvolumeIdKey && value.size() == sizeof(Le64)) {
      next = load_disk<Le64>(value);
      return true;
    }
    auto subvolume = decode_subvolume(value);
    if (key != subvolume_key(key.object) || !engine::is_subvolume(key.object) || !subvolume)
      found("the record of a subvolume is malformed", key.object);
    else
      subvolumes_.emplace(key.object, std::move(*subvolume));
    return true;
  }));
  if (!next) findings_.push_back({"the counter of subvolumes is missing", "subvolumes", false});
  for (const auto& [id, subvolume] : subvolumes_) {
    if (next && id >= *next) found("a subvolume beyond the counter", id);
    if (!std::ranges::binary_search(trees_, id)) found("a subvolume without a tree", id);
  }
  const auto first = subvolumes_.find(kRootInode.subvolume);
  if (first == subvolumes_.end() || first->second.removed)
    found("there is no first subvolume", kRootInode.subvolume);
  return {};
}

Result<void> SubvolumeChecker::read_trees(const engine::View& view) {
  LK_TRYV(view.scan(engine::kRootTree, {}, kLastKey, [&](const engine::Key& key, Bytes) {
    trees_.push_back(key.object);
    return true;
  }));
  std::vector<engine::TreeId> known{// in order
                                    engine::kExtentTree, engine::kKeyTree, kSubvolumeTree};
  LK_TRYV(view.scan(kSubvolumeTree, {1, 0, 0}, kLastKey, [&](const engine::Key& key, Bytes) {
    known.push_back(key.object);
    return true;
  }));
  for (const engine::TreeId tree : trees_)
    if (!std::ranges::binary_search(known, tree))
      findings_.push_back({"a tree of an unknown purpose", fmt::format("tree {}", tree), false});
  return {};
}

std::vector<engine::TreeId> SubvolumeChecker::there() const {
  std::vector<engine::TreeId> ids;
  for (const auto& [id, subvolume] : subvolumes_)
    if (!subvolume.removed && std::ranges::binary_search(trees_, id)) ids.push_back(id);
  return ids;
}

std::vector<engine::TreeId> SubvolumeChecker::unknown() const {
  std::vector<engine::TreeId> ids;
  for (const engine::TreeId id : trees_)
    if (engine::is_subvolume(id) && !subvolumes_.contains(id)) ids.push_back(id);
  return ids;
}

// In a snapshot a name may be left of a subvolume that lies elsewhere or nowhere.
void SubvolumeChecker::name(InodeId directory, const std::string& stored, engine::TreeId leads_to) {
  const auto it = subvolumes_.find(leads_to);
  if (it != subvolumes_.end() && it->second.directory.subvolume == directory.subvolume) {
    ++names_[leads_to];
    if (it->second.directory != directory || it->second.stored != stored)
      found("a subvolume and its name do not agree", leads_to);
    return;
  }
  const auto holder = subvolumes_.find(directory.subvolume);
  if (holder != subvolumes_.end() && holder->second.origin == 0)
    found("a name of a subvolume that is not there", leads_to);
}

bool SubvolumeChecker::is_below_the_first(engine::TreeId id) const {
  for (std::size_t depth = 0; depth <= subvolumes_.size(); ++depth) {
    if (id == kRootInode.subvolume) return true;
    const auto it = subvolumes_.find(id);
    if (it == subvolumes_.end()) return false;
    id = it->second.directory.subvolume;
  }
  return false;
}

void SubvolumeChecker::check_names() {
  for (const auto& [id, subvolume] : subvolumes_) {
    const bool nameless = subvolume.removed || id == kRootInode.subvolume;
    const u32 names = names_[id];
    if (names != (nameless ? 0U : 1U))
      found(fmt::format("{} names lead to a subvolume that has {}", names, nameless ? 0 : 1), id);
    if (nameless && (subvolume.directory != InodeId{} || !subvolume.stored.empty()))
      found("a subvolume that can have no name has one", id);
    if (!nameless && !is_below_the_first(id))
      found("a subvolume that cannot be reached from the first", id);
  }
}

}  // namespace latchkey::volume
