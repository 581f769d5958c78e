// Repair of names: entries, back items, links, and inodes that nothing leads to.
//
// A name is in two places and in a count. What two of the three say is believed, else what keeps a
// file within reach: a name that only its back item and the count know is made anew, under its
// stored, perhaps encrypted name; a name without a back item gets one. What no name leads to goes
// into lost+found of its subvolume's root directory. That is plain, so that it may hold anything,
// and what lies below an encrypted directory in it is still encrypted as it is.

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "volume/repair_state.h"

namespace latchkey::volume {

namespace {

constexpr engine::Key kCounterKey{kCounterObject, kCounterType, 0};

std::string at(const TreeRecords& tree, const Entry& entry) {
  std::string directory = fmt::format("directory {}, entry {:#x}, inode {}", entry.key.object,
                                      entry.key.offset, entry.inode.number);
  if (tree.id == kRootInode.subvolume) return directory;
  return fmt::format("subvolume {}, {}", tree.id, directory);
}

Result<void> erase_all(engine::Transaction& transaction, engine::TreeId tree,
                       const std::vector<engine::Key>& keys) {
  for (const engine::Key& key : keys) LK_TRYV(transaction.erase(tree, key));
  return {};
}

Result<void> put_item(engine::Transaction& transaction, InodeId inode, const Attributes& item) {
  const InodeDisk disk = encode(item);
  return transaction.put(inode.subvolume, inode_key(inode.number),
                         std::as_bytes(std::span(&disk, 1)));
}

bool has_back(const InodeRecords& inode, const NameOfInode& name) {
  return std::ranges::any_of(inode.backs, [&](const BackItem& back) { return back.name == name; });
}

NameOfInode name_of(const Entry& entry) { return {entry.key.object, entry.stored}; }

}  // namespace

// Records that nobody can understand, one by one.
Result<bool> mend_strays(Mender& mender, const TreeRecords& tree) {
  const u64 before = mender.steps();
  const auto erase = [&](const engine::Key& key, std::string what) {
    return mender.mend(
        std::move(what), tree.where(key.object),
        [&](engine::Transaction& transaction) { return erase_all(transaction, tree.id, {key}); });
  };
  for (const engine::Key& key : tree.bad_entries)
    LK_TRYV(erase(key, "a malformed directory entry was taken out"));
  for (const engine::Key& key : tree.bad_backs)
    LK_TRYV(erase(key, "a malformed back item was taken out"));
  for (const engine::Key& key : tree.bad_orphans) {
    const InodeRecords* inode = tree.find(key.offset);
    const bool real = inode != nullptr && inode->item && inode->item->links == 0;
    LK_TRYV(mender.mend("a malformed orphan record was mended", tree.where(key.offset),
                        [&](engine::Transaction& transaction) -> Result<void> {
                          if (real) return transaction.put(tree.id, key, {});
                          return erase_all(transaction, tree.id, {key});
                        }));
  }
  for (const auto& [number, inode] : tree.inodes)
    for (const engine::Key& key : inode.misplaced_items) {
      const auto change = [&](engine::Transaction& transaction) -> Result<void> {
        LK_TRY(const auto record, transaction.get(tree.id, key));
        LK_TRY(const auto there, transaction.get(tree.id, inode_key(key.object)));
        if (record && !there)
          LK_TRYV(transaction.put(tree.id, inode_key(key.object), record->value));
        return erase_all(transaction, tree.id, {key});
      };
      LK_TRYV(mender.mend("an inode item lay at a wrong place", tree.where(number), change));
    }
  return mender.steps() != before;
}

// --- entries ------------------------------------------------------------------------------------

namespace {

// Why a name cannot stay; nothing: it can, as far as it goes by itself.
const char* why_not(const TreeRecords& tree, const Entry& entry) {
  const InodeRecords* directory = tree.find(entry.key.object);
  if (directory->item_malformed) return nullptr;
  if (!directory->item) return "a name in a directory that is not there was taken out";
  if (!directory->is_directory())
    return "a name in something that is not a directory was taken out";
  if (!could_be_stored(entry.stored, directory->item->encrypted))
    return "an impossible name was taken out";
  if (entry.inode.number <= kRootNumber)
    return "a name that leads to a root directory was taken out";
  if (tree.find(entry.inode.number)->is_missing())
    return "a name that leads to nothing was taken out";
  return nullptr;
}

// Of two names that cannot both stay, the one that its inode knows of.
std::size_t better(const TreeRecords& tree, std::size_t one, std::size_t other) {
  const auto known = [&](std::size_t i) {
    const Entry& entry = tree.names[i];
    return has_back(*tree.find(entry.inode.number), name_of(entry));
  };
  return known(other) && !known(one) ? other : one;
}

// Names that others stand against: a directory has each name once and is named once.
std::vector<bool> find_doubles(const TreeRecords& tree) {
  std::vector<bool> doubles(tree.names.size(), false);
  std::map<NameOfInode, std::size_t, decltype([](const NameOfInode& a, const NameOfInode& b) {
             return std::tie(a.directory, a.stored) < std::tie(b.directory, b.stored);
           })>
      first;
  const auto settle = [&](std::size_t& best, std::size_t i) {
    const std::size_t kept = better(tree, best, i);
    doubles[kept == best ? i : best] = true;
    best = kept;
  };
  for (std::size_t i = 0; i < tree.names.size(); ++i) {
    if (why_not(tree, tree.names[i]) != nullptr) continue;
    const auto [it, fresh] = first.try_emplace(name_of(tree.names[i]), i);
    if (!fresh) settle(it->second, i);
  }
  for (const auto& [number, inode] : tree.inodes) {
    if (!inode.is_directory()) continue;
    std::optional<std::size_t> best;
    for (const std::size_t i : inode.names) {
      if (why_not(tree, tree.names[i]) != nullptr || doubles[i]) continue;
      if (best)
        settle(*best, i);
      else
        best = i;
    }
  }
  return doubles;
}

}  // namespace

Result<bool> mend_entries(Mender& mender, const TreeRecords& tree) {
  const u64 before = mender.steps();
  const std::vector<bool> doubles = find_doubles(tree);
  std::map<u64, std::size_t> left;  // names
  for (std::size_t i = 0; i < tree.names.size(); ++i) {
    const Entry& entry = tree.names[i];
    const char* wrong = why_not(tree, entry);
    if (wrong == nullptr && doubles[i])
      wrong = "one of two names that cannot both be was taken out";
    if (wrong != nullptr) {
      // The last name of what could not be found again stays, wrong as it is.
      const InodeRecords* inode = tree.find(entry.inode.number);
      const bool last =
          inode != nullptr && !inode->is_missing() &&
          left.try_emplace(entry.inode.number, inode->names.size()).first->second == 1;
      if (last && !tree.can_find_the_lost()) continue;
      if (inode != nullptr && !inode->is_missing()) --left[entry.inode.number];
      LK_TRYV(mender.mend(wrong, at(tree, entry), [&](engine::Transaction& transaction) {
        return erase_all(transaction, tree.id, {entry.key});
      }));
      continue;
    }
    const InodeRecords& inode = *tree.find(entry.inode.number);
    Entry right = entry;
    if (inode.item) right.kind = inode.item->kind;
    const u64 hash = entry_offset(entry.stored);
    const bool misplaced = hash != (entry.key.offset & ~(kEntrySlots - 1));
    if (!misplaced && right.kind == entry.kind) continue;
    const auto change = [&](engine::Transaction& transaction) -> Result<void> {
      if (misplaced) {
        LK_TRY(right.key, free_slot(transaction, tree.id, {entry.key.object, kEntryType, hash}));
        LK_TRYV(transaction.erase(tree.id, entry.key));
      }
      return transaction.put(tree.id, right.key, encode_entry(right));
    };
    LK_TRYV(mender.mend(misplaced ? "a directory entry was put where it is looked for"
                                  : "a directory entry says what kind its inode is",
                        at(tree, entry), change));
  }
  return mender.steps() != before;
}

// --- back items ---------------------------------------------------------------------------------

namespace {

using Taken = std::set<std::pair<u64, std::string>>;  // names, by directory

// Whether what a back item says may become a name again.
bool can_be_named(const TreeRecords& tree, const InodeRecords& inode, const NameOfInode& name,
                  const Taken& taken) {
  const InodeRecords* directory = tree.find(name.directory);
  return directory != nullptr && directory->is_directory() &&
         could_be_stored(name.stored, directory->item->encrypted) &&
         has_policy_of(*inode.item, *directory->item) &&
         !taken.contains({name.directory, name.stored}) &&
         !(inode.is_directory() && !inode.names.empty());
}

Result<void> mend_backs_of(Mender& mender, const TreeRecords& tree, u64 number,
                           const InodeRecords& inode, Taken& taken) {
  const InodeId id{tree.id, number};
  std::set<std::pair<u64, std::string>> wanted, seen;
  for (const std::size_t i : inode.names)
    wanted.emplace(tree.names[i].key.object, tree.names[i].stored);
  std::size_t names = wanted.size();
  const bool gone = inode.orphan && inode.item->links == 0;
  for (const BackItem& back : inode.backs) {
    const bool in_place = back_offset(back.name) == (back.key.offset & ~(kEntrySlots - 1));
    const std::pair<u64, std::string> name{back.name.directory, back.name.stored};
    if (in_place && wanted.contains(name) && seen.insert(name).second) continue;
    const bool counted = names == 0 || names < inode.item->links;
    if (number != kRootNumber && !gone && counted && !wanted.contains(name) &&
        can_be_named(tree, inode, back.name, taken)) {
      const auto change = [&](engine::Transaction& transaction) -> Result<void> {
        LK_TRYV(put_link(transaction, tree.id, back.name, id, inode.item->kind));
        return erase_all(transaction, tree.id, {back.key});
      };
      LK_TRYV(
          mender.mend("a name that its back item knows was made anew", tree.where(number), change));
      taken.insert(name);
      wanted.insert(name);
      seen.insert(name);
      ++names;
      if (inode.is_directory()) break;
      continue;
    }
    LK_TRYV(mender.mend("a back item without a name was taken out", tree.where(number),
                        [&](engine::Transaction& transaction) {
                          return erase_all(transaction, tree.id, {back.key});
                        }));
  }
  for (const auto& [directory, stored] : wanted) {
    if (seen.contains({directory, stored})) continue;
    const NameOfInode name{directory, stored};
    const auto change = [&](engine::Transaction& transaction) -> Result<void> {
      LK_TRY(const engine::Key key,
             free_slot(transaction, tree.id, {number, kBackType, back_offset(name)}));
      return transaction.put(tree.id, key, encode_back(name));
    };
    LK_TRYV(mender.mend("a name got its back item", tree.where(number), change));
  }
  return {};
}

}  // namespace

Result<bool> mend_back_items(Mender& mender, const TreeRecords& tree) {
  const u64 before = mender.steps();
  Taken taken;
  for (const std::vector<Entry>* names : {&tree.names, &tree.subvolume_names})
    for (const Entry& entry : *names) taken.emplace(entry.key.object, entry.stored);
  for (const auto& [number, inode] : tree.inodes)
    if (inode.item) LK_TRYV(mend_backs_of(mender, tree, number, inode, taken));
  return mender.steps() != before;
}

// --- what nothing leads to ----------------------------------------------------------------------

Result<bool> mend_counter(Mender& mender, const TreeRecords& tree) {
  if (tree.counter && *tree.counter >= tree.numbers_end) return false;
  // Numbers of inodes that are gone may have been higher than any that is there.
  const u64 room = ~u64{0} - tree.numbers_end;
  const Le64 counter(tree.numbers_end + std::min(room, kInodeChunk));
  LK_TRYV(mender.mend("the counter of inode numbers was set", tree.where(kRootNumber),
                      [&](engine::Transaction& transaction) {
                        return transaction.put(tree.id, kCounterKey,
                                               std::as_bytes(std::span(&counter, 1)));
                      }));
  return true;
}

namespace {

// Directories that lie in each other: one of each circle. Each has one name by now, so that the way
// up is one. Where it ends without a root directory something else is wrong, and told.
std::vector<u64> find_circles(const TreeRecords& tree) {
  std::map<u64, u64> parents, walks;  // by directory: where it lies, from where it was met
  for (const Entry& entry : tree.names) {
    const InodeRecords* inode = tree.find(entry.inode.number);
    if (inode != nullptr && inode->is_directory()) parents[entry.inode.number] = entry.key.object;
  }
  std::vector<u64> circles;
  for (const auto& [first, parent] : parents) {
    u64 at = first;
    while (parents.contains(at) && walks.try_emplace(at, first).second) at = parents.at(at);
    // Back on this very way: the circle is met once, by the least of those that lead into it.
    if (parents.contains(at) && walks.at(at) == first) circles.push_back(at);
  }
  return circles;
}

Result<void> into_lost_and_found(Mender& mender, const TreeRecords& tree, u64 place, u64 number) {
  const InodeRecords& inode = *tree.find(number);
  const InodeId id{tree.id, number};
  LK_TRY(const std::string name, free_name(mender.view(), {tree.id, place}, number, "#"));
  std::vector<engine::Key> gone;
  gone.reserve(inode.names.size() + inode.backs.size() + 1);
  for (const std::size_t i : inode.names) gone.push_back(tree.names[i].key);
  for (const BackItem& back : inode.backs) gone.push_back(back.key);
  if (inode.orphan) gone.push_back(orphan_key(id));
  Attributes item = *inode.item;
  item.links = 1;
  return mender.mend(
      "nothing led here; it is in lost+found now, as " + name, tree.where(number),
      [&](engine::Transaction& transaction) -> Result<void> {
        LK_TRYV(put_link(transaction, tree.id, {place, name}, id, item.kind));
        LK_TRYV(erase_all(transaction, tree.id, gone));
        return put_item(transaction, id, item);
      },
      Mender::kRecords + static_cast<u32>(gone.size()));
}

}  // namespace

Result<bool> mend_unreachable(Mender& mender, const TreeRecords& tree) {
  std::vector<u64> lost = find_circles(tree);
  for (const auto& [number, inode] : tree.inodes) {
    if (number == kRootNumber || !inode.item || !inode.names.empty()) continue;
    if (inode.orphan && inode.item->links == 0) continue;  // the next open removes it
    lost.push_back(number);
  }
  if (lost.empty()) return false;
  LK_TRY(const auto place, lost_and_found(mender, tree));
  if (!place) return false;
  for (const u64 number : lost) LK_TRYV(into_lost_and_found(mender, tree, *place, number));
  return true;
}

Result<bool> mend_links(Mender& mender, const TreeRecords& tree) {
  const u64 before = mender.steps();
  for (const auto& [number, inode] : tree.inodes) {
    const InodeId id{tree.id, number};
    const bool root = number == kRootNumber;
    if (!inode.item) continue;
    const std::size_t names = root ? 1 : inode.names.size();
    if (names == 0 || names > kLinksMax) continue;  // an orphan, or none that could be reached
    if (inode.item->links == names && !inode.orphan) continue;
    Attributes item = *inode.item;
    item.links = static_cast<u32>(names);
    const auto change = [&](engine::Transaction& transaction) -> Result<void> {
      if (inode.orphan) LK_TRYV(transaction.erase(tree.id, orphan_key(id)));
      return put_item(transaction, id, item);
    };
    LK_TRYV(mender.mend(fmt::format("{} links were counted, there are {}{}", inode.item->links,
                                    names, inode.orphan ? ", and it is no orphan" : ""),
                        tree.where(number), change));
  }
  return mender.steps() != before;
}

}  // namespace latchkey::volume
