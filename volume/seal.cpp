// Sealing: a busy inode gets keys of its own, so that the master can go (keymgr/own_keys.h).

#include <algorithm>

#include "base/check.h"
#include "extent/context.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr std::size_t kEntriesAtOnce = 1024;  // of the map, under one view

Result<void> collect(const engine::View& view, const extent::MapEntry& entry,
                     std::vector<crypto::Nonce>& nonces) {
  for (u32 done = 0; done < entry.blocks && !entry.promised;) {
    LK_TRY(const auto record, view.extent_at(entry.disk_block + done, entry.blocks - done));
    LK_TRY(const auto context, extent::decode_context(record.context));
    if (context && (nonces.empty() || nonces.back() != context->nonce))
      nonces.push_back(context->nonce);
    done += record.run.count;
  }
  return {};
}

}  // namespace

// Of the extents that the map refers to, some of them several times; at most `count_max` and a few
// more. Under the flush lock the map stands still.
Result<std::vector<crypto::Nonce>> Volume::State::extent_nonces(const Inode& inode, u64 count_max) {
  std::vector<crypto::Nonce> nonces;
  for (u64 first = 0; first < kFileBlocksMax && nonces.size() <= count_max;) {
    const engine::View view = store->view();
    LK_TRY(const auto entries,
           map_entries(view, inode.id(), {first, kFileBlocksMax - first}, kEntriesAtOnce));
    for (const extent::MapEntry& entry : entries) LK_TRYV(collect(view, entry, nonces));
    if (entries.size() < kEntriesAtOnce) break;
    first = entries.back().file_end();
  }
  return nonces;
}

// The lock of its flushes keeps the map as it is until the keys are there, and the lease's lock is
// taken when no plan is under way: later ones use the new write key.
Result<void> Volume::State::seal(Inode& inode, u64 number, RemovalReport& report) {
  Lock flush_lock(inode.flush_mutex);
  {
    SharedLock lock(inode.lease_lock);
    if (!inode.key_lease.held() || inode.key_lease.cut_off()) return {};
  }
  u64 count_max = ~u64{0};
  if (options.sealed_bytes_max != 0) {
    const u64 used = report.own_key_bytes + keymgr::OwnKeys::bytes_for(0);
    const u64 left = options.sealed_bytes_max > used ? options.sealed_bytes_max - used : 0;
    count_max = left / crypto::kXtsKeyBytes;
  }
  keymgr::OwnKeys::Wanted wanted;
  if (inode.attributes().kind == FileKind::regular) {
    LK_TRY(wanted.extents, extent_nonces(inode, count_max));
  }
  wanted.seal = number;
  wanted.inode_nonce = inode.attributes().nonce;
  env.random(std::as_writable_bytes(std::span(&wanted.write_nonce, 1)));
  std::unique_ptr<keymgr::OwnKeys> keys;
  {
    SharedLock lock(inode.lease_lock);
    if (!inode.key_lease.held()) return {};
    LK_TRY(keys, keymgr::OwnKeys::derive(inode.key_lease, std::move(wanted)));
  }
  const u64 bytes = report.own_key_bytes + keymgr::OwnKeys::bytes_for(keys->extents());
  if (options.sealed_bytes_max != 0 && bytes > options.sealed_bytes_max)
    return fail(Errc::no_memory, "the keys of the open files take more memory than they may");
  ExclusiveLock lock(inode.lease_lock);
  if (!inode.key_lease.held()) return {};  // closed meanwhile, and clean
  report.own_keys += keys->extents();
  report.own_key_bytes = bytes;
  inode.sealed_keys = std::move(keys);
  return {};
}

// The keys that the removals of these numbers made; those of another one, which may be all that an
// inode has, stay.
void Volume::State::unseal(std::span<const InodePtr> list, u64 first, u64 last) {
  for (const InodePtr& inode : list) {
    ExclusiveLock lock(inode->lease_lock);
    const keymgr::OwnKeys* keys = inode->sealed_keys.get();
    if (keys != nullptr && first <= keys->seal() && keys->seal() <= last)
      inode->sealed_keys.reset();
  }
}

// The master is back.
void Volume::State::unseal(const crypto::KeyId& id, u64 number) {
  unseal(leased([&](u64& cursor, u32 count_max) { return keyring.owners(id, cursor, count_max); }),
         0, number);
}

}  // namespace latchkey::volume
