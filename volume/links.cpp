// Names beyond the first: hard links, symlinks and special files, and files that have none yet.

#include <algorithm>

#include "base/disk.h"
#include "base/no_wait.h"
#include "crypto/names.h"
#include "volume/back_items.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr std::size_t kPlainTargetBytesMax = 4095;  // PATH_MAX without its zero
constexpr u64 kDeviceNumberMax = 0xffff'ffff;

}  // namespace

// --- hard links ---------------------------------------------------------------------------------

// Inside of the transaction that links: what it says cannot change meanwhile.
Result<void> Volume::State::may_link(const Inode& inode, const Attributes& into) {
  const Attributes item = inode.attributes();
  if (item.kind == FileKind::directory)
    return fail(Errc::not_permitted, "a directory has one name only");
  if (inode.unlinked && !inode.linkable)
    return fail(Errc::not_found, "the last name of the file is gone");
  if (item.links >= kLinksMax) return fail(Errc::too_many_links, "the file has too many names");
  if (!has_policy_of(item, into))
    return fail(Errc::cross_key, "the directory has another encryption policy");
  return {};
}

// A new name needs the key of what it leads to, or that it is still open with it (compat: no).
Result<void> Volume::State::must_hold_key(Inode& inode) {
  check_may_wait();
  if (!inode.encrypted() || options.compat_fscrypt) return {};
  {
    SharedLock lock(inode.lease_lock);
    if (inode.key_lease.held() && !inode.key_lease.cut_off()) return {};
  }
  return OwnLease(*this).take(inode.key_id());
}

Result<void> Volume::State::link(Inode& inode, InodeId directory, std::string_view name) {
  LK_TRYV(must_be_writable(directory));
  if (inode.id().subvolume != directory.subvolume)
    return fail(Errc::cross_key, "a name in one subvolume leads to nothing in another");
  LK_TRYV(must_be_free(directory, name));
  LK_TRY(const Use parent, use(directory));
  const DirectoryLocks locks(directories, {directory});
  LK_TRY(auto place, place_for_name(*parent, name));
  LK_TRYV(must_hold_key(inode));
  LK_TRY(auto space, reserve({0, kNameOpRecords, kNameOpBytes}));
  const i64 now = static_cast<i64>(env.realtime_ns());
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRYV(find_room(transaction, directory, place));
  LK_TRYV(may_link(inode, place.above));
  LK_TRY(place.back, place_of_back(transaction, inode.id(), place.name));
  const bool first = inode.unlinked;
  if (first) LK_TRYV(transaction.erase(directory.subvolume, orphan_key(inode.id())));
  LK_TRYV(put_name(transaction, place, inode.id(), inode.attributes().kind));
  const Attributes item = inode.change([&](Attributes& attributes) {
    ++attributes.links;
    attributes.ctime_ns = now;
  });
  LK_TRYV(put_inode(transaction, inode.id(), item));
  LK_TRYV(touch_directory(transaction, *parent, now));
  inode.last_transaction = transaction.id();
  if (!first) return {};
  Lock lock(table_mutex);
  inode.unlinked = inode.linkable = false;
  return {};
}

Result<void> Volume::link(InodeId inode, InodeId directory, std::string_view name) {
  LK_TRY(const State::Use use, state_->use(inode));
  return state_->link(*use, directory, name);
}

Result<void> Volume::link(HandleId id, InodeId directory, std::string_view name) {
  LK_TRY(const auto handle, state_->find(id));
  return state_->link(*handle->inode, directory, name);
}

// One name fewer. The last one makes it an orphan, which its last user reaps.
Result<void> Volume::State::drop_link(engine::Transaction& transaction, Inode& inode, i64 now) {
  if (inode.attributes().links <= 1) return make_orphan(transaction, inode, now);
  const Attributes item = inode.change([&](Attributes& attributes) {
    --attributes.links;
    attributes.ctime_ns = now;
  });
  inode.last_transaction = transaction.id();
  return put_inode(transaction, inode.id(), item);
}

// --- symlinks and special files -----------------------------------------------------------------

Result<InodeId> Volume::symlink(Caller caller, InodeId directory, std::string_view name,
                                std::string_view target) {
  if (target.empty()) return fail(Errc::not_found, "a symlink leads somewhere");
  if (target.find('\0') != std::string_view::npos) return fail(Errc::invalid, "not a path");
  if (target.size() > kPlainTargetBytesMax)
    return fail(Errc::name_too_long, "the target of a symlink is too long");
  LK_TRYV(state_->must_be_free(directory, name));
  return state_->make(caller, directory, name,
                      {.kind = FileKind::symlink, .mode = 0777, .device = 0, .target = target});
}

