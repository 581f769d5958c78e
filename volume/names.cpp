// Look-ups of names, and their two forms: under the directory's key, and without it.

#include "crypto/names.h"
#include "base/no_wait.h"
#include "volume/back_items.h"
#include "volume/state.h"

namespace latchkey::volume {

Result<void> check_name(std::string_view name) {
  if (name.size() > crypto::kNameBytesMax) return fail(Errc::name_too_long, "a name is too long");
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string_view::npos ||
      name.find('\0') != std::string_view::npos)
    return fail(Errc::invalid, "not a name");
  return {};
}

bool could_be_stored(std::string_view stored, bool encrypted) {
  if (!encrypted) return check_name(stored).has_value();
  return stored.size() == crypto::kNameBytesMax || (!stored.empty() && stored.size() % 32 == 0);
}

Result<NameAccess> NameAccess::with(const keymgr::Lease& lease, const crypto::Nonce& nonce) {
  NameAccess access(true);
  LK_TRY(access.key_, Secret<crypto::NameKey>::create());
  auto use = keymgr::KeyUse::begin(lease);
  if (!use) return access;
  use->name_key(nonce, *access.key_);
  access.use_.emplace(std::move(*use));
  return access;
}

std::string NameAccess::stored(std::string_view name) const {
  return encrypted_ ? crypto::encrypt_name(key(), name) : std::string(name);
}

Result<std::string> NameAccess::shown(std::string_view stored) const {
  if (!encrypted_) return std::string(stored);
  if (!unlocked()) return crypto::no_key_name(stored);
  return crypto::decrypt_name(key(), stored);
}

std::string NameAccess::stored_target(std::string_view target) const {
  return crypto::encrypt_target(key(), target);
}

Result<std::string> NameAccess::shown_target(std::string_view sealed) const {
  if (!unlocked()) return crypto::no_key_name(sealed);
  return crypto::decrypt_target(key(), sealed);
}

Result<Attributes> Volume::State::attributes_of(InodeId id) {
  LK_TRYV(must_be_there(id.subvolume));
  if (const InodePtr inode = in_memory(id)) return inode->attributes();
  return get_inode(store->view(), id);
}

