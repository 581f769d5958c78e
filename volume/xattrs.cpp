// Extended attributes: set, get, list, remove. One change of one inode's at a time, under its
// directory lock, which set_policy takes, too: a value is sealed as its inode is when it is stored.
// With compat_fscrypt it is stored in the clear, as ext4 does, and so without the key, too. That is
// decided by how the volume was opened and never by what is on the device.

#include <optional>

#include "engine/format.h"
#include "volume/state.h"
#include "volume/xattr_records.h"

namespace latchkey::volume {

namespace {

constexpr u32 kItemBytes = 256;  // of the inode item, whose ctime moves

engine::Key piece_key(InodeId inode, const Xattr& xattr, u64 piece) {
  return {inode.number, kXattrType, xattr.offset + piece};
}

}  // namespace

// fn gets the key of the inode's values. Whoever comes through an open handle goes on after a soft
// removal, as with the file's data; others need the key to be present. While fn runs the key is in
// use: no I/O, no lock and no wait in it.
Result<void> Volume::State::with_value_key(
    Inode& inode, Access access, const std::function<Result<void>(const crypto::ValueKey&)>& fn) {
  const Attributes item = inode.attributes();
  const auto under = [&](const keymgr::Lease& lease) -> Result<void> {
    std::optional<keymgr::KeyUse> use;
    LK_TRY(auto key, Secret<crypto::ValueKey>::create());  // wiped before the use ends
    LK_TRY(auto begun, keymgr::KeyUse::begin(lease));
    use.emplace(std::move(begun));
    use->value_key(item.nonce, *key);
    return fn(*key);
  };
  if (access == Access::open_handle) {
    LK_TRYV(unlock_inode(inode));
    SharedLock lock(inode.lease_lock);
    if (inode.sealed_keys == nullptr) return under(inode.key_lease);
    const SecretWork work;
    return fn(inode.sealed_keys->value_key());
  }
  OwnLease lease(*this);
  LK_TRYV(lease.take(item.key_id));
  return under(*lease);
}

Result<void> Volume::State::set_xattr(Inode& inode, Access access, std::string_view name,
                                      Bytes value, XattrFlags flags) {
  LK_TRYV(must_be_writable(inode.id()));
  LK_TRYV(check_xattr_name(name));
  if (flags.create && flags.replace)
    return fail(Errc::invalid, "create and replace exclude each other");
  if (value.size() > kXattrValueBytesMax)
    return fail(Errc::list_too_big, "an attribute's value has at most 64 KiB");
  const FileKind kind = inode.attributes().kind;
  if (is_user_xattr(name) && kind != FileKind::regular && kind != FileKind::directory)
    return fail(Errc::not_permitted, "only files and directories have user attributes");
  const InodeId id = inode.id();
  const DirectoryLocks lock(directories, {id});
  Xattr fresh;
  fresh.name = name;
  const bool secret = is_secret_xattr(inode.attributes(), name);
  fresh.sealed = secret && !options.compat_fscrypt;
  if (fresh.sealed) {
    crypto::ValueNonce nonce;
    env.random(nonce);
    LK_TRYV(with_value_key(inode, access, [&](const crypto::ValueKey& key) -> Result<void> {
      fresh.stored = crypto::encrypt_value(key, nonce, std::as_bytes(std::span(name)), value);
      return {};
    }));
  } else {
    fresh.stored.assign(value.begin(), value.end());
  }
  const auto pieces = encode_xattr(fresh, engine::record_bytes_max(store->facts().node_bytes));
  u64 bytes = kItemBytes;
  for (const auto& piece : pieces) bytes += piece.size();
  LK_TRY(auto space, reserve({0, static_cast<u32>(pieces.size() + 1), bytes}));
  const i64 now = static_cast<i64>(env.realtime_ns());
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRY(const auto old, find_xattr(transaction, id, name));
  if (old && flags.create) return fail(Errc::exists, "there is such an attribute already");
  if (!old && flags.replace) return fail(Errc::no_attribute, "there is no such attribute");
  if (old) {
    fresh.offset = old->offset;
  } else {
    LK_TRY(fresh.offset, free_xattr_offset(transaction, id, name));
  }
  if (secret && !fresh.sealed) transaction.need_feature(engine::kFeatureClearAttributes);
  for (std::size_t i = 0; i < pieces.size(); ++i)
    LK_TRYV(transaction.put(id.subvolume, piece_key(id, fresh, i), pieces[i]));
  for (u64 i = pieces.size(); old && i < old->pieces; ++i)
    LK_TRYV(transaction.erase(id.subvolume, piece_key(id, *old, i)));
  return put_changed(transaction, inode, [&](Attributes& item) { item.ctime_ns = now; });
}

Result<std::vector<std::byte>> Volume::State::get_xattr(Inode& inode, Access access,
                                                        std::string_view name) {
  LK_TRYV(check_xattr_name(name));
  LK_TRY(auto found, find_xattr(store->view(), inode.id(), name));
  if (!found) return fail(Errc::no_attribute, "there is no such attribute");
  const Attributes item = inode.attributes();  // first: a policy brings the feature along
  const bool clear = store->has_feature(engine::kFeatureClearAttributes);
  if (!is_stored_as_it_may_be(*found, item, clear))
    return fail(Errc::damaged, "an attribute is not encrypted as its inode is");
  if (!found->sealed) return std::move(found->stored);
  std::vector<std::byte> value;
  LK_TRYV(with_value_key(inode, access, [&](const crypto::ValueKey& key) -> Result<void> {
    LK_TRY(value, crypto::decrypt_value(key, std::as_bytes(std::span(name)), found->stored));
    return {};
  }));
  return value;
}

Result<void> Volume::State::remove_xattr(Inode& inode, std::string_view name) {
  LK_TRYV(must_be_writable(inode.id()));
  LK_TRYV(check_xattr_name(name));
  const InodeId id = inode.id();
  const DirectoryLocks lock(directories, {id});
  LK_TRY(auto space, store->reserve({0, 1, kItemBytes}, true));
  const i64 now = static_cast<i64>(env.realtime_ns());
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRY(const auto old, find_xattr(transaction, id, name));
  if (!old) return fail(Errc::no_attribute, "there is no such attribute");
  for (u64 i = 0; i < old->pieces; ++i)
    LK_TRYV(transaction.erase(id.subvolume, piece_key(id, *old, i)));
  return put_changed(transaction, inode, [&](Attributes& item) { item.ctime_ns = now; });
}

Result<void> Volume::set_xattr(InodeId inode, std::string_view name, Bytes value,
                               XattrFlags flags) {
  LK_TRY(const State::Use use, state_->use(inode));
  return state_->set_xattr(*use, State::Access::by_inode, name, value, flags);
}

Result<void> Volume::set_xattr(HandleId id, std::string_view name, Bytes value, XattrFlags flags) {
  LK_TRY(const auto handle, state_->find(id));
  return state_->set_xattr(*handle->inode, State::Access::open_handle, name, value, flags);
}

Result<std::vector<std::byte>> Volume::get_xattr(InodeId inode, std::string_view name) {
  LK_TRY(const State::Use use, state_->use(inode));
  return state_->get_xattr(*use, State::Access::by_inode, name);
}

Result<std::vector<std::byte>> Volume::get_xattr(HandleId id, std::string_view name) {
  LK_TRY(const auto handle, state_->find(id));
  return state_->get_xattr(*handle->inode, State::Access::open_handle, name);
}

Result<std::vector<std::string>> Volume::list_xattrs(InodeId inode) {
  LK_TRY(const State::Use use, state_->use(inode));
  return xattr_names(state_->store->view(), inode);
}

Result<std::vector<std::string>> Volume::list_xattrs(HandleId id) {
  LK_TRY(const auto handle, state_->find(id));
  return xattr_names(state_->store->view(), handle->inode->id());
}

Result<void> Volume::remove_xattr(InodeId inode, std::string_view name) {
  LK_TRY(const State::Use use, state_->use(inode));
  return state_->remove_xattr(*use, name);
}

Result<void> Volume::remove_xattr(HandleId id, std::string_view name) {
  LK_TRY(const auto handle, state_->find(id));
  return state_->remove_xattr(*handle->inode, name);
}

}  // namespace latchkey::volume
