// Subvolumes and snapshots: made, listed, removed. A removed one has no name any more; its tree is
// dropped in steps by a worker, or by whoever calls finish_removals().

#include "volume/subvolumes.h"

#include <algorithm>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/wait.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr u32 kRecords = 16;  // names, counters, two directories' items, the subvolume's record
constexpr u64 kRecordBytes = 3000;
constexpr u32 kNodesAStep = 32;  // freed under one hold of the forest
constexpr u64 kGiveWayNsMax = 10'000'000;
constexpr engine::Key kLastKey{~u64{0}, 255, ~u64{0}};

Subvolume named(InodeId directory, std::string_view stored, i64 created_ns) {
  Subvolume subvolume;
  subvolume.directory = directory;
  subvolume.stored = stored;
  subvolume.created_ns = created_ns;
  return subvolume;
}

}  // namespace

// --- what is known of them ----------------------------------------------------------------------

Result<void> Volume::State::load_subvolumes() {
  std::unordered_map<engine::TreeId, Subvolume> found;
  Result<void> wrong;
  LK_TRYV(store->view().scan(
      kSubvolumeTree, {1, 0, 0}, kLastKey, [&](const engine::Key& key, Bytes value) {
        auto subvolume = decode_subvolume(value);
        if (!subvolume || key != subvolume_key(key.object) || !engine::is_subvolume(key.object)) {
          wrong = fail(Errc::malformed, "the record of a subvolume is malformed");
          return false;
        }
        found.emplace(key.object, std::move(*subvolume));
        return true;
      }));
  LK_TRYV(wrong);
  const auto first = found.find(kRootInode.subvolume);
  if (first == found.end() || first->second.removed)
    return fail(Errc::malformed, "the store has no first subvolume");
  for (const auto& [id, subvolume] : found) {
    if (!subvolume.removed) continue;
    Lock lock(worker_mutex);
    to_drop.push_back(id);
  }
  Lock lock(table_mutex);
  subvolumes = std::move(found);
  return {};
}

bool Volume::State::is_there(engine::TreeId subvolume) const {
  const auto it = subvolumes.find(subvolume);
  return it != subvolumes.end() && !it->second.removed;
}

Result<void> Volume::State::must_be_there(engine::TreeId subvolume) {
  Lock lock(table_mutex);
  if (!is_there(subvolume)) return fail(Errc::not_found, "there is no such subvolume");
  return {};
}

Result<void> Volume::State::must_be_writable(InodeId inode) {
  LK_TRYV(must_be_writable());
  if (auto failure = store->failure()) return std::unexpected(*failure);
  if (inode.number == kEmptyNumber)
    return fail(Errc::read_only, "a snapshot has nothing of the subvolumes below");
  Lock lock(table_mutex);
  if (!is_there(inode.subvolume)) return fail(Errc::not_found, "there is no such subvolume");
  if (subvolumes.at(inode.subvolume).read_only)
    return fail(Errc::read_only, "the snapshot is read-only");
  return {};
}

std::vector<engine::TreeId> Volume::State::all_subvolumes() {
  std::vector<engine::TreeId> ids;
  Lock lock(table_mutex);
  for (const auto& [id, subvolume] : subvolumes)
    if (!subvolume.removed) ids.push_back(id);
  std::ranges::sort(ids);
  return ids;
}

// The name of a subvolume, by its root directory, which it moves to the subvolume above.
std::optional<NameOfInode> Volume::State::name_of_subvolume(InodeId& root) {
  Lock lock(table_mutex);
  const auto it = subvolumes.find(root.subvolume);
  if (it == subvolumes.end() || it->second.stored.empty()) return std::nullopt;
  root.subvolume = it->second.directory.subvolume;
  return NameOfInode{it->second.directory.number, it->second.stored};
}

