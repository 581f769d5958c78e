// What a removal would do now: the same questions in the same order, and no answer changes
// anything.

#include <algorithm>

#include "volume/state.h"

namespace latchkey::volume {

namespace {

bool loses(const keymgr::RemovalRow& row) { return row.dirty == keymgr::Dirty::drop; }
bool stays_open(const keymgr::RemovalRow& row) { return row.stays != keymgr::Stays::nothing; }

}  // namespace

Result<void> Volume::State::rehearse(Caller caller, const crypto::KeyId& id,
                                     const RemovalRequest& request, RemovalReport& report) {
  if (end_suspension(caller, id, request, {})) return {};
  const keymgr::RemovalRow& row = keymgr::removal_row(request.mode);
  LK_TRY(report.other_users, keyring.would_remove_claim_only(id, caller.uid, request.all_users));
  report.state = keyring.status(id, caller.uid).state;
  if (report.other_users) return {};
  const std::vector<InodePtr> all =
      leased([&](u64& cursor, u32 count_max) { return keyring.owners(id, cursor, count_max); });
  std::vector<InodePtr> busy, closed;
  {
    Lock lock(table_mutex);
    report.holders = holders(id);
    for (const InodePtr& inode : all) (inode->handle_ids.empty() ? closed : busy).push_back(inode);
  }
  report.files_busy = stays_open(row) && !report.holders.empty();
  report.state =
      report.files_busy ? keymgr::KeyState::incompletely_removed : keymgr::KeyState::absent;
  if (row.refuse_when_busy && !report.holders.empty())
    return fail(Errc::busy, "files or directories of the key are open");
  const bool lost = loses(row) || store->failure().has_value();
  for (const InodePtr& inode : stays_open(row) ? closed : all) {
    const u64 dirty = inode->dirty_bytes();
    (lost ? report.bytes_lost : report.bytes_flushed) += dirty;
    if (!lost || dirty == 0) continue;
    ++report.files_lost;
    report.lost.push_back({inode->id(), path_of(inode->id()).value_or(""), dirty});
  }
  if (row.stays != keymgr::Stays::own_keys) return {};
  for (const InodePtr& inode : busy) {
    std::vector<crypto::Nonce> nonces;
    if (inode->attributes().kind == FileKind::regular) {
      Lock flush_lock(inode->flush_mutex);
      LK_TRY(nonces, extent_nonces(*inode, ~u64{0}));
    }
    std::ranges::sort(nonces);
    const auto same = std::ranges::unique(nonces);
    const u64 extents = nonces.size() - same.size();
    report.own_keys += extents;
    report.own_key_bytes += keymgr::OwnKeys::bytes_for(extents);
  }
  if (options.sealed_bytes_max != 0 && report.own_key_bytes > options.sealed_bytes_max)
    return fail(Errc::no_memory, "the keys of the open files take more memory than they may");
  return {};
}

}  // namespace latchkey::volume