Result<Attributes> Volume::State::directory_attributes(InodeId directory) {
  LK_TRYV(must_be_there(directory.subvolume));
  LK_TRY(const Attributes attributes, get_inode(store->view(), directory));
  if (attributes.kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
  return attributes;
}

namespace {

// False: the lease's secret is gone, fn was not called.
Result<bool> under(const keymgr::Lease& lease, const crypto::Nonce& nonce,
                   const std::function<Result<void>(const NameAccess&)>& fn) {
  LK_TRY(const NameAccess names, NameAccess::with(lease, nonce));
  if (!names.unlocked()) return false;
  LK_TRYV(fn(names));
  return true;
}

}  // namespace

// Under the lease of an open handle on the directory if there is one: then the names stay readable
// after a soft removal; else under one for this operation.
Result<void> Volume::State::with_names(InodeId directory, const Attributes& attributes,
                                       const std::function<Result<void>(const NameAccess&)>& fn) {
  if (!attributes.encrypted) return fn(NameAccess::plain());
  check_may_wait();  // a flush has the lock, and waits for the forest
  if (const InodePtr inode = in_memory(directory)) {
    SharedLock lock(inode->lease_lock);
    if (inode->sealed_keys != nullptr) {
      const SecretWork work;
      return fn(NameAccess::with(inode->sealed_keys->name_key()));
    }
    if (inode->key_lease.held()) {
      LK_TRY(const bool done, under(inode->key_lease, attributes.nonce, fn));
      if (done) return {};
    }
  }
  return with_key(attributes, fn);
}

Result<void> Volume::State::with_key(const Attributes& attributes,
                                     const std::function<Result<void>(const NameAccess&)>& fn) {
  {
    OwnLease lease(*this);
    if (lease.take(attributes.key_id)) {
      LK_TRY(const bool done, under(*lease, attributes.nonce, fn));
      if (done) return {};
    }
  }
  return fn(NameAccess::locked());
}

Result<std::optional<std::string>> Volume::State::stored_name(InodeId directory,
                                                              const Attributes& attributes,
                                                              std::string_view name) {
  std::optional<std::string> stored;
  LK_TRYV(with_names(directory, attributes, [&](const NameAccess& names) -> Result<void> {
    if (names.unlocked()) stored = names.stored(name);
    return {};
  }));
  return stored;
}

Result<std::optional<Entry>> Volume::State::find_stored(const engine::View& view, InodeId directory,
                                                        std::string_view stored) {
  const u64 base = entry_offset(stored);
  std::optional<Entry> found;
  LK_TRYV(view.scan(directory.subvolume, {directory.number, kEntryType, base},
                    {directory.number, kEntryType, base + kEntrySlots - 1},
                    [&](const engine::Key& key, Bytes value) {
                      auto entry = decode_entry(directory.subvolume, key, value);
                      if (!entry || entry->stored != stored) return true;
                      found = std::move(*entry);
                      return false;
                    }));
  if (found) cross(directory, *found);
  return found;
}

// A no-key name has the stored one in it; of a long one only a digest, by which nothing is sorted.
Result<std::optional<Entry>> Volume::State::find_no_key(InodeId directory, std::string_view name) {
  std::optional<Entry> found;
  if (!crypto::could_be_no_key_name(name)) return found;
  const engine::View view = store->view();
  if (const auto stored = crypto::stored_in_no_key_name(name))
    return find_stored(view, directory, *stored);
  LK_TRYV(view.scan(directory.subvolume, {directory.number, kEntryType, 0},
                    {directory.number, kEntryType, ~u64{0}},
                    [&](const engine::Key& key, Bytes value) {
                      auto entry = decode_entry(directory.subvolume, key, value);
                      if (!entry || !crypto::matches_no_key_name(name, entry->stored)) return true;
                      found = std::move(*entry);
                      return false;
                    }));
  if (found) cross(directory, *found);
  return found;
}

Result<Entry> Volume::State::find_entry(InodeId directory, std::string_view name) {
  LK_TRYV(check_name(name));
  LK_TRY(const Attributes attributes, directory_attributes(directory));
  LK_TRY(const auto stored, stored_name(directory, attributes, name));
  if (stored) {
    LK_TRY(auto entry, find_stored(store->view(), directory, *stored));
    if (!entry) return fail(Errc::not_found, "there is no such name");
    return std::move(*entry);
  }
  // Locked: only what ls lists can be named.
  LK_TRY(auto entry, find_no_key(directory, name));
  if (entry) return std::move(*entry);
  if (options.compat_fscrypt) return fail(Errc::not_found, "there is no such name");
  return fail(Errc::no_key, "the directory is locked: its key is not present");
}

// Who writes to the device behind our back could give an inode another policy than its directory's,
// of a key that he has: what is written into it from then on would be his to read. Source:
// fs/crypto/policy.c, fscrypt_has_permitted_context().
Result<void> Volume::State::must_have_policy_of(const Attributes& item, InodeId directory) {
  LK_TRY(const Attributes above, attributes_of(directory));
  if (has_policy_of(item, above)) return {};
  return fail(Errc::not_permitted, "it does not have the encryption policy of its directory");
}

// A regular file's policy is looked at by who opens it: what nobody may open can still be removed.
Result<InodeId> Volume::lookup(InodeId directory, std::string_view name) {
  State& state = *state_;
  LK_TRY(const Entry entry, state.find_entry(directory, name));
  if (entry.kind == FileKind::regular || is_special(entry.kind) ||
      entry.inode.number == kEmptyNumber)
    return entry.inode;
  LK_TRY(const Attributes item, state.attributes_of(entry.inode));
  LK_TRYV(state.must_have_policy_of(item, directory));
  return entry.inode;
}

Result<InodeId> Volume::parent(InodeId directory) {
  if (directory == kRootInode) return directory;
  if (directory.number == kRootNumber) {
    const auto name = state_->name_of_subvolume(directory);
    if (!name) return fail(Errc::not_found, "the subvolume has been removed");
    return InodeId{directory.subvolume, name->directory};
  }
  LK_TRY(const std::vector<InodeId> parents, parents_of(state_->store->view(), directory));
  if (parents.empty()) return fail(Errc::not_found, "the directory has been removed");
  return parents.front();
}

Result<std::vector<DirEntry>> Volume::State::list(InodeId directory, u64 from, u64 count_max) {
  LK_TRY(const Attributes attributes, directory_attributes(directory));
  std::vector<DirEntry> entries;  // first with their stored names
  Result<void> wrong;
  LK_TRYV(store->view().scan(
      directory.subvolume, {directory.number, kEntryType, from},
      {directory.number, kEntryType, ~u64{0}}, [&](const engine::Key& key, Bytes value) {
        if (entries.size() >= count_max) return false;
        auto entry = decode_entry(directory.subvolume, key, value);
        if (!entry) {
          wrong = std::unexpected(entry.error());
          return false;
        }
        cross(directory, *entry);
        entries.push_back({std::move(entry->stored), entry->inode, entry->kind, key.offset});
        return true;
      }));
  LK_TRYV(wrong);
  LK_TRYV(with_names(directory, attributes, [&](const NameAccess& names) -> Result<void> {
    for (DirEntry& entry : entries) {
      LK_TRY(entry.name, names.shown(entry.name));
    }
    return {};
  }));
  return entries;
}

Result<std::vector<DirEntry>> Volume::read_directory(InodeId directory) {
  return state_->list(directory);
}

Result<std::vector<DirEntry>> Volume::read_directory(HandleId directory) {
  return read_directory(directory, 0, ~u64{0});
}

Result<std::vector<DirEntry>> Volume::read_directory(HandleId directory, u64 from, u64 count_max) {
  LK_TRY(const auto handle, state_->find(directory));
  if (!handle->directory) return fail(Errc::not_dir, "not a directory");
  auto entries = state_->list(handle->inode->id(), from, count_max);
  if (entries && state_->options.directory_atime && !state_->is_locked(*handle->inode))
    state_->note_read(*handle->inode);
  return entries;
}

}  // namespace latchkey::volume
