// Changes of directories: making and removing names, policies, attributes. Each is one transaction.

#include <algorithm>

#include "base/check.h"
#include "crypto/names.h"
#include "engine/format.h"
#include "volume/back_items.h"
#include "volume/log_replay.h"
#include "volume/state.h"
#include "volume/xattr_records.h"

namespace latchkey::volume {

// The first free place among the names of one hash.
Result<u64> Volume::State::free_place(const engine::View& view, InodeId directory, u64 base) {
  u64 place = base;
  LK_TRYV(view.scan(directory.subvolume, {directory.number, kEntryType, base},
                    {directory.number, kEntryType, base + kEntrySlots - 1},
                    [&](const engine::Key& key, Bytes) {
                      if (key.offset == place) ++place;
                      return true;
                    }));
  if (place >= base + kNamesOfOneHashMax) return fail(Errc::no_space, "too many names of one hash");
  return place;
}

Result<void> Volume::State::read_counter(const engine::View& view, engine::TreeId subvolume) {
  LK_TRY(const u64 limit, number_limit(view, subvolume));
  counters[subvolume] = {limit, limit};
  return {};
}

// The counter on disk is ahead by a chunk: most creates do not touch it, and no number comes twice.
Result<InodeId> Volume::State::new_number(engine::Transaction& transaction,
                                          engine::TreeId subvolume) {
  if (!counters.contains(subvolume)) LK_TRYV(read_counter(transaction, subvolume));
  Counter& counter = counters[subvolume];
  if (counter.next == counter.limit) {
    LK_TRYV(put_number_limit(transaction, subvolume, counter.limit + kInodeChunk));
    counter.limit += kInodeChunk;
  }
  return InodeId{subvolume, counter.next++};
}

// Whether a name can be made, by a look without locks; place_for_name() and find_room() decide.
Result<void> Volume::State::must_be_free(InodeId directory, std::string_view name) {
  const auto there = find_entry(directory, name);
  if (there) return fail(Errc::exists, "there is such a name already");
  if (there.error().code != Errc::not_found) return std::unexpected(there.error());
  return {};
}

Result<Volume::State::NewName> Volume::State::place_for_name(const Inode& parent,
                                                             std::string_view name) {
  NewName place;
  place.above = parent.attributes();
  if (place.above.kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
  if (parent.unlinked) return fail(Errc::not_found, "the directory is gone");
  LK_TRY(auto stored, stored_name(parent.id(), place.above, name));
  if (!stored) return fail(Errc::no_key, "the directory is locked: its key is not present");
  place.name = {parent.id().number, std::move(*stored)};
  return place;
}

Result<void> Volume::State::find_room(const engine::View& view, InodeId directory, NewName& place) {
  LK_TRY(const auto there, find_stored(view, directory, place.name.stored));
  if (there) return fail(Errc::exists, "there is such a name already");
  LK_TRY(const u64 offset, free_place(view, directory, entry_offset(place.name.stored)));
  place.entry = {directory.number, kEntryType, offset};
  return {};
}

Result<void> Volume::State::put_name(engine::Transaction& transaction, const NewName& place,
                                     InodeId inode, FileKind kind) {
  const Entry entry{place.entry, inode, kind, place.name.stored};
  LK_TRYV(transaction.put(inode.subvolume, place.entry, encode_entry(entry)));
  return transaction.put(inode.subvolume, place.back, encode_back(place.name));
}

Result<void> Volume::State::touch_directory(engine::Transaction& transaction, Inode& directory,
                                            i64 now) {
  const Attributes item =
      directory.change([&](Attributes& above) { above.mtime_ns = above.ctime_ns = now; });
  return put_inode(transaction, directory.id(), item);
}

// What a new inode in that directory begins as.
Result<Attributes> Volume::State::inherit(Caller caller, const Attributes& above,
                                          const Fresh& what) {
  Attributes fresh;
  fresh.kind = what.kind;
  fresh.mode = what.mode & 07777;
  fresh.uid = caller.uid;
  fresh.gid = caller.gid.value_or(caller.uid);
  if ((above.mode & kSetGid) != 0) {
    fresh.gid = above.gid;
    if (what.kind == FileKind::directory) fresh.mode |= kSetGid;
  }
  set_all_times(fresh, static_cast<i64>(env.realtime_ns()));
  fresh.size = what.device;
  if (!above.encrypted || is_special(what.kind)) return fresh;
  // It needs the key itself, not the names of a directory that is still open.
  LK_TRYV(OwnLease(*this).take(above.key_id));
  fresh.encrypted = true;
  fresh.key_id = above.key_id;
  env.random(fresh.nonce.bytes);
  return fresh;
}

// Who meets the closed door here leaves no name behind. The lease_lock comes before a transaction's
// and is taken inside of one: it is free, and nobody waits for it who does not find the inode, by
// the list of handles from then on. Until the lease is there they wait for us, not we for them.
Result<void> Volume::State::open_new(NewHandle& handle, InodeId made, const Attributes& fresh,
                                     u64 transaction) {
  Use use;
  {
    Lock lock(table_mutex);
    use = Use(*this, add_to_table(made, fresh));
  }
  Inode& inode = *use;
  inode.last_transaction = transaction;
  ExclusiveLock lock(inode.lease_lock);
  handle.list(std::move(use));
  if (!inode.encrypted()) return {};
  return keyring.lease(inode.key_id(), inode.owner_word(), inode.key_lease);
}

Result<InodeId> Volume::State::make(Caller caller, InodeId directory, std::string_view name,
                                    const Fresh& what) {
  LK_TRYV(check_name(name));
  LK_TRYV(must_be_writable(directory));
  LK_TRY(const Use parent, use(directory));
  const DirectoryLocks locks(directories, {directory});
  LK_TRY(NewName place, place_for_name(*parent, name));
  LK_TRY(Attributes fresh, inherit(caller, place.above, what));
  std::string target;
  if (what.kind == FileKind::symlink) {
    LK_TRY(target, stored_target(fresh, what.target));
    fresh.size = target.size();
  }
  const u32 pieces = static_cast<u32>(target.size() / kTargetPieceBytes + 1);
  LK_TRY(auto space, reserve({0, kNameOpRecords + pieces, kNameOpBytes + target.size()}));
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRYV(find_room(transaction, directory, place));
  LK_TRY(const InodeId made, new_number(transaction, directory.subvolume));
  if (what.handle != nullptr) LK_TRYV(open_new(*what.handle, made, fresh, transaction.id()));
  place.back = {made.number, kBackType, back_offset(place.name)};
  LK_TRYV(put_name(transaction, place, made, what.kind));
  LK_TRYV(put_inode(transaction, made, fresh));
  LK_TRYV(count_inodes(transaction, directory.subvolume, +1));
  LK_TRYV(put_target(transaction, made, target));
  LK_TRYV(touch_directory(transaction, *parent, fresh.mtime_ns));
  if (what.kind == FileKind::regular)
    transaction.declare_create(
        {made.subvolume, made.number, directory.number, kCounterObject, kChangesOfACreate},
        create_note(fresh, {place.entry, made, what.kind, place.name.stored}));
  return made;
}

Result<InodeId> Volume::mkdir(Caller caller, InodeId directory, std::string_view name, u32 mode) {
  LK_TRYV(state_->must_be_free(directory, name));
  return state_->make(caller, directory, name, {.kind = FileKind::directory, .mode = mode});
}

Result<bool> Volume::State::is_empty(InodeId directory) {
  LK_TRY(const auto first,
         store->view().at_or_after(directory.subvolume, {directory.number, kEntryType, 0}));
  return !first || first->key.object != directory.number || first->key.type != kEntryType;
}

// Its last name is gone.
Result<void> Volume::State::make_orphan(engine::Transaction& transaction, Inode& inode, i64 now) {
  LK_TRYV(transaction.put(inode.id().subvolume, orphan_key(inode.id()), {}));
  const Attributes gone = inode.change([&](Attributes& attributes) {
    attributes.links = 0;
    attributes.ctime_ns = now;
  });
  LK_TRYV(put_inode(transaction, inode.id(), gone));
  Lock lock(table_mutex);
  inode.unlinked = true;
  return {};
}

// The name goes. The inode with its last one becomes an orphan; whoever uses it last reaps it, at
// once if that is this call.
Result<void> Volume::State::remove_name(InodeId directory, std::string_view name,
                                        bool of_directory) {
  LK_TRYV(must_be_writable(directory));
  LK_TRY(const Use parent, use(directory));
  LK_TRY(const Entry seen, find_entry(directory, name));
  if (seen.kind == FileKind::subvolume) {
    if (!of_directory) return fail(Errc::is_dir, "is a directory");
    return fail(Errc::not_permitted, "a subvolume goes by a call of its own: snapshot rm");
  }
  LK_TRY(Use target, use(seen.inode));
  {
    const DirectoryLocks locks(directories, {directory, seen.inode});
    LK_TRY(const Entry entry, find_entry(directory, name));
    // Replaced between two looks: as if this call had come first.
    if (entry.inode != seen.inode) return fail(Errc::not_found, "there is no such name");
    const bool finds_directory = entry.kind == FileKind::directory;
    if (of_directory && !finds_directory) return fail(Errc::not_dir, "not a directory");
    if (!of_directory && finds_directory) return fail(Errc::is_dir, "is a directory");
    if (of_directory) {
      LK_TRY(const bool empty, is_empty(entry.inode));
      if (!empty) return fail(Errc::not_empty, "the directory is not empty");
    }
    LK_TRY(auto space, store->reserve({0, kNameOpRecords, kNameOpBytes}, true));
    const i64 now = static_cast<i64>(env.realtime_ns());
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRY(const auto back, find_back(transaction, entry.inode, {directory.number, entry.stored}));
    LK_TRYV(transaction.erase(directory.subvolume, entry.key));
    if (back) LK_TRYV(transaction.erase(directory.subvolume, *back));
    LK_TRYV(touch_directory(transaction, *parent, now));
    if (entry.inode.number == kEmptyNumber) return {};  // no inode goes with this name
    LK_TRYV(drop_link(transaction, *target, now));
  }
  stop_lingering_if_unlinked(*target);
  return target.end();
}

Result<void> Volume::rmdir(InodeId directory, std::string_view name) {
  return state_->remove_name(directory, name, true);
}

Result<void> Volume::unlink(InodeId directory, std::string_view name) {
  return state_->remove_name(directory, name, false);
}

// Who knows the key, by a claim of his own, may set a policy with it; root, as whoever may change
// files of others, need not. compat: nor need the key be there for root.
Result<void> Volume::State::may_set_key(Caller caller, const crypto::KeyId& id) {
  const keymgr::KeyStatus key = keyring.status(id, caller.uid);
  const bool present = key.state == keymgr::KeyState::present;
  const bool root = caller.uid == 0;
  if (present ? key.claimed_by_caller || root : root && options.compat_fscrypt) return {};
  return fail(Errc::no_key, "the key is not present with a claim of the caller");
}

// In the kernel's order: what is wrong in several ways gets its answer.
Result<void> Volume::set_policy(Caller caller, InodeId directory, const crypto::KeyId& id,
                                const PolicyFields& fields) {
  State& state = *state_;
  LK_TRY(const State::Use inode, state.use(directory));
  const DirectoryLocks locks(state.directories, {directory});
  const Attributes now = inode->attributes();
  if (caller.uid != 0 && caller.uid != now.uid)
    return fail(Errc::permission, "only the owner of a directory sets its policy");
  LK_TRYV(state.must_be_writable(directory));
  if (now.encrypted) {
    if (now.key_id == id && fields == kPolicyFields) return {};
    return fail(Errc::exists, "the directory has another policy");
  }
  if (now.kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
  LK_TRY(const auto entries, state.list(directory));
  if (!entries.empty()) return fail(Errc::not_empty, "the directory is not empty");
  LK_TRY(const auto names, xattr_names(state.store->view(), directory));
  const bool clear = std::ranges::any_of(names, is_user_xattr);
  if (clear && !state.options.compat_fscrypt)
    return fail(Errc::not_empty, "the directory has user attributes, which are not encrypted");
  if (fields != kPolicyFields) return fail(Errc::invalid, "no store has a policy of this kind");
  LK_TRYV(state.may_set_key(caller, id));
  crypto::Nonce nonce;
  state.env.random(nonce.bytes);
  const auto encrypt = [&](Attributes& attributes) {
    attributes.encrypted = true;
    attributes.key_id = id;
    attributes.nonce = nonce;
  };
  LK_TRYV(state.change_attributes(*inode, encrypt, clear ? engine::kFeatureClearAttributes : 0));
  Lock lock(state.table_mutex);  // who has it open is inside from now on
  for (const u64 handle : inode->handle_ids)
    state.list_under_key(handle, *state.handles.at(handle));
  return {};
}

}  // namespace latchkey::volume
