// Repair of the tree of subvolumes: records, trees and names against each other. A tree without a
// record gets one; a record without a tree goes, with its name; a subvolume that nothing leads to
// goes into lost+found of the first one.

#include <fmt/format.h>

#include <algorithm>

#include "volume/repair_state.h"

namespace latchkey::volume {

namespace {

constexpr engine::Key kLastKey{~u64{0}, 255, ~u64{0}};
constexpr engine::TreeId kFirst = kRootInode.subvolume;

class SubvolumeMender {
 public:
  SubvolumeMender(Mender& mender, const std::vector<TreeRecords>& trees)
      : mender_(mender), before_(mender.steps()) {
    for (const TreeRecords& tree : trees) trees_.emplace(tree.id, &tree);
  }

  // Stops after each kind of change: what was read is old then.
  Result<bool> run() {
    if (!trees_.contains(kFirst)) return false;
    LK_TRYV(read());
    using Part = Result<void> (SubvolumeMender::*)();
    for (const Part part : {&SubvolumeMender::mend_records, &SubvolumeMender::mend_next,
                            &SubvolumeMender::mend_places, &SubvolumeMender::mend_names,
                            &SubvolumeMender::mend_circles}) {
      LK_TRYV((this->*part)());
      if (mender_.steps() != before_) return true;
    }
    return false;
  }

 private:
  struct Name {
    InodeId directory;
    const Entry* entry;
  };

  Result<void> read() {
    LK_TRYV(mender_.view().scan(engine::kRootTree, {kFirst, 0, 0}, kLastKey,
                                [&](const engine::Key& key, Bytes) {
                                  roots_.insert(key.object);
                                  return true;
                                }));
    LK_TRYV(
        mender_.view().scan(kSubvolumeTree, {}, kLastKey, [&](const engine::Key& key, Bytes value) {
          if (key == kSubvolumeIdKey) {
            if (value.size() == sizeof(Le64)) next_ = load_disk<Le64>(value);
          } else if (key == subvolume_key(key.object)) {
            auto record = decode_subvolume(value);
            records_[key.object] = record ? std::optional(std::move(*record)) : std::nullopt;
          }
          return true;
        }));
    for (const auto& [id, tree] : trees_)
      for (const Entry& entry : tree->subvolume_names)
        names_[entry.inode.subvolume].push_back({{id, entry.key.object}, &entry});
    return {};
  }

  Result<void> mend(std::string what, engine::TreeId id, const Mender::Change& change) {
    return mender_.mend(std::move(what), fmt::format("subvolume {}", id), change);
  }
  const InodeRecords* find(InodeId inode) const {
    const auto it = trees_.find(inode.subvolume);
    return it == trees_.end() ? nullptr : it->second->find(inode.number);
  }
  // A directory that can have the subvolume's name.
  bool may_hold(InodeId directory, engine::TreeId id, const std::string& stored) const {
    const InodeRecords *above = find(directory), *root = find({id, kRootNumber});
    return above != nullptr && above->is_directory() && directory.subvolume != id &&
           could_be_stored(stored, above->item->encrypted) && root != nullptr && root->item &&
           has_policy_of(*root->item, *above->item);
  }
  static Result<void> erase_name(engine::Transaction& transaction, const Name& name) {
    const auto erased = transaction.erase(name.directory.subvolume, name.entry->key);
    return erased ? Result<void>() : std::unexpected(erased.error());
  }

  // --- records against trees
  // ----------------------------------------------------------------------

  Result<void> mend_records() {
    for (const auto& [id, record] : records_) {
      if (id == kFirst || roots_.contains(id)) continue;
      const auto change = [&](engine::Transaction& transaction) -> Result<void> {
        if (const auto it = names_.find(id); it != names_.end())
          for (const Name& name : it->second)
            if (record && name.directory.subvolume == record->directory.subvolume)
              LK_TRYV(erase_name(transaction, name));
        const auto erased = transaction.erase(kSubvolumeTree, subvolume_key(id));
        return erased ? Result<void>() : std::unexpected(erased.error());
      };
      LK_TRYV(mend("the record of a subvolume without a tree was taken out, with its name", id,
                   change));
    }
    for (const engine::TreeId id : roots_) {
      const auto it = records_.find(id);
      if (it != records_.end() && it->second) {
        LK_TRYV(mend_nameless(id, *it->second));
        continue;
      }
      const auto tree = trees_.find(id);
      if (tree == trees_.end() || !tree->second->has_root()) continue;
      const bool can_be_found = names_.contains(id) || trees_.at(kFirst)->can_find_the_lost();
      if (!can_be_found && id != kFirst) continue;
      // Its name follows, from what leads there or into lost+found.
      Subvolume fresh;
      fresh.created_ns = mender_.now_ns();
      LK_TRYV(mend(
          "a subvolume without a record that can be read got a new one", id,
          [&](engine::Transaction& transaction) { return put_subvolume(transaction, id, fresh); }));
    }
    return {};
  }

