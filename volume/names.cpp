// Directories: names encrypted under the directory's key, look-ups, creation and removal of names.

#include <algorithm>

#include "base/check.h"
#include "crypto/names.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr u32 kNameOpRecords = 8;
constexpr u32 kNameOpBytes = 1400;

Result<void> check_name(std::string_view name) {
  if (name.size() > crypto::kNameBytesMax) return fail(Errc::name_too_long, "a name is too long");
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string_view::npos ||
      name.find('\0') != std::string_view::npos)
    return fail(Errc::invalid, "not a name");
  return {};
}

Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::vector<std::byte> back_item(std::string_view stored) {
  std::vector<std::byte> value(1 + stored.size());
  value[0] = static_cast<std::byte>(stored.size());
  std::ranges::copy(bytes_of(stored), value.begin() + 1);
  return value;
}

}  // namespace

std::string NameAccess::stored(std::string_view name) const {
  return encrypted ? crypto::encrypt_name(*key, name) : std::string(name);
}

Result<std::string> NameAccess::shown(std::string_view stored) const {
  if (!encrypted) return std::string(stored);
  if (!unlocked) return crypto::no_key_name(stored);
  return crypto::decrypt_name(*key, stored);
}

Result<Attributes> Volume::State::directory_attributes(InodeNumber directory) {
  LK_TRY(const Attributes attributes, get_inode(store->view(), directory));
  if (attributes.kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
  return attributes;
}

// Under the lease of an open handle on the directory if there is one: then the names stay readable
// after a soft removal; else under one for this operation.
Result<NameAccess> Volume::State::names_of(InodeNumber directory, const Attributes& attributes) {
  NameAccess access;
  access.encrypted = attributes.encrypted;
  if (!access.encrypted) return access;
  LK_TRY(access.key, Secret<crypto::NameKey>::create());
  InodePtr inode;
  {
    Lock lock(table_mutex);
    if (const auto it = inodes.find(directory); it != inodes.end()) inode = it->second;
  }
  const auto derive = [&](const keymgr::Lease& lease) {
    auto use = keymgr::KeyUse::begin(lease);
    if (use) use->name_key(attributes.nonce, *access.key);
    return use.has_value();
  };
  if (inode) {
    SharedLock lock(inode->lease_lock);
    if (inode->key_lease.held() && derive(inode->key_lease)) return access;
  }
  keymgr::Lease lease;
  access.unlocked = false;
  if (keyring.lease(attributes.key_id, directory, lease)) {
    access.unlocked = derive(lease);
    if (keyring.release(lease)) slots->evict_key(attributes.key_id);
  }
  return access;
}

Result<std::optional<Entry>> Volume::State::find_stored(const engine::View& view,
                                                        InodeNumber directory,
                                                        std::string_view stored) {
  const u64 base = entry_offset(stored);
  std::optional<Entry> found;
  LK_TRYV(view.scan(engine::kFirstSubvolume, {directory, kEntryType, base},
                    {directory, kEntryType, base + kEntrySlots - 1},
                    [&](const engine::Key& key, Bytes value) {
                      auto entry = decode_entry(key, value);
                      if (!entry || entry->stored != stored) return true;
                      found = std::move(*entry);
                      return false;
                    }));
  return found;
}

Result<Entry> Volume::State::find_entry(InodeNumber directory, std::string_view name) {
  LK_TRYV(check_name(name));
  LK_TRY(const Attributes attributes, directory_attributes(directory));
  LK_TRY(const NameAccess names, names_of(directory, attributes));
  if (names.unlocked) {
    LK_TRY(auto entry, find_stored(store->view(), directory, names.stored(name)));
    if (!entry) return fail(Errc::not_found, "there is no such name");
    return std::move(*entry);
  }
  // Locked: only what ls lists can be named.
  std::optional<Entry> found;
  if (crypto::could_be_no_key_name(name)) {
    LK_TRYV(store->view().scan(engine::kFirstSubvolume, {directory, kEntryType, 0},
                               {directory, kEntryType, ~u64{0}},
                               [&](const engine::Key& key, Bytes value) {
                                 auto entry = decode_entry(key, value);
                                 if (!entry || !crypto::matches_no_key_name(name, entry->stored))
                                   return true;
                                 found = std::move(*entry);
                                 return false;
                               }));
  }
  if (found) return std::move(*found);
  if (options.compat_fscrypt) return fail(Errc::not_found, "there is no such name");
  return fail(Errc::no_key, "the directory is locked: its key is not present");
}

Result<InodeNumber> Volume::lookup(InodeNumber directory, std::string_view name) {
  LK_TRY(const Entry entry, state_->find_entry(directory, name));
  return entry.inode;
}

Result<std::vector<DirEntry>> Volume::State::list(InodeNumber directory) {
  LK_TRY(const Attributes attributes, directory_attributes(directory));
  LK_TRY(const NameAccess names, names_of(directory, attributes));
  std::vector<DirEntry> entries;
  Result<void> wrong;
  LK_TRYV(store->view().scan(
      engine::kFirstSubvolume, {directory, kEntryType, 0}, {directory, kEntryType, ~u64{0}},
      [&](const engine::Key& key, Bytes value) {
        auto entry = decode_entry(key, value);
        auto shown = entry ? names.shown(entry->stored)
                           : Result<std::string>(std::unexpected(entry.error()));
        if (!shown) {
          wrong = std::unexpected(shown.error());
          return false;
        }
        entries.push_back({std::move(*shown), entry->inode, entry->kind});
        return true;
      }));
  LK_TRYV(wrong);
  return entries;
}

Result<std::vector<DirEntry>> Volume::read_directory(InodeNumber directory) {
  return state_->list(directory);
}

Result<std::vector<DirEntry>> Volume::read_directory(HandleId directory) {
  LK_TRY(const auto handle, state_->find(directory));
  return state_->list(handle->inode->number());
}

// `counter_to_put`: not 0 if the counter on disk must be moved by the same transaction.
Result<InodeNumber> Volume::State::new_number(u64& counter_to_put) {
  Lock lock(table_mutex);
  if (next_inode == inode_limit) {
    inode_limit += kInodeChunk;
    counter_to_put = inode_limit;
  }
  return next_inode++;
}

Result<InodeNumber> Volume::State::make(Caller caller, InodeNumber directory, std::string_view name,
                                        FileKind kind, u32 mode) {
  LK_TRYV(check_name(name));
  if (options.read_only) return fail(Errc::read_only, "the volume is open read-only");
  Lock names_lock(names_mutex);
  LK_TRY(auto space, store->reserve({0, kNameOpRecords, kNameOpBytes}));
  LK_TRY(Attributes parent, directory_attributes(directory));
  LK_TRY(const NameAccess names, names_of(directory, parent));
  if (parent.encrypted) {
    // A new inode needs the key itself, not the names of a directory that is still open.
    keymgr::Lease lease;
    LK_TRYV(keyring.lease(parent.key_id, directory, lease));
    keyring.release(lease);
    if (!names.unlocked)
      return fail(Errc::no_key, "the directory is locked: its key is not present");
  }
  Attributes fresh;
  fresh.kind = kind;
  fresh.mode = mode & 07777;
  fresh.uid = caller.uid;
  fresh.gid = caller.uid;
  fresh.mtime_ns = fresh.ctime_ns = static_cast<i64>(env.realtime_ns());
  fresh.encrypted = parent.encrypted;
  fresh.key_id = parent.key_id;
  if (fresh.encrypted) env.random(fresh.nonce.bytes);
  Entry entry;
  entry.kind = kind;
  entry.stored = names.stored(name);
  u64 counter = 0;
  LK_TRY(entry.inode, new_number(counter));
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  if (counter != 0) {
    const Le64 value(counter);
    LK_TRYV(transaction.put(engine::kFirstSubvolume, {kCounterObject, kCounterType, 0},
                            std::as_bytes(std::span(&value, 1))));
  }
  LK_TRY(const auto there, find_stored(transaction, directory, entry.stored));
  if (there) return fail(Errc::exists, "there is such a name already");
  const u64 base = entry_offset(entry.stored);
  u64 slot = 0;
  LK_TRYV(transaction.scan(engine::kFirstSubvolume, {directory, kEntryType, base},
                           {directory, kEntryType, base + kEntrySlots - 1},
                           [&](const engine::Key& key, Bytes) {
                             if (key.offset == base + slot) ++slot;
                             return true;
                           }));
  if (slot == kEntrySlots) return fail(Errc::no_space, "too many names of one hash");
  LK_TRYV(transaction.put(engine::kFirstSubvolume, {directory, kEntryType, base + slot},
                          encode_entry(entry)));
  LK_TRYV(transaction.put(engine::kFirstSubvolume, {entry.inode, kBackType, directory},
                          back_item(entry.stored)));
  LK_TRYV(put_inode(transaction, entry.inode, fresh));
  parent.mtime_ns = parent.ctime_ns = fresh.mtime_ns;
  LK_TRYV(put_inode(transaction, directory, parent));
  return entry.inode;
}

Result<InodeNumber> Volume::mkdir(Caller caller, InodeNumber directory, std::string_view name,
                                  u32 mode) {
  auto there = state_->find_entry(directory, name);
  if (there) return fail(Errc::exists, "there is such a name already");
  if (there.error().code != Errc::not_found) return std::unexpected(there.error());
  return state_->make(caller, directory, name, FileKind::directory, mode);
}

Result<void> Volume::State::remove_name(InodeNumber directory, std::string_view name,
                                        FileKind kind) {
  if (options.read_only) return fail(Errc::read_only, "the volume is open read-only");
  Lock names_lock(names_mutex);
  LK_TRY(const Entry entry, find_entry(directory, name));
  if (kind == FileKind::directory && entry.kind != kind)
    return fail(Errc::not_dir, "not a directory");
  if (kind == FileKind::regular && entry.kind != kind) return fail(Errc::is_dir, "is a directory");
  LK_TRY(Attributes parent, directory_attributes(directory));
  if (kind == FileKind::directory) {
    LK_TRY(const auto first,
           store->view().at_or_after(engine::kFirstSubvolume, {entry.inode, kEntryType, 0}));
    if (first && first->key.object == entry.inode && first->key.type == kEntryType)
      return fail(Errc::not_empty, "the directory is not empty");
  }
  LK_TRY(auto space, store->reserve({0, kNameOpRecords, kNameOpBytes}, true));
  bool open = false;
  {
    Lock lock(table_mutex);
    if (const auto it = inodes.find(entry.inode); it != inodes.end()) {
      it->second->unlinked = true;
      open = it->second->handles != 0;
    }
  }
  {
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    LK_TRYV(transaction.erase(engine::kFirstSubvolume, entry.key));
    LK_TRYV(transaction.erase(engine::kFirstSubvolume, {entry.inode, kBackType, directory}));
    if (kind == FileKind::directory)
      LK_TRYV(transaction.erase(engine::kFirstSubvolume, inode_key(entry.inode)));
    else
      LK_TRYV(
          transaction.put(engine::kFirstSubvolume, {kOrphanObject, kOrphanType, entry.inode}, {}));
    parent.mtime_ns = parent.ctime_ns = static_cast<i64>(env.realtime_ns());
    LK_TRYV(put_inode(transaction, directory, parent));
  }
  if (open || kind == FileKind::directory) return {};
  InodePtr inode;
  {
    Lock lock(table_mutex);
    if (const auto it = inodes.find(entry.inode); it != inodes.end()) inode = it->second;
  }
  if (inode) {
    // Closed but dirty: nobody can want these pages any more.
    Lock flush_lock(inode->flush_mutex);
    inode->drop_pages(0);
  }
  if (inode) forget_if_idle(inode);
  return reap(entry.inode);
}

Result<void> Volume::rmdir(InodeNumber directory, std::string_view name) {
  return state_->remove_name(directory, name, FileKind::directory);
}

Result<void> Volume::unlink(InodeNumber directory, std::string_view name) {
  return state_->remove_name(directory, name, FileKind::regular);
}

Result<void> Volume::State::change_attributes(InodeNumber number,
                                              const std::function<Result<void>(Attributes&)>& fn) {
  if (options.read_only) return fail(Errc::read_only, "the volume is open read-only");
  LK_TRY(auto space, store->reserve({0, 2, 256}));
  InodePtr inode;
  {
    Lock lock(table_mutex);
    if (const auto it = inodes.find(number); it != inodes.end()) inode = it->second;
  }
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRY(Attributes on_disk, get_inode(transaction, number));
  Attributes attributes = inode ? inode->attributes() : on_disk;
  LK_TRYV(fn(attributes));
  attributes.ctime_ns = static_cast<i64>(env.realtime_ns());
  if (inode) inode->set_attributes(attributes);
  attributes.size = on_disk.size;  // what is dirty brings its size along
  return put_inode(transaction, number, attributes);
}

Result<void> Volume::set_times(InodeNumber inode, i64 mtime_ns) {
  return state_->change_attributes(inode, [&](Attributes& attributes) -> Result<void> {
    attributes.mtime_ns = mtime_ns;
    return {};
  });
}

Result<void> Volume::set_mode(InodeNumber inode, u32 mode) {
  return state_->change_attributes(inode, [&](Attributes& attributes) -> Result<void> {
    attributes.mode = mode & 07777;
    return {};
  });
}

Result<void> Volume::set_policy(Caller caller, InodeNumber directory, const crypto::KeyId& id) {
  State& state = *state_;
  Lock names_lock(state.names_mutex);
  const keymgr::KeyStatus key = state.keyring.status(id, caller.uid);
  if (key.state != keymgr::KeyState::present || !key.claimed_by_caller)
    return fail(Errc::no_key, "the key is not present with a claim of the caller");
  LK_TRY(const Attributes now, state.directory_attributes(directory));
  if (now.encrypted) {
    if (now.key_id == id) return {};
    return fail(Errc::exists, "the directory has another policy");
  }
  LK_TRY(const auto entries, state.list(directory));
  if (!entries.empty()) return fail(Errc::not_empty, "the directory is not empty");
  crypto::Nonce nonce;
  state.env.random(nonce.bytes);
  return state.change_attributes(directory, [&](Attributes& attributes) -> Result<void> {
    attributes.encrypted = true;
    attributes.key_id = id;
    attributes.nonce = nonce;
    return {};
  });
}

}  // namespace latchkey::volume