Result<InodeId> Volume::make_node(Caller caller, InodeId directory, std::string_view name,
                                  const NewNode& node) {
  if (node.kind != FileKind::regular && !is_special(node.kind))
    return fail(Errc::invalid, "neither a file nor a special file");
  if (is_device(node.kind) ? node.device > kDeviceNumberMax : node.device != 0)
    return fail(Errc::invalid, "no device has such a number");
  LK_TRYV(state_->must_be_free(directory, name));
  return state_->make(caller, directory, name,
                      {.kind = node.kind, .mode = node.mode, .device = node.device, .target = {}});
}

// fscrypt's form of an encrypted one: le16 size, then so many bytes (K5: by the call that sets it).
Result<std::string> Volume::State::stored_target(const Attributes& item, std::string_view target) {
  if (!item.encrypted) return std::string(target);
  if (target.size() > crypto::kTargetBytesMax)
    return fail(Errc::name_too_long, "the target of an encrypted symlink is too long");
  std::string stored;
  LK_TRYV(with_key(item, [&](const NameAccess& access) -> Result<void> {
    if (!access.unlocked()) return fail(Errc::no_key, "the key is not present");
    const std::string sealed = access.stored_target(target);
    const Le16 size(static_cast<u16>(sealed.size()));
    stored.assign(reinterpret_cast<const char*>(&size), sizeof size);
    stored += sealed;
    return {};
  }));
  return stored;
}

Result<void> put_target(engine::Transaction& transaction, InodeId inode, std::string_view stored) {
  const Bytes bytes = std::as_bytes(std::span(stored));
  for (std::size_t at = 0; at < bytes.size(); at += kTargetPieceBytes)
    LK_TRYV(transaction.put(inode.subvolume, {inode.number, kTargetType, at},
                            bytes.subspan(at, std::min(kTargetPieceBytes, bytes.size() - at))));
  return {};
}

// Plain, or in its no-key form while the key is not present.
Result<std::string> Volume::State::target_of(InodeId inode, const Attributes& item) {
  std::string stored;
  LK_TRYV(store->view().scan(
      inode.subvolume, {inode.number, kTargetType, 0}, {inode.number, kTargetType, ~u64{0}},
      [&](const engine::Key& key, Bytes piece) {
        if (key.offset != stored.size()) return false;
        stored.append(reinterpret_cast<const char*>(piece.data()), piece.size());
        return true;
      }));
  if (stored.size() != item.size || stored.empty())
    return fail(Errc::malformed, "a symlink whose target is not whole");
  if (!item.encrypted) return stored;
  const std::string_view sealed = sealed_target(stored);
  if (sealed.empty()) return fail(Errc::malformed, "a symlink whose target is malformed");
  std::string shown;
  LK_TRYV(with_key(item, [&](const NameAccess& access) -> Result<void> {
    LK_TRY(shown, access.shown_target(sealed));
    return {};
  }));
  return shown;
}

Result<std::string> Volume::read_link(InodeId inode) {
  LK_TRY(const Attributes item, state_->attributes_of(inode));
  if (item.kind != FileKind::symlink) return fail(Errc::invalid, "not a symlink");
  return state_->target_of(inode, item);
}

// --- files without a name -----------------------------------------------------------------------

// An orphan from the start: a crash leaves nothing of it that the next open does not reap.
Result<Volume::State::Use> Volume::State::make_unnamed(Caller caller, InodeId directory, u32 mode) {
  LK_TRY(const Use parent, use(directory));
  const Attributes above = parent->attributes();
  if (above.kind != FileKind::directory) return fail(Errc::not_dir, "not a directory");
  LK_TRY(Attributes fresh, inherit(caller, above, {.mode = mode}));
  fresh.links = 0;
  LK_TRY(auto space, reserve({0, kNameOpRecords, kNameOpBytes}));
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  LK_TRY(const InodeId id, new_number(transaction, directory.subvolume));
  LK_TRYV(transaction.put(id.subvolume, orphan_key(id), {}));
  LK_TRYV(put_inode(transaction, id, fresh));
  LK_TRYV(count_inodes(transaction, id.subvolume, +1));
  Lock lock(table_mutex);
  const InodePtr inode = add_to_table(id, fresh);
  inode->unlinked = true;
  inode->last_transaction = transaction.id();
  return Use(*this, inode);
}

Result<HandleId> Volume::open_unnamed(Caller caller, InodeId directory, OpenFlags flags, u32 mode,
                                      std::string path) {
  State& state = *state_;
  LK_TRYV(state.must_be_writable(directory));
  if (!flags.write) return fail(Errc::invalid, "a file without a name is opened for writing");
  LK_TRY(State::Use use, state.make_unnamed(caller, directory, mode));
  use->linkable = !flags.exclusive;
  return state.open_inode(caller, directory, std::move(use), flags, std::move(path));
}

}  // namespace latchkey::volume