  // The first one, and those that are being dropped, have no name; the first is not dropped.
  Result<void> mend_nameless(engine::TreeId id, const Subvolume& record) {
    if (id != kFirst && !record.removed) return {};
    Subvolume right = record;
    right.directory = {};
    right.stored.clear();
    right.removed = record.removed && id != kFirst;
    if (encode_subvolume(right) == encode_subvolume(record)) return {};
    return mend(
        "the record of a subvolume that has no name says so", id,
        [&](engine::Transaction& transaction) { return put_subvolume(transaction, id, right); });
  }

  Result<void> mend_next() {
    engine::TreeId end = kFirst + 1;
    for (const engine::TreeId id : roots_)
      if (id != ~u64{0}) end = std::max(end, id + 1);
    if (next_ && *next_ >= end) return {};
    const Le64 next(end);
    return mend("the counter of subvolumes was set", end - 1,
                [&](engine::Transaction& transaction) {
                  return transaction.put(kSubvolumeTree, kSubvolumeIdKey,
                                         std::as_bytes(std::span(&next, 1)));
                });
  }

  // --- names
  // --------------------------------------------------------------------------------------

  Result<void> mend_places() {
    for (const auto& [id, names] : names_)
      for (const Name& name : names) {
        const InodeRecords* directory = find(name.directory);
        if (directory == nullptr || directory->item_malformed) continue;
        const std::string& stored = name.entry->stored;
        if (!directory->is_directory() || !could_be_stored(stored, directory->item->encrypted)) {
          LK_TRYV(mend(
              "a name of a subvolume where none can be was taken out", id,
              [&](engine::Transaction& transaction) { return erase_name(transaction, name); }));
          continue;
        }
        const u64 hash = entry_offset(stored);
        if (hash == (name.entry->key.offset & ~(kEntrySlots - 1))) continue;
        const auto change = [&](engine::Transaction& transaction) -> Result<void> {
          const engine::TreeId tree = name.directory.subvolume;
          LK_TRY(const engine::Key key,
                 free_slot(transaction, tree, {name.directory.number, kEntryType, hash}));
          LK_TRYV(erase_name(transaction, name));
          return transaction.put(tree, key, encode_entry(*name.entry));
        };
        LK_TRYV(mend("a directory entry was put where it is looked for", id, change));
      }
    return {};
  }

  Result<void> mend_names() {
    for (const auto& [id, record] : records_)
      if (record && id != kFirst && !record->removed && roots_.contains(id))
        LK_TRYV(mend_name(id, *record));
    if (mender_.steps() != before_) return {};
    // What is left leads to one that lies elsewhere, is being dropped, or is gone. In a snapshot it
    // stands for an empty directory.
    for (const auto& [id, names] : names_)
      for (const Name& name : names) {
        if (is_right(id, name) || origin_of(name.directory.subvolume) != 0) continue;
        LK_TRYV(
            mend("a name of a subvolume that is not there was taken out", id,
                 [&](engine::Transaction& transaction) { return erase_name(transaction, name); }));
      }
    return {};
  }

  engine::TreeId origin_of(engine::TreeId id) const {
    const auto it = records_.find(id);
    return it != records_.end() && it->second ? it->second->origin : 0;
  }
  bool is_right(engine::TreeId id, const Name& name) const {
    const auto it = records_.find(id);
    return it != records_.end() && it->second && !it->second->removed &&
           it->second->directory == name.directory && it->second->stored == name.entry->stored;
  }

