// Changes of directories: making and removing names, policies, attributes. Each is one transaction.

#include <algorithm>

#include "base/check.h"
#include "crypto/names.h"
#include "volume/back_items.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr u32 kNameOpRecords = 8;
constexpr u32 kNameOpBytes = 1400;

}  // namespace

// The first free place among the names of one hash.
Result<u64> Volume::State::free_place(const engine::View& view, InodeId directory, u64 base) {
  u64 place = base;
  LK_TRYV(view.scan(directory.subvolume, {directory.number, kEntryType, base},
                    {directory.number, kEntryType, base + kEntrySlots - 1},
                    [&](const engine::Key& key, Bytes) {
                      if (key.offset == place) ++place;
                      return true;
                    }));
  if (place == base + kEntrySlots) return fail(Errc::no_space, "too many names of one hash");
  return place;
}

Result<void> Volume::State::read_counter(const engine::View& view, engine::TreeId subvolume) {
  LK_TRY(const auto record, view.get(subvolume, {kCounterObject, kCounterType, 0}));
  if (!record || record->value.size() != sizeof(Le64))
    return fail(Errc::malformed, "a subvolume has no counter of inode numbers");
  const u64 limit = load_disk<Le64>(record->value);
  counters[subvolume] = {limit, limit};
  return {};
}

// The counter on disk is ahead by a chunk: most creates do not touch it, and no number comes twice.
Result<InodeId> Volume::State::new_number(engine::Transaction& transaction,
                                          engine::TreeId subvolume) {
  if (!counters.contains(subvolume)) LK_TRYV(read_counter(transaction, subvolume));
  Counter& counter = counters[subvolume];
  if (counter.next == counter.limit) {
    const Le64 value(counter.limit + kInodeChunk);
    LK_TRYV(transaction.put(subvolume, {kCounterObject, kCounterType, 0},
                            std::as_bytes(std::span(&value, 1))));
    counter.limit += kInodeChunk;
  }
  return InodeId{subvolume, counter.next++};
}

