// Opening and closing; what an inode and its map look like from outside.

#include <algorithm>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/secret.h"
#include "extent/context.h"
#include "volume/back_items.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr int kRacesMax = 1000;  // an open that meets so many unlinks in a row gives up

Result<void> must_be_regular(FileKind kind) {
  if (kind == FileKind::directory || kind == FileKind::subvolume)
    return fail(Errc::is_dir, "is a directory");
  if (kind == FileKind::symlink) return fail(Errc::is_symlink, "is a symlink");
  if (is_special(kind)) return fail(Errc::unsupported, "a special file has no data in the store");
  return {};
}

}  // namespace

Result<void> Volume::State::must_be_writable() const {
  if (!writable()) return fail(Errc::read_only, "the volume is open read-only");
  return {};
}

Result<Volume::State::HandleUse> Volume::State::find(HandleId id) {
  Lock lock(table_mutex);
  const auto it = handles.find(static_cast<u64>(id));
  if (it == handles.end()) return fail(Errc::bad_handle, "there is no such handle");
  ++it->second->inode->users;
  return HandleUse(it->second, Use(*this, it->second->inode));
}

HandleId Volume::State::add_handle(HandlePtr handle) {
  handle->since_ns = env.realtime_ns();
  handle->since_boot_ns = env.boottime_ns();
  handle->losses = handle->inode->losses;
  const u64 errors = handle->inode->errors;
  handle->errors_told = handle->inode->error_untold && errors != 0 ? errors - 1 : errors;
  Lock lock(table_mutex);
  const u64 id = next_handle++;
  Inode& inode = *handle->inode;
  const auto added = handles.emplace(id, std::move(handle)).first;
  try {
    list_under_key(id, *added->second);
    inode.handle_ids.push_back(id);
  } catch (const std::bad_alloc&) {
    take_handle(HandleId{id});
    throw;
  }
  return HandleId{id};
}

void Volume::State::list_under_key(u64 id, Handle& handle) {
  const Attributes attributes = handle.inode->attributes();
  if (!attributes.encrypted || handle.listed) return;
  std::set<u64> listed{id};  // what can fail for memory leaves no entry without a handle
  handles_of_key[attributes.key_id].merge(listed);
  handle.listed = true;
}

HandlePtr Volume::State::take_handle(HandleId id) {
  const auto it = handles.find(static_cast<u64>(id));
  if (it == handles.end()) return nullptr;
  HandlePtr handle = std::move(it->second);
  handles.erase(it);
  std::erase(handle->inode->handle_ids, static_cast<u64>(id));
  if (!handle->listed) return handle;
  const auto of_key = handles_of_key.find(handle->inode->key_id());
  of_key->second.erase(static_cast<u64>(id));
  if (of_key->second.empty()) handles_of_key.erase(of_key);
  return handle;
}

void Volume::State::drop_handle(HandleId id) {
  Lock lock(table_mutex);
  take_handle(id);
  handle_closed.notify_all();
}

// A busy file's lease lets nobody new in: the key itself must be there (compat: the lease will do,
// once the removal is over).
Result<void> Volume::State::pass_door(Inode& inode) {
  if (!inode.encrypted()) return {};
  OwnLease door(*this);
  const auto opened = door.take(inode.key_id());
  if (!opened) {
    SharedLock lock(inode.lease_lock);
    const bool busy = inode.key_lease.held() && !inode.key_lease.cut_off();
    const bool leaving =
        keyring.status(inode.key_id(), 0).state == keymgr::KeyState::incompletely_removed;
    if (options.compat_fscrypt && busy && leaving) return {};
    return opened;
  }
  return unlock_inode(inode);
}

Result<HandleId> Volume::open_file(Caller caller, InodeId directory, std::string_view name,
                                   OpenFlags flags, u32 mode, std::string path) {
  State& state = *state_;
  if (flags.write) LK_TRYV(state.must_be_writable(directory));
  for (int races = 0;; ++races) {
    const auto entry = state.find_entry(directory, name);
    InodeId number;
    if (entry) {
      if (flags.create && flags.exclusive)
        return fail(Errc::exists, "there is such a name already");
      LK_TRYV(must_be_regular(entry->kind));
      number = entry->inode;
    } else if (flags.create && entry.error().code == Errc::not_found) {
      State::NewHandle handle(state, caller, directory, flags, path);
      const auto made =
          state.make(caller, directory, name, {.mode = mode, .target = {}, .handle = &handle});
      if (made) return handle.keep();
      const bool late = made.error().code == Errc::exists && !flags.exclusive;
      if (late && races < kRacesMax) continue;
      return std::unexpected(made.error());
    } else {
      return std::unexpected(entry.error());
    }
    auto used = state.use(number);
    if (!used && used.error().code == Errc::not_found && races < kRacesMax) continue;
    LK_TRY(State::Use use, std::move(used));
    if (use->attributes().kind != FileKind::regular)
      return fail(Errc::malformed, "a directory entry and its inode do not agree");
    LK_TRYV(state.must_have_policy_of(use->attributes(), directory));
    return state.open_inode(caller, directory, std::move(use), flags, std::move(path));
  }
}

