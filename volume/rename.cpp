// Names that move: one transaction, between at most two directories.

#include <algorithm>
#include <optional>

#include "volume/back_items.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr u32 kRenameRecords = 12;
constexpr u32 kRenameBytes = 2600;
constexpr u32 kDepthMax = 1U << 20;  // of directories: a damaged store may hold a loop

// Whether `inode` is `directory` or above it. A directory has one back item.
Result<bool> is_above(const engine::View& view, InodeId inode, InodeId directory) {
  for (u32 depth = 0; depth < kDepthMax; ++depth) {
    if (directory == inode) return true;
    if (directory.number == kRootNumber) return false;
    LK_TRY(directory, parent_of(view, directory));
  }
  return fail(Errc::malformed, "directories that hold each other");
}

bool item_is_directory(const Entry& entry) {
  return entry.kind == FileKind::directory || entry.kind == FileKind::subvolume;
}

}  // namespace

// What a rename is about, looked up without locks first and again under them.
struct Volume::State::Rename {
  struct Side {
    Side(InodeId in, std::string_view called) : directory(in), name(called) {}
    InodeId directory;
    std::string_view name;
    Use parent;
    Attributes above;  // of the directory
    bool locked = false;
    std::string stored;  // the name as it is stored there; unknown while it is locked
    std::optional<Entry> entry;
    Use inode;  // that it leads to

    InodeId leads_to() const { return entry ? entry->inode : InodeId{}; }  // {}: no such name
  };

  State& state;
  RenameFlags flags;
  Side from, to;

  bool same_directory() const { return from.directory == to.directory; }

  bool is_itself() const { return to.entry && to.entry->inode == from.entry->inode; }

  Result<void> open(Side& side) {
    LK_TRYV(check_name(side.name));
    LK_TRY(side.parent, state.use(side.directory));
    return {};
  }