  // Exactly one name, which the record knows.
  Result<void> mend_name(engine::TreeId id, const Subvolume& record) {
    std::vector<Name> real;  // candidates, the record's own first
    for (const Name& name : names_[id]) {
      const bool of_parent = name.directory.subvolume == record.directory.subvolume;
      if (is_right(id, name))
        real.insert(real.begin(), name);
      else if ((of_parent || origin_of(name.directory.subvolume) == 0) &&
               may_hold(name.directory, id, name.entry->stored))
        real.push_back(name);
    }
    if (real.empty()) return name_again(id, record);
    if (!is_right(id, real[0])) {
      Subvolume right = record;
      right.directory = real[0].directory;
      right.stored = real[0].entry->stored;
      return mend(
          "the record of a subvolume says what its name is", id,
          [&](engine::Transaction& transaction) { return put_subvolume(transaction, id, right); });
    }
    for (std::size_t i = 1; i < real.size(); ++i)
      LK_TRYV(
          mend("a second name of a subvolume was taken out", id,
               [&](engine::Transaction& transaction) { return erase_name(transaction, real[i]); }));
    return {};
  }

  Result<void> name_again(engine::TreeId id, const Subvolume& record) {
    if (may_hold(record.directory, id, record.stored) && !is_taken(record.directory, record.stored))
      return put_name(id, record, nullptr,
                      "a name that its subvolume's record knows was made anew");
    return into_lost_and_found(id, record, nullptr);
  }

  bool is_taken(InodeId directory, const std::string& stored) const {
    const TreeRecords& tree = *trees_.at(directory.subvolume);
    const auto is_it = [&](const Entry& entry) {
      return entry.key.object == directory.number && entry.stored == stored;
    };
    return std::ranges::any_of(tree.names, is_it) ||
           std::ranges::any_of(tree.subvolume_names, is_it);
  }

  Result<void> put_name(engine::TreeId id, const Subvolume& record, const Name* old,
                        std::string what) {
    const InodeId above = record.directory;
    return mend(std::move(what), id, [&](engine::Transaction& transaction) -> Result<void> {
      LK_TRY(const engine::Key key,
             free_slot(transaction, above.subvolume,
                       {above.number, kEntryType, entry_offset(record.stored)}));
      if (old != nullptr) LK_TRYV(erase_name(transaction, *old));
      const Entry entry{key, {id, kRootNumber}, FileKind::subvolume, record.stored};
      LK_TRYV(transaction.put(above.subvolume, key, encode_entry(entry)));
      return put_subvolume(transaction, id, record);
    });
  }

  Result<void> into_lost_and_found(engine::TreeId id, Subvolume record, const Name* old) {
    const auto first = trees_.find(kFirst);
    if (first == trees_.end() || find({id, kRootNumber}) == nullptr) return {};
    LK_TRY(const auto place, lost_and_found(mender_, *first->second));
    if (!place) return {};
    record.directory = {kFirst, *place};
    LK_TRY(record.stored, free_name(mender_.view(), record.directory, id, "subvolume-"));
    return put_name(id, record, old, "nothing led here; it is in lost+found now");
  }

  // --- circles
  // ------------------------------------------------------------------------------------

  bool is_below_the_first(engine::TreeId id) const {
    for (std::size_t depth = 0; depth <= records_.size(); ++depth) {
      if (id == kFirst) return true;
      const auto it = records_.find(id);
      if (it == records_.end() || !it->second) return false;
      id = it->second->directory.subvolume;
    }
    return false;
  }

  // One at a time: others may be below it.
  Result<void> mend_circles() {
    for (const auto& [id, record] : records_) {
      if (!record || record->removed || !roots_.contains(id) || is_below_the_first(id)) continue;
      const auto& names = names_[id];
      const auto own =
          std::ranges::find_if(names, [&](const Name& name) { return is_right(id, name); });
      return into_lost_and_found(id, *record, own == names.end() ? nullptr : &*own);
    }
    return {};
  }

  Mender& mender_;
  const u64 before_;
  std::map<engine::TreeId, const TreeRecords*> trees_;
  std::set<engine::TreeId> roots_;  // trees that there are
  std::map<engine::TreeId, std::optional<Subvolume>> records_;
  std::map<engine::TreeId, std::vector<Name>> names_;  // that lead to it
  std::optional<u64> next_;
};

}  // namespace

Result<bool> mend_subvolumes(Mender& mender, const std::vector<TreeRecords>& trees) {
  return SubvolumeMender(mender, trees).run();
}

}  // namespace latchkey::volume