Result<InodeId> Volume::State::make(Caller caller, InodeId directory, std::string_view name,
                                    FileKind kind, u32 mode) {
  LK_TRYV(check_name(name));
  LK_TRYV(must_be_writable());
  LK_TRY(const Use parent, use(directory));
  const DirectoryLocks locks(directories, {directory});
  const Attributes above = parent->attributes();
  if (above.kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
  if (parent->unlinked) return fail(Errc::not_found, "the directory is gone");
  LK_TRY(const auto stored, stored_name(directory, above, name));
  if (above.encrypted) {
    // A new inode needs the key itself, not the names of a directory that is still open.
    keymgr::Lease door;
    LK_TRYV(keyring.lease(above.key_id, kNoOwner, door));
    if (keyring.release(door)) slots->evict_key(above.key_id);
  }
  if (!stored) return fail(Errc::no_key, "the directory is locked: its key is not present");
  Attributes fresh;
  fresh.kind = kind;
  fresh.mode = mode & 07777;
  fresh.uid = caller.uid;
  fresh.gid = caller.uid;
  fresh.mtime_ns = fresh.ctime_ns = static_cast<i64>(env.realtime_ns());
  fresh.encrypted = above.encrypted;
  fresh.key_id = above.key_id;
  if (fresh.encrypted) env.random(fresh.nonce.bytes);
  Entry entry;
  entry.kind = kind;
  entry.stored = *stored;
  LK_TRY(auto space, store->reserve({0, kNameOpRecords, kNameOpBytes}));
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRY(const auto there, find_stored(transaction, directory, entry.stored));
  if (there) return fail(Errc::exists, "there is such a name already");
  LK_TRY(const u64 place, free_place(transaction, directory, entry_offset(entry.stored)));
  LK_TRY(entry.inode, new_number(transaction, directory.subvolume));
  LK_TRYV(transaction.put(directory.subvolume, {directory.number, kEntryType, place},
                          encode_entry(entry)));
  const NameOfInode back{directory.number, entry.stored};
  LK_TRYV(transaction.put(directory.subvolume, {entry.inode.number, kBackType, back_offset(back)},
                          encode_back(back)));
  LK_TRYV(put_inode(transaction, entry.inode, fresh));
  const Attributes item =
      parent->change([&](Attributes& now) { now.mtime_ns = now.ctime_ns = fresh.mtime_ns; });
  LK_TRYV(put_inode(transaction, directory, item));
  return entry.inode;
}

Result<InodeId> Volume::mkdir(Caller caller, InodeId directory, std::string_view name, u32 mode) {
  const auto there = state_->find_entry(directory, name);
  if (there) return fail(Errc::exists, "there is such a name already");
  if (there.error().code != Errc::not_found) return std::unexpected(there.error());
  return state_->make(caller, directory, name, FileKind::directory, mode);
}

Result<bool> Volume::State::is_empty(InodeId directory) {
  LK_TRY(const auto first,
         store->view().at_or_after(directory.subvolume, {directory.number, kEntryType, 0}));
  return !first || first->key.object != directory.number || first->key.type != kEntryType;
}

// Its last name is gone.
Result<void> Volume::State::make_orphan(engine::Transaction& transaction, Inode& inode, i64 now) {
  LK_TRYV(
      transaction.put(inode.id().subvolume, {kOrphanObject, kOrphanType, inode.id().number}, {}));
  const Attributes gone = inode.change([&](Attributes& attributes) {
    attributes.links = 0;
    attributes.ctime_ns = now;
  });
  LK_TRYV(put_inode(transaction, inode.id(), gone));
  Lock lock(table_mutex);
  inode.unlinked = true;
  return {};
}

// The name goes and the inode becomes an orphan; whoever uses it last reaps it, at once if that is
// this call.
Result<void> Volume::State::remove_name(InodeId directory, std::string_view name, FileKind kind) {
  LK_TRYV(must_be_writable());
  LK_TRY(const Use parent, use(directory));
  LK_TRY(const Entry seen, find_entry(directory, name));
  LK_TRY(Use target, use(seen.inode));
  {
    const DirectoryLocks locks(directories, {directory, seen.inode});
    LK_TRY(const Entry entry, find_entry(directory, name));
    // Replaced between two looks: as if this call had come first.
    if (entry.inode != seen.inode) return fail(Errc::not_found, "there is no such name");
    if (kind == FileKind::directory && entry.kind != kind)
      return fail(Errc::not_dir, "not a directory");
    if (kind == FileKind::regular && entry.kind != kind)
      return fail(Errc::is_dir, "is a directory");
    if (kind == FileKind::directory) {
      LK_TRY(const bool empty, is_empty(entry.inode));
      if (!empty) return fail(Errc::not_empty, "the directory is not empty");
    }
    LK_TRY(auto space, store->reserve({0, kNameOpRecords, kNameOpBytes}, true));
    const i64 now = static_cast<i64>(env.realtime_ns());
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRY(const auto back, find_back(transaction, entry.inode, {directory.number, entry.stored}));
    LK_TRYV(transaction.erase(directory.subvolume, entry.key));
    if (back) LK_TRYV(transaction.erase(directory.subvolume, *back));
    const Attributes item =
        parent->change([&](Attributes& above) { above.mtime_ns = above.ctime_ns = now; });
    LK_TRYV(put_inode(transaction, directory, item));
    LK_TRYV(make_orphan(transaction, *target, now));
  }
  return target.end();
}

Result<void> Volume::rmdir(InodeId directory, std::string_view name) {
  return state_->remove_name(directory, name, FileKind::directory);
}

Result<void> Volume::unlink(InodeId directory, std::string_view name) {
  return state_->remove_name(directory, name, FileKind::regular);
}

Result<void> Volume::State::change_attributes(InodeId number,
                                              const std::function<void(Attributes&)>& fn) {
  LK_TRYV(must_be_writable());
  LK_TRY(const Use inode, use(number));
  LK_TRY(auto space, store->reserve({0, 2, 256}));
  const i64 now = static_cast<i64>(env.realtime_ns());
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  const Attributes item = inode->change([&](Attributes& attributes) {
    fn(attributes);
    attributes.ctime_ns = now;
  });
  inode->last_transaction = transaction.id();
  return put_inode(transaction, number, item);
}

Result<void> Volume::set_times(InodeId inode, i64 mtime_ns) {
  return state_->change_attributes(inode,
                                   [&](Attributes& attributes) { attributes.mtime_ns = mtime_ns; });
}

Result<void> Volume::set_mode(InodeId inode, u32 mode) {
  return state_->change_attributes(inode,
                                   [&](Attributes& attributes) { attributes.mode = mode & 07777; });
}

Result<void> Volume::set_policy(Caller caller, InodeId directory, const crypto::KeyId& id) {
  State& state = *state_;
  LK_TRYV(state.must_be_writable());
  LK_TRY(const State::Use inode, state.use(directory));
  const DirectoryLocks locks(state.directories, {directory});
  const keymgr::KeyStatus key = state.keyring.status(id, caller.uid);
  if (key.state != keymgr::KeyState::present || !key.claimed_by_caller)
    return fail(Errc::no_key, "the key is not present with a claim of the caller");
  const Attributes now = inode->attributes();
  if (now.kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
  if (now.encrypted) {
    if (now.key_id == id) return {};
    return fail(Errc::exists, "the directory has another policy");
  }
  LK_TRY(const auto entries, state.list(directory));
  if (!entries.empty()) return fail(Errc::not_empty, "the directory is not empty");
  crypto::Nonce nonce;
  state.env.random(nonce.bytes);
  return state.change_attributes(directory, [&](Attributes& attributes) {
    attributes.encrypted = true;
    attributes.key_id = id;
    attributes.nonce = nonce;
  });
}

}  // namespace latchkey::volume
