// Look-ups of names, and their two forms: under the directory's key, and without it.

#include "crypto/names.h"
#include "volume/state.h"

namespace latchkey::volume {

Result<void> check_name(std::string_view name) {
  if (name.size() > crypto::kNameBytesMax) return fail(Errc::name_too_long, "a name is too long");
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string_view::npos ||
      name.find('\0') != std::string_view::npos)
    return fail(Errc::invalid, "not a name");
  return {};
}

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
  const auto derive = [&](const keymgr::Lease& lease) {
    auto use = keymgr::KeyUse::begin(lease);
    if (use) use->name_key(attributes.nonce, *access.key);
    return use.has_value();
  };
  if (const InodePtr inode = in_memory(directory)) {
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
  if (!handle->directory) return fail(Errc::not_dir, "not a directory");
  return state_->list(handle->inode->number());
}

}  // namespace latchkey::volume
