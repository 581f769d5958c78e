// Inodes in memory and the handles on them.

#include "base/check.h"
#include "extent/context.h"
#include "volume/state.h"

namespace latchkey::volume {

Result<InodePtr> Volume::State::get(InodeNumber number) {
  {
    Lock lock(table_mutex);
    if (const auto it = inodes.find(number); it != inodes.end()) return it->second;
  }
  LK_TRY(const Attributes attributes, get_inode(store->view(), number));
  Lock lock(table_mutex);
  const auto [it, fresh] = inodes.try_emplace(number);
  if (fresh) it->second = std::make_shared<Inode>(number, attributes, *this);
  return it->second;
}

void Volume::State::return_lease(Inode& inode) {
  bool last = false;
  {
    ExclusiveLock lock(inode.lease_lock);
    if (!inode.key_lease.held()) return;
    last = keyring.release(inode.key_lease);
  }
  if (last) slots->evict_key(inode.key_id());
}

void Volume::State::forget_if_idle(const InodePtr& inode) {
  {
    Lock lock(table_mutex);
    if (inode->handles != 0 || !inode->clean()) return;
    const auto it = inodes.find(inode->number());
    if (it == inodes.end() || it->second != inode) return;
    inodes.erase(it);
  }
  return_lease(*inode);
}

// Takes the lease that the inode's data needs; one that a removal has cut off is given back first.
Result<void> Volume::State::unlock_inode(Inode& inode) {
  const Attributes attributes = inode.attributes();
  if (!attributes.encrypted) return {};
  {
    SharedLock lock(inode.lease_lock);
    if (inode.key_lease.held() && !inode.key_lease.cut_off()) return {};
  }
  ExclusiveLock lock(inode.lease_lock);
  if (inode.key_lease.held() && !inode.key_lease.cut_off()) return {};
  if (inode.key_lease.held()) keyring.release(inode.key_lease);
  return keyring.lease(attributes.key_id, inode.number(), inode.key_lease);
}

Result<std::shared_ptr<Handle>> Volume::State::find(HandleId id) {
  Lock lock(table_mutex);
  const auto it = handles.find(static_cast<u64>(id));
  if (it == handles.end()) return fail(Errc::bad_handle, "there is no such handle");
  return it->second;
}

HandleId Volume::State::add_handle(std::shared_ptr<Handle> handle) {
  Lock lock(table_mutex);
  const u64 id = next_handle++;
  handles.emplace(id, std::move(handle));
  return HandleId{id};
}

std::vector<InodePtr> Volume::State::dirty_inodes() {
  Lock lock(table_mutex);
  std::vector<InodePtr> dirty;
  for (const auto& [number, inode] : inodes)
    if (!inode->clean()) dirty.push_back(inode);
  return dirty;
}

namespace {

// Counts an open of the inode before anybody can forget it.
struct OpenCount {
  Inode* inode;
  bool kept = false;
  ~OpenCount() {
    if (!kept) --inode->handles;
  }
};

}  // namespace

Result<HandleId> Volume::open_file(Caller caller, InodeNumber directory, std::string_view name,
                                   OpenFlags flags, u32 mode, std::string path) {
  State& state = *state_;
  auto entry = state.find_entry(directory, name);
  InodeNumber number = 0;
  if (entry) {
    if (flags.create && flags.exclusive) return fail(Errc::exists, "there is such a name already");
    if (entry->kind == FileKind::directory) return fail(Errc::is_dir, "is a directory");
    number = entry->inode;
  } else if (flags.create && entry.error().code == Errc::not_found) {
    LK_TRY(number, state.make(caller, directory, name, FileKind::regular, mode));
  } else {
    return std::unexpected(entry.error());
  }
  LK_TRY(const InodePtr inode, state.get(number));
  {
    Lock lock(state.table_mutex);
    // It may have been forgotten since: then what the table holds now is the inode.
    state.inodes.try_emplace(number, inode);
    if (state.inodes.at(number) != inode) return fail(Errc::busy, "the file is changing");
    ++inode->handles;
  }
  OpenCount count{inode.get()};
  const Attributes attributes = inode->attributes();
  if (attributes.encrypted) {
    // A busy file's lease does not let anybody new in: the key itself must be there.
    keymgr::Lease door;
    const auto opened = state.keyring.lease(attributes.key_id, number, door);
    const bool through = !opened && state.options.compat_fscrypt && inode->key_lease.held();
    if (!opened && !through) return std::unexpected(opened.error());
    auto unlocked = through ? Result<void>{} : state.unlock_inode(*inode);
    if (door.held()) state.keyring.release(door);
    LK_TRYV(unlocked);
  }
  if (flags.truncate && flags.write) LK_TRYV(state.truncate(*inode, 0));
  auto handle = std::make_shared<Handle>();
  handle->inode = inode;
  handle->flags = flags;
  handle->uid = caller.uid;
  handle->path = std::move(path);
  handle->since_ns = state.env.realtime_ns();
  count.kept = true;
  return state.add_handle(std::move(handle));
}

Result<HandleId> Volume::open_directory(Caller caller, InodeNumber directory, std::string path) {
  State& state = *state_;
  LK_TRY(const Attributes attributes, state.directory_attributes(directory));
  LK_TRY(const InodePtr inode, state.get(directory));
  {
    Lock lock(state.table_mutex);
    state.inodes.try_emplace(directory, inode);
    if (state.inodes.at(directory) != inode) return fail(Errc::busy, "the directory is changing");
    ++inode->handles;
  }
  // A locked directory can be opened: it lists no-key names.
  if (attributes.encrypted) (void)state.unlock_inode(*inode);
  auto handle = std::make_shared<Handle>();
  handle->inode = inode;
  handle->uid = caller.uid;
  handle->path = std::move(path);
  handle->since_ns = state.env.realtime_ns();
  handle->directory = true;
  return state.add_handle(std::move(handle));
}

Result<void> Volume::close_handle(HandleId id) {
  State& state = *state_;
  std::shared_ptr<Handle> handle;
  bool last = false;
  {
    Lock lock(state.table_mutex);
    const auto it = state.handles.find(static_cast<u64>(id));
    if (it == state.handles.end()) return fail(Errc::bad_handle, "there is no such handle");
    handle = std::move(it->second);
    state.handles.erase(it);
    last = handle->inode->handles == 1;
  }
  const InodePtr inode = handle->inode;
  Result<void> result;
  if (last && inode->unlinked) {
    Lock flush(inode->flush_mutex);
    inode->drop_pages(0);
    --inode->handles;
    result = state.reap(inode->number());
  } else {
    const Attributes attributes = inode->attributes();
    const bool leaving =
        last && attributes.encrypted &&
        state.keyring.status(attributes.key_id, 0).state != keymgr::KeyState::present;
    // The last one out of a key that is being removed flushes before its lease goes.
    if (leaving && inode->key_lease.held() && !inode->key_lease.cut_off())
      result = state.flush(*inode);
    if (auto told = state.tell_errors(*handle); !told && result) result = told;
    --inode->handles;
    if (last) inode->lost_data = false;
    if (leaving && !result) {
      // What cannot be written now never can be: the key goes.
      Lock flush(inode->flush_mutex);
      inode->drop_pages(0);
    }
  }
  state.forget_if_idle(inode);
  return result;
}

namespace {

Stat to_stat(InodeNumber number, const Attributes& attributes) {
  Stat stat;
  stat.inode = number;
  stat.kind = attributes.kind;
  stat.mode = attributes.mode;
  stat.uid = attributes.uid;
  stat.gid = attributes.gid;
  stat.links = attributes.links;
  stat.size = attributes.size;
  stat.mtime_ns = attributes.mtime_ns;
  stat.ctime_ns = attributes.ctime_ns;
  if (attributes.encrypted) stat.key_id = attributes.key_id;
  return stat;
}

}  // namespace

Result<Stat> Volume::stat(InodeNumber number) {
  State& state = *state_;
  std::optional<Attributes> attributes;
  {
    Lock lock(state.table_mutex);
    if (const auto it = state.inodes.find(number); it != state.inodes.end())
      attributes = it->second->attributes();
  }
  if (!attributes) {
    LK_TRY(attributes, get_inode(state.store->view(), number));
  }
  Stat stat = to_stat(number, *attributes);
  LK_TRYV(state.store->view().scan(engine::kFirstSubvolume, {number, kMapType, 0},
                                   {number, kMapType, ~u64{0}},
                                   [&](const engine::Key& key, Bytes value) {
                                     if (auto entry = extent::decode_map(key.offset, value))
                                       stat.blocks += entry->blocks;
                                     return true;
                                   }));
  if (stat.key_id)
    stat.locked = state.keyring.status(*stat.key_id, 0).state != keymgr::KeyState::present;
  return stat;
}

Result<Stat> Volume::stat(HandleId id) {
  LK_TRY(const auto handle, state_->find(id));
  return stat(handle->inode->number());
}

Result<std::vector<MapRow>> Volume::map(HandleId id) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  LK_TRYV(state.flush(*handle->inode));
  const engine::View view = state.store->view();
  LK_TRY(const auto entries,
         map_entries(view, handle->inode->number(), {0, (u64{1} << 62) / kPageBytes}));
  std::vector<MapRow> rows;
  for (const extent::MapEntry& entry : entries) {
    for (u32 done = 0; done < entry.blocks;) {
      LK_TRY(const auto record, view.extent_at(entry.disk_block + done, entry.blocks - done));
      LK_TRY(const auto context, extent::decode_context(record.context));
      MapRow row;
      row.file_offset = (entry.file_block + done) * kPageBytes;
      row.device_offset = record.run.block * engine::kBlockBytes;
      row.length = record.run.count * kPageBytes;
      row.first_unit = record.first_unit;
      if (context) {
        row.key_id = context->key_id;
        row.nonce = context->nonce;
        row.mode = context->mode;
      }
      rows.push_back(row);
      done += record.run.count;
    }
  }
  return rows;
}

}  // namespace latchkey::volume