// By a rename, which has put the entry.
Result<void> Volume::State::move_subvolume(engine::Transaction& transaction, engine::TreeId id,
                                           InodeId directory, const std::string& stored) {
  Subvolume moved;
  {
    Lock lock(table_mutex);
    moved = subvolumes.at(id);
  }
  moved.directory = directory;
  moved.stored = stored;
  LK_TRYV(put_subvolume(transaction, id, moved));
  Lock lock(table_mutex);
  subvolumes.at(id) = moved;
  return {};
}

// Where an entry of that directory leads: into the subvolume if it is its name.
void Volume::State::cross(InodeId directory, Entry& entry) {
  if (entry.kind != FileKind::subvolume) return;
  Lock lock(table_mutex);
  const auto it = subvolumes.find(entry.inode.subvolume);
  if (it != subvolumes.end() && it->second.directory.subvolume == directory.subvolume) return;
  entry.kind = FileKind::directory;
  entry.inode = {directory.subvolume, kEmptyNumber};
}

// --- made ---------------------------------------------------------------------------------------

// The last part of a transaction that makes one, after everything that can fail by a look-up.
Result<void> Volume::State::name_subvolume(engine::Transaction& transaction, engine::TreeId id,
                                           const NewName& place, const Subvolume& subvolume) {
  const Entry entry{place.entry, {id, kRootNumber}, FileKind::subvolume, place.name.stored};
  LK_TRYV(transaction.put(subvolume.directory.subvolume, place.entry, encode_entry(entry)));
  LK_TRYV(put_subvolume(transaction, id, subvolume));
  Lock lock(table_mutex);
  subvolumes.emplace(id, subvolume);
  return {};
}

Result<InodeId> Volume::create_subvolume(Caller caller, InodeId directory, std::string_view name,
                                         u32 mode) {
  State& state = *state_;
  LK_TRYV(check_name(name));
  LK_TRYV(state.must_be_writable(directory));
  LK_TRYV(state.must_be_free(directory, name));
  LK_TRY(const State::Use parent, state.use(directory));
  const DirectoryLocks locks(state.directories, {directory});
  LK_TRY(auto place, state.place_for_name(*parent, name));
  LK_TRY(const Attributes root,
         state.inherit(caller, place.above, {.kind = FileKind::directory, .mode = mode}));
  LK_TRY(auto space, state.reserve({0, kRecords, kRecordBytes + state.store->facts().node_bytes}));
  LK_TRY(engine::Transaction transaction, state.store->begin(std::move(space)));
  LK_TRYV(state.find_room(transaction, directory, place));
  LK_TRY(const engine::TreeId id, take_subvolume_id(transaction));
  LK_TRYV(transaction.create_tree(id));
  const InodeId made{id, kRootNumber};
  LK_TRYV(put_inode(transaction, made, root));
  const Le64 counter(kRootNumber + 1);
  LK_TRYV(transaction.put(id, {kCounterObject, kCounterType, 0},
                          std::as_bytes(std::span(&counter, 1))));
  LK_TRYV(state.touch_directory(transaction, *parent, root.mtime_ns));
  LK_TRYV(state.name_subvolume(transaction, id, place,
                               named(directory, place.name.stored, root.mtime_ns)));
  return made;
}

Result<InodeId> Volume::snapshot(Caller caller, InodeId source, InodeId directory,
                                 std::string_view name, bool read_only) {
  (void)caller;
  State& state = *state_;
  LK_TRYV(check_name(name));
  if (source.number != kRootNumber)
    return fail(Errc::invalid, "only a whole subvolume has snapshots");
  LK_TRYV(state.must_be_writable(directory));
  LK_TRYV(state.must_be_free(directory, name));
  LK_TRY(const State::Use from, state.use(source));
  LK_TRYV(state.flush_subvolume(source.subvolume));
  LK_TRY(const InodeId made, state.clone_subvolume(*from, directory, name, read_only));
  // Files that were open without a name belong to nobody here. The next open reaps what is left.
  (void)state.reap_orphans(made.subvolume);
  LK_TRYV(state.store->commit());
  return made;
}