Volume::State::NewHandle::NewHandle(State& state, Caller caller, InodeId directory, OpenFlags flags,
                                    std::string path)
    : state_(state), above_(state.pin_from(directory)), handle_(std::make_shared<Handle>()) {
  handle_->above.reserve(above_.size());
  handle_->flags = flags;
  handle_->uid = caller.uid;
  handle_->pid = caller.pid;
  handle_->path = std::move(path);
}

Volume::State::NewHandle::~NewHandle() {
  if (listed_) state_.drop_handle(*listed_);
}

void Volume::State::NewHandle::list(Use use) {
  use_ = std::move(use);
  handle_->inode = use_.inode();
  handle_->directory = use_->attributes().kind == FileKind::directory;
  listed_ = state_.add_handle(handle_);
}

// Cannot fail: there is room.
HandleId Volume::State::NewHandle::keep() {
  use_.keep();
  for (Use& use : above_) handle_->above.push_back(use.keep());
  return *std::exchange(listed_, std::nullopt);
}

Result<HandleId> Volume::State::open_inode(Caller caller, InodeId directory, Use use,
                                           OpenFlags flags, std::string path) {
  NewHandle handle(*this, caller, directory, flags, std::move(path));
  handle.list(std::move(use));
  const auto opened = or_no_memory([&]() -> Result<void> {
    LK_TRYV(pass_door(*handle.inode()));
    if (!flags.truncate || !flags.write) return {};
    LK_TRYV(drop_privileges(*handle.inode(), caller.uid));
    return truncate(handle.inode(), 0, handle.inode()->losses);
  });
  LK_TRYV(opened);
  return handle.keep();
}

Result<HandleId> Volume::open(Caller caller, InodeId inode, OpenFlags flags, std::string path) {
  State& state = *state_;
  if (flags.create || flags.exclusive) return fail(Errc::invalid, "an inode is there already");
  if (flags.write) LK_TRYV(state.must_be_writable(inode));
  LK_TRY(State::Use use, state.use(inode));
  LK_TRYV(must_be_regular(use->attributes().kind));
  LK_TRY(const std::vector<InodeId> parents, parents_of(state.store->view(), inode));
  for (const InodeId parent : parents)
    LK_TRYV(state.must_have_policy_of(use->attributes(), parent));
  InodeId directory;
  if (state.options.compat_fscrypt) {
    LK_TRY(directory, parent_of(state.store->view(), inode));
  }
  return state.open_inode(caller, directory, std::move(use), flags, std::move(path));
}

Result<HandleId> Volume::open_again(Caller caller, HandleId id, OpenFlags flags, std::string path) {
  State& state = *state_;
  if (flags.create || flags.exclusive) return fail(Errc::invalid, "an inode is there already");
  LK_TRY(State::HandleUse handle, state.find(id));
  const bool directory = handle->directory;
  State::Use use = handle.take_use();
  if (directory) return state.open_directory(caller, std::move(use), std::move(path));
  if (flags.write) LK_TRYV(state.must_be_writable(use->id()));
  return state.open_inode(caller, {}, std::move(use), flags, std::move(path));
}

Result<HandleId> Volume::open_directory(Caller caller, InodeId directory, std::string path) {
  LK_TRY(State::Use use, state_->use(directory));
  return state_->open_directory(caller, std::move(use), std::move(path));
}