  Result<void> look_up(Side& side) {
    side.above = side.parent->attributes();
    if (side.above.kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
    if (side.parent->unlinked) return fail(Errc::not_found, "the directory is gone");
    LK_TRY(auto stored, state.stored_name(side.directory, side.above, side.name));
    side.locked = !stored;
    if (side.locked) return find_locked(side);
    side.stored = std::move(*stored);
    LK_TRY(side.entry, state.find_stored(state.store->view(), side.directory, side.stored));
    return {};
  }

  // Nothing is renamed there; but what is not there, or is in the way, is told before that.
  Result<void> find_locked(Side& side) {
    auto entry = state.find_entry(side.directory, side.name);
    if (!entry && entry.error().code != Errc::not_found) return std::unexpected(entry.error());
    side.entry.reset();
    if (entry) side.entry = std::move(*entry);
    return {};
  }

  // What the name leads to, in use. A name that leads nowhere may have been removed this moment;
  // the look under locks tells.
  Result<void> take(Side& side) {
    if (!side.entry) return {};
    auto taken = state.use(side.entry->inode);
    if (!taken && taken.error().code == Errc::not_found) return {};
    LK_TRY(side.inode, std::move(taken));
    return {};
  }
  static Result<void> must_lead_somewhere(const Side& side) {
    if (!side.entry || side.inode.inode() != nullptr) return {};
    return fail(Errc::damaged, "a name leads to an inode that is not there");
  }

  Result<bool> unchanged(Side& side) {
    const InodeId before = side.leads_to();
    LK_TRYV(look_up(side));
    return side.leads_to() == before;
  }

  Result<void> allowed();
  Result<void> may_leave(const Side& moved);
  Result<void> may_enter(const Side& moved, const Side& into);
  Result<void> may_replace();
  Result<void> apply();
  Result<engine::Key> place_of_new_name(const engine::View& view);
  // Where records lie and will lie: all that can fail is looked up before anything is changed.
  struct Places {
    engine::Key entry;                              // of the new name
    std::optional<engine::Key> from_back, to_back;  // of both inodes as they are
    engine::Key fresh_from_back, fresh_to_back;     // as they become
  };
  Result<Places> find_places(const engine::View& view);
  Result<void> move_names(engine::Transaction& transaction, const Places& places);
};

Result<void> Volume::State::Rename::allowed() {
  if (!from.entry) return fail(Errc::not_found, "there is no such name");
  if (flags.exchange && !to.entry) return fail(Errc::not_found, "there is no such name");
  if (flags.no_replace && to.entry) return fail(Errc::exists, "there is such a name already");
  if (is_itself()) return {};
  if (from.locked || to.locked)
    return fail(Errc::no_key, "the directory is locked: its key is not present");
  for (const Side* side : {&from, &to})
    if (side->leads_to().number == kEmptyNumber)
      return fail(Errc::not_permitted, "a snapshot has nothing of the subvolumes below");
  LK_TRYV(may_leave(from));
  if (flags.exchange) LK_TRYV(may_leave(to));
  LK_TRYV(may_enter(from, to));
  if (flags.exchange) return may_enter(to, from);
  return to.entry ? may_replace() : Result<void>{};
}

// The names of a directory that is held open can be seen, and taken away; what they lead to moves
// only if it is unlocked itself.
Result<void> Volume::State::Rename::may_leave(const Side& moved) {
  return moved.above.encrypted ? state.must_hold_key(*moved.inode) : Result<void>{};
}

Result<void> Volume::State::Rename::may_enter(const Side& moved, const Side& into) {
  if (same_directory()) return {};
  const Attributes item = moved.inode->attributes();
  if (!has_policy_of(item, into.above))
    return fail(Errc::cross_key, "the directory has another encryption policy");
  if (item.kind != FileKind::directory) return {};
  LK_TRY(const bool loop, is_above(state.store->view(), moved.entry->inode, into.directory));
  if (loop) return fail(Errc::invalid, "a directory cannot move below itself");
  return {};
}

Result<void> Volume::State::Rename::may_replace() {
  if (to.entry->kind == FileKind::subvolume)
    return fail(Errc::not_permitted, "a subvolume goes by a call of its own: snapshot rm");
  const bool moves_directory = item_is_directory(*from.entry);
  const bool finds_directory = to.entry->kind == FileKind::directory;
  if (moves_directory && !finds_directory) return fail(Errc::not_dir, "not a directory");
  if (!moves_directory && finds_directory) return fail(Errc::is_dir, "is a directory");
  if (!finds_directory) return {};
  LK_TRY(const bool empty, state.is_empty(to.entry->inode));
  if (!empty) return fail(Errc::not_empty, "the directory is not empty");
  return {};
}

Result<void> Volume::State::Rename::apply() {
  const bool replaces = to.entry && !flags.exchange;
  LK_TRY(auto space, state.reserve({0, kRenameRecords, kRenameBytes}, replaces));
  const i64 now = static_cast<i64>(state.env.realtime_ns());
  LK_TRY(engine::Transaction transaction, state.store->begin(std::move(space)));
  LK_TRY(const Places places, find_places(transaction));
  LK_TRYV(move_names(transaction, places));
  const auto touch = [&](const Side& side, bool directory) -> Result<void> {
    const Use& inode = directory ? side.parent : side.inode;
    if (!directory && side.entry->kind == FileKind::subvolume) return {};
    const Attributes item = inode->change([&](Attributes& attributes) {
      attributes.ctime_ns = now;
      if (directory) attributes.mtime_ns = now;
    });
    inode->last_transaction = transaction.id();
    return put_inode(transaction, inode->id(), item);
  };
  LK_TRYV(touch(from, false));
  if (flags.exchange) LK_TRYV(touch(to, false));
  LK_TRYV(touch(from, true));
  if (!same_directory()) LK_TRYV(touch(to, true));
  return replaces ? state.drop_link(transaction, *to.inode, now) : Result<void>{};
}

Result<engine::Key> Volume::State::Rename::place_of_new_name(const engine::View& view) {
  if (to.entry) return to.entry->key;
  const u64 base = entry_offset(to.stored);
  // The old name's own place is free by then.
  if (same_directory() && entry_offset(from.stored) == base) return from.entry->key;
  LK_TRY(const u64 place, state.free_place(view, to.directory, base));
  return engine::Key{to.directory.number, kEntryType, place};
}

Result<Volume::State::Rename::Places> Volume::State::Rename::find_places(const engine::View& view) {
  Places places;
  const NameOfInode from_name{from.directory.number, from.stored},
      to_name{to.directory.number, to.stored};
  LK_TRY(places.entry, place_of_new_name(view));
  LK_TRY(places.from_back, find_back(view, from.entry->inode, from_name));
  LK_TRY(places.fresh_from_back, place_of_back(view, from.entry->inode, to_name, places.from_back));
  if (to.entry) {
    LK_TRY(places.to_back, find_back(view, to.entry->inode, to_name));
  }
  if (flags.exchange) {
    LK_TRY(places.fresh_to_back, place_of_back(view, to.entry->inode, from_name, places.to_back));
  }
  return places;
}

Result<void> Volume::State::Rename::move_names(engine::Transaction& transaction,
                                               const Places& places) {
  const engine::TreeId tree = from.directory.subvolume;
  const auto put_name = [&](const engine::Key& key, const engine::Key& back, const Side& moved,
                            const Side& into) -> Result<void> {
    const Entry entry{key, moved.entry->inode, moved.entry->kind, into.stored};
    LK_TRYV(transaction.put(tree, key, encode_entry(entry)));
    if (entry.kind == FileKind::subvolume)
      return state.move_subvolume(transaction, entry.inode.subvolume, into.directory, into.stored);
    return transaction.put(tree, back, encode_back({into.directory.number, into.stored}));
  };
  if (places.from_back) LK_TRYV(transaction.erase(tree, *places.from_back));
  if (places.to_back) LK_TRYV(transaction.erase(tree, *places.to_back));
  if (flags.exchange) {
    LK_TRYV(put_name(from.entry->key, places.fresh_to_back, to, from));
  } else {
    LK_TRYV(transaction.erase(tree, from.entry->key));
  }
  return put_name(places.entry, places.fresh_from_back, from, to);
}

Result<void> Volume::State::rename(InodeId from_directory, std::string_view from,
                                   InodeId to_directory, std::string_view to, RenameFlags flags) {
  LK_TRYV(must_be_writable(from_directory));
  LK_TRYV(must_be_writable(to_directory));
  if (flags.no_replace && flags.exchange)
    return fail(Errc::invalid, "no_replace and exchange exclude each other");
  if (from_directory.subvolume != to_directory.subvolume)
    return fail(Errc::cross_key, "a name in one subvolume leads to nothing in another");
  for (;;) {
    Rename rename{*this, flags, Rename::Side(from_directory, from), Rename::Side(to_directory, to)};
    LK_TRYV(rename.open(rename.from));
    LK_TRYV(rename.open(rename.to));
    LK_TRYV(rename.look_up(rename.from));
    LK_TRYV(rename.look_up(rename.to));
    LK_TRYV(rename.take(rename.from));
    LK_TRYV(rename.take(rename.to));
    {
      std::optional<Lock> move;
      if (!rename.same_directory()) move.emplace(move_mutex);
      const InodeId target = rename.to.entry ? rename.to.entry->inode : to_directory;
      const DirectoryLocks locks(directories, {from_directory, to_directory, target});
      LK_TRY(const bool from_unchanged, rename.unchanged(rename.from));
      LK_TRY(const bool to_unchanged, rename.unchanged(rename.to));
      if (!from_unchanged || !to_unchanged) continue;
      LK_TRYV(Rename::must_lead_somewhere(rename.from));
      LK_TRYV(Rename::must_lead_somewhere(rename.to));
      LK_TRYV(rename.allowed());
      if (!rename.is_itself()) LK_TRYV(rename.apply());
    }
    if (rename.to.inode.inode() != nullptr) stop_lingering_if_unlinked(*rename.to.inode);
    return rename.to.inode.end();  // reaps what was replaced
  }
}

Result<void> Volume::rename(InodeId from_directory, std::string_view from, InodeId to_directory,
                            std::string_view to, RenameFlags flags) {
  return state_->rename(from_directory, from, to_directory, to, flags);
}

}  // namespace latchkey::volume