Result<void> Volume::State::flush_subvolume(engine::TreeId subvolume) {
  std::vector<InodePtr> dirty = dirty_inodes();
  std::erase_if(dirty, [&](const InodePtr& inode) { return inode->id().subvolume != subvolume; });
  const Flushed flushed = flush_many(dirty, true);
  for (const InodePtr& inode : dirty) forget_if_idle(inode);
  return flushed.result;
}

Result<InodeId> Volume::State::clone_subvolume(const Inode& source, InodeId directory,
                                               std::string_view name, bool read_only) {
  LK_TRY(const Use parent, use(directory));
  const DirectoryLocks locks(directories, {directory});
  LK_TRY(auto place, place_for_name(*parent, name));
  if (!has_policy_of(source.attributes(), place.above))
    return fail(Errc::cross_key, "the directory has another encryption policy");
  engine::SpaceNeed need{0, kRecords, kRecordBytes};
  need.clone = true;
  LK_TRY(auto space, reserve(need));
  Subvolume fresh = named(directory, place.name.stored, static_cast<i64>(env.realtime_ns()));
  fresh.read_only = read_only;
  fresh.origin = source.id().subvolume;
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRYV(find_room(transaction, directory, place));
  LK_TRY(const engine::TreeId id, take_subvolume_id(transaction));
  // Before the name is put: a snapshot that lies in what it is of does not hold itself.
  LK_TRYV(transaction.clone_tree(fresh.origin, id));
  LK_TRYV(touch_directory(transaction, *parent, fresh.created_ns));
  LK_TRYV(name_subvolume(transaction, id, place, fresh));
  return InodeId{id, kRootNumber};
}

// --- listed -------------------------------------------------------------------------------------

Result<std::vector<SubvolumeInfo>> Volume::list_subvolumes() {
  State& state = *state_;
  std::vector<SubvolumeInfo> list;
  {
    Lock lock(state.table_mutex);
    for (const auto& [id, subvolume] : state.subvolumes)
      list.push_back({id,
                      subvolume.directory.subvolume,
                      subvolume.origin,
                      subvolume.created_ns,
                      subvolume.read_only,
                      subvolume.removed,
                      {}});
  }
  std::ranges::sort(list, {}, &SubvolumeInfo::id);
  for (SubvolumeInfo& info : list) {
    if (info.removed) continue;
    LK_TRY(info.path, state.path_of({info.id, kRootNumber}));
  }
  return list;
}

// --- removed ------------------------------------------------------------------------------------

// From here on nobody gets in. Refused while somebody is inside.
Result<void> Volume::State::shut_subvolume(engine::TreeId id, std::vector<Holder>* holders) {
  Lock lock(table_mutex);
  if (!is_there(id)) return fail(Errc::not_found, "there is no such subvolume");
  for (const auto& [other, subvolume] : subvolumes)
    if (subvolume.directory.subvolume == id)
      return fail(Errc::not_empty, "there are subvolumes below");
  bool busy = false;
  for (const auto& [number, handle] : handles) {
    if (handle->inode->id().subvolume != id) continue;
    busy = true;
    if (holders == nullptr) continue;
    holders->push_back(handle->as_holder(HandleId{number}));
  }
  for (const auto& [inode_id, inode] : inodes)
    busy = busy || (inode_id.subvolume == id && inode->users != 0);
  if (holders != nullptr) std::ranges::sort(*holders, {}, &Holder::handle);
  if (busy) return fail(Errc::busy, "files or directories of the subvolume are in use");
  subvolumes.at(id).removed = true;
  return {};
}