Result<HandleId> Volume::State::open_directory(Caller caller, Use use, std::string path) {
  if (use->attributes().kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
  // A locked directory can be opened: it lists no-key names.
  (void)unlock_inode(*use);
  NewHandle handle(*this, caller, use->id(), {}, std::move(path));
  handle.list(std::move(use));
  return handle.keep();
}

Result<void> Volume::close_handle(HandleId id) {
  State& state = *state_;
  HandlePtr handle;
  {
    Lock lock(state.table_mutex);
    handle = state.take_handle(id);
    if (handle == nullptr) return fail(Errc::bad_handle, "there is no such handle");
    state.handle_closed.notify_all();
  }
  const auto ended = state.leave(handle->inode);
  for (const InodePtr& directory : handle->above) (void)state.leave(directory);
  LK_TRYV(state.tell_errors(*handle));
  return ended;
}

Result<void> Volume::take_errors(HandleId id) {
  LK_TRY(const auto handle, state_->find(id));
  return state_->tell_errors(*handle);
}

Result<void> Volume::State::ready(Handle& handle) {
  LK_TRYV(unlock_inode(*handle.inode));
  if (handle.losses != handle.inode->losses) return data_lost();
  return {};
}

Result<void> Volume::State::ready_for_io(Handle& handle, IoFlags flags) {
  for (;;) {
    const u64 seen = keyring.suspensions().changes();
    const auto now = ready(handle);
    if (now || !begins_again(handle, now.error(), seen)) return now;
    if (!flags.wait) {
      if (!keyring.suspensions().suspended(handle.inode->key_id())) continue;
      if (flags.written_back) return now;
      return would_wait();
    }
    // However it ends, the key is looked at again: it may be back, or have gone in another mode.
    const auto waited = keyring.suspensions().wait(handle.inode->key_id(), env);
    if (!waited && keyring.suspensions().suspended(handle.inode->key_id())) return waited;  // full
  }
}

bool Volume::State::begins_again(const Handle& handle, const Error& error, u64 seen) {
  if (error.code != Errc::no_key || !handle.inode->encrypted()) return false;
  keymgr::Suspensions& suspensions = keyring.suspensions();
  return suspensions.suspended(handle.inode->key_id()) || suspensions.changes() != seen;
}

Result<void> Volume::State::tell_errors(Handle& handle) {
  Inode& inode = *handle.inode;
  const u64 errors = inode.errors;
  if (handle.errors_told.exchange(errors) != errors) {
    inode.error_untold = false;
    return std::unexpected(inode.last_error());
  }
  if (handle.losses != inode.losses && !handle.loss_told.exchange(true)) return data_lost();
  if (auto failure = store->failure(); failure && !handle.stop_told.exchange(true))
    return std::unexpected(*failure);
  return {};
}

namespace {

Stat to_stat(InodeId number, const Attributes& attributes) {
  Stat stat;
  stat.inode = number;
  stat.kind = attributes.kind;
  stat.mode = attributes.mode;
  stat.uid = attributes.uid;
  stat.gid = attributes.gid;
  stat.links = attributes.links;
  (is_device(attributes.kind) ? stat.device : stat.size) = attributes.size;
  stat.mtime_ns = attributes.mtime_ns;
  stat.ctime_ns = attributes.ctime_ns;
  stat.atime_ns = attributes.atime_ns;
  stat.btime_ns = attributes.btime_ns;
  if (attributes.encrypted) stat.key_id = attributes.key_id;
  stat.nonce = attributes.nonce;
  return stat;
}

}  // namespace

Result<u64> Volume::State::blocks_of(InodeId inode) {
  u64 seen = 0;
  if (const auto known = block_counts.find(inode, seen)) return *known;
  ++maps_counted;
  u64 blocks = 0;
  LK_TRYV(store->view().scan(inode.subvolume, {inode.number, kMapType, 0},
                             {inode.number, kMapType, ~u64{0}},
                             [&](const engine::Key& key, Bytes value) {
                               if (auto entry = extent::decode_map(key.offset, value))
                                 blocks += blocks_held(*entry, inode.subvolume);
                               return true;
                             }));
  (void)or_no_memory([&] { block_counts.remember(inode, blocks, seen); });
  return blocks;
}

Result<Stat> Volume::stat(InodeId number) {
  State& state = *state_;
  LK_TRY(const Attributes attributes, state.attributes_of(number));
  Stat stat = to_stat(number, attributes);
  if (stat.kind == FileKind::symlink) {
    LK_TRY(std::string target, state.target_of(number, attributes));
    stat.size = target.size();
    wipe(target.data(), target.size());
  }
  if (stat.kind == FileKind::regular) {
    LK_TRY(stat.blocks, state.blocks_of(number));
  }
  if (stat.key_id)
    stat.locked = state.keyring.status(*stat.key_id, 0).state != keymgr::KeyState::present;
  return stat;
}

Result<Stat> Volume::stat(HandleId id) {
  LK_TRY(const auto handle, state_->find(id));
  return stat(handle->inode->id());
}

Result<std::vector<MapRow>> Volume::map(HandleId id) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  if (handle->directory) return fail(Errc::is_dir, "is a directory");
  LK_TRYV(state.flush(handle->inode));
  const engine::View view = state.store->view();
  LK_TRY(const auto entries, map_entries(view, handle->inode->id(), {0, kFileBlocksMax}));
  std::vector<MapRow> rows;
  for (const extent::MapEntry& entry : entries) {
    for (u32 done = 0; done < entry.blocks && !entry.promised;) {
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
