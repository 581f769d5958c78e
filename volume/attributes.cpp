// What inode items say beside names and data: mode, owner, times. And the time of the last read.

#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr i64 kDayNs = 86'400'000'000'000;
constexpr u32 kSetUid = 04000, kGroupExecutes = 0010;

// POSIX: a program that changes hands, or whose bytes another than root changes, loses what it was
// trusted with. Without the group's x the bit of setgid means something else (a lock), as in Linux.
u32 without_privileges(u32 mode) {
  const u32 set_gid = (mode & kGroupExecutes) != 0 ? kSetGid : 0;
  return mode & ~(kSetUid | set_gid);
}

}  // namespace

Result<void> Volume::State::put_changed(engine::Transaction& transaction, Inode& inode,
                                        const std::function<void(Attributes&)>& fn) {
  const Attributes item = inode.change(fn);
  inode.last_transaction = transaction.id();
  return put_inode(transaction, inode.id(), item);
}

Result<void> Volume::State::change_attributes(Inode& inode,
                                              const std::function<void(Attributes&)>& fn,
                                              u64 feature) {
  LK_TRYV(must_be_writable(inode.id()));
  LK_TRY(auto space, reserve({0, 2, 256}));
  const i64 now = static_cast<i64>(env.realtime_ns());
  LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
  if (feature != 0) transaction.need_feature(feature);
  return put_changed(transaction, inode, [&](Attributes& item) {
    fn(item);
    item.ctime_ns = now;
  });
}

Result<void> Volume::State::set_attributes(Inode& inode, const AttributeChange& wanted) {
  const bool owner = wanted.uid || wanted.gid;
  if (!owner && !wanted.mode && !wanted.atime_ns && !wanted.mtime_ns) return {};
  return change_attributes(inode, [&](Attributes& item) {
    item.uid = wanted.uid.value_or(item.uid);
    item.gid = wanted.gid.value_or(item.gid);
    if (owner && item.kind != FileKind::directory) item.mode = without_privileges(item.mode);
    if (wanted.mode) item.mode = *wanted.mode & 07777;
    item.atime_ns = wanted.atime_ns.value_or(item.atime_ns);
    item.mtime_ns = wanted.mtime_ns.value_or(item.mtime_ns);
  });
}

// Before a write or truncate by `uid`. One transaction where there is something to take away.
Result<void> Volume::State::drop_privileges(Inode& inode, u32 uid) {
  if (uid == 0) return {};
  const u32 mode = inode.attributes().mode;
  if (without_privileges(mode) == mode) return {};
  return change_attributes(inode,
                           [](Attributes& item) { item.mode = without_privileges(item.mode); });
}

// --- atime --------------------------------------------------------------------------------------
// Unless it is strict, a read moves it when it is not younger than mtime and ctime, or a day old.
// In memory: it goes down with whatever else puts the item, at the latest by the last user of the
// inode: one transaction. So a read costs nothing, and a crash may lose it.

bool Inode::note_read(i64 now_ns, Atime which) {
  Lock lock(mutex);
  Attributes& item = attributes_;
  const bool young = item.atime_ns > item.mtime_ns && item.atime_ns > item.ctime_ns &&
                     item.atime_ns > now_ns - kDayNs;
  if (young && which != Atime::strict) return false;
  item.atime_ns = now_ns;
  atime_pending_ = true;
  return true;
}

bool Inode::atime_pending() const {
  Lock lock(mutex);
  return atime_pending_;
}

void Volume::State::note_read(Inode& inode) {
  if (options.atime == Atime::none || !must_be_writable(inode.id())) return;
  inode.note_read(static_cast<i64>(env.realtime_ns()), options.atime);
}

bool Volume::State::is_locked(const Inode& inode) {
  return inode.encrypted() && keyring.status(inode.key_id(), 0).state != keymgr::KeyState::present;
}

// It is no loss if this fails, for lack of space or because the store has stopped.
void Volume::State::put_atime(Inode& inode) {
  auto space = store->reserve({0, 1, sizeof(InodeDisk)});
  if (space) {
    auto transaction = store->begin(std::move(*space));
    if (transaction) return (void)put_changed(*transaction, inode, [](Attributes&) {});
  }
  inode.change([](Attributes&) {});  // nothing is pending any more
}

Result<void> Volume::set_attributes(InodeId inode, const AttributeChange& change) {
  LK_TRY(const State::Use use, state_->use(inode));
  return state_->set_attributes(*use, change);
}

Result<void> Volume::set_attributes(HandleId id, const AttributeChange& change) {
  LK_TRY(const auto handle, state_->find(id));
  return state_->set_attributes(*handle->inode, change);
}

Result<void> Volume::set_times(InodeId inode, i64 mtime_ns) {
  return set_attributes(inode, {.mtime_ns = mtime_ns});
}

Result<void> Volume::set_mode(InodeId inode, u32 mode) {
  return set_attributes(inode, {.mode = mode});
}

}  // namespace latchkey::volume