Result<void> Volume::remove_subvolume(InodeId directory, std::string_view name,
                                      std::vector<Holder>* holders) {
  State& state = *state_;
  LK_TRYV(state.must_be_writable(directory));
  LK_TRY(const State::Use parent, state.use(directory));
  const DirectoryLocks locks(state.directories, {directory});
  LK_TRY(const Entry entry, state.find_entry(directory, name));
  if (entry.kind != FileKind::subvolume) return fail(Errc::invalid, "not a subvolume");
  const engine::TreeId id = entry.inode.subvolume;
  LK_TRYV(state.shut_subvolume(id, holders));
  const auto removed = state.take_name(*parent, entry);
  if (!removed) {
    Lock lock(state.table_mutex);
    state.subvolumes.at(id).removed = false;
    return removed;
  }
  state.forget_subvolume(id);
  if (state.workers.empty()) (void)state.finish_removals({});
  return {};
}

// The name goes and the record says that the tree is being dropped.
Result<void> Volume::State::take_name(Inode& parent, const Entry& entry) {
  LK_TRY(auto space, store->reserve({0, kNameOpRecords, kNameOpBytes}, true));
  const i64 now = static_cast<i64>(env.realtime_ns());
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  Subvolume gone;
  {
    Lock lock(table_mutex);
    gone = subvolumes.at(entry.inode.subvolume);
  }
  gone.directory = {};
  gone.stored.clear();
  LK_TRYV(transaction.erase(parent.id().subvolume, entry.key));
  LK_TRYV(put_subvolume(transaction, entry.inode.subvolume, gone));
  LK_TRYV(touch_directory(transaction, parent, now));
  Lock lock(table_mutex);
  subvolumes.at(entry.inode.subvolume) = gone;
  return {};
}

// What is in memory of it goes, dirty or not; nobody uses it. Then its tree may go.
void Volume::State::forget_subvolume(engine::TreeId id) {
  std::vector<InodePtr> left;
  {
    Lock lock(table_mutex);
    for (const auto& [inode_id, inode] : inodes)
      if (inode_id.subvolume == id) left.push_back(inode);
  }
  for (const InodePtr& inode : left) {
    {
      Lock flush_lock(inode->flush_mutex);
      inode->drop_pages(0);
    }
    forget_if_idle(inode);
  }
  {
    Lock lock(worker_mutex);
    to_drop.push_back(id);
  }
  memory.kick();
}

// Frees a bounded number of nodes of one removed subvolume. False: there is nothing to do, or
// somebody does it. Where others wait for the trees they get them for as long as the step took: the
// next one would find the lock free before a waiter is awake.
Result<bool> Volume::State::drop_step() {
  engine::TreeId id = 0;
  {
    Lock lock(worker_mutex);
    if (to_drop.empty() || dropping) return false;
    dropping = true;
    id = to_drop.front();
  }
  const u64 begun = env.monotonic_ns();
  const auto gone = or_no_memory([&] { return drop_some(id); });
  if (store->wanted()) pause_for(std::min(env.monotonic_ns() - begun, kGiveWayNsMax));
  {
    Lock lock(worker_mutex);
    dropping = false;
    if (gone && *gone) to_drop.pop_front();
    dropped.notify_all();
  }
  if (!gone) return std::unexpected(gone.error());
  return true;
}

Result<bool> Volume::State::drop_some(engine::TreeId id) {
  LK_TRY(auto space, store->reserve({}, true));
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRY(const bool gone, transaction.drop_tree_step(id, kNodesAStep));
  if (!gone) return false;
  LK_TRYV(transaction.erase(kSubvolumeTree, subvolume_key(id)));
  counters.erase(id);
  Lock lock(table_mutex);
  subvolumes.erase(id);
  return true;
}

Result<void> Volume::State::finish_removals(const std::function<void(u64 steps)>& progress) {
  LK_TRYV(must_be_writable());
  for (u64 steps = 0;;) {
    LK_TRY(const bool stepped, drop_step());
    if (stepped) {
      if (progress) progress(++steps);
      continue;
    }
    Lock lock(worker_mutex);
    if (to_drop.empty()) return {};
    if (dropping) dropped.wait(worker_mutex);
  }
}

Result<void> Volume::finish_removals(const std::function<void(u64 steps)>& progress) {
  return state_->finish_removals(progress);
}

}  // namespace latchkey::volume
