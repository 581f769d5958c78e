// What the volume owes its front, and counts of what came from it too late.

#include "volume/front.h"

#include <utility>

#include "base/no_memory.h"
#include "volume/state.h"

namespace latchkey::volume {

void Volume::State::try_again(const crypto::KeyId& id) {
  if (options.front != nullptr) options.front->try_again(id);
}

// A hole is read without the key, so this says whether it is there.
Result<void> Volume::State::may_page_in(const Inode& inode, IoFlags flags) {
  if (!inode.encrypted()) return {};
  SharedLock lock(inode.lease_lock);
  switch (inode.key_lease.page_ins(flags.serve)) {
    case keymgr::PageIns::go_on:
      return {};
    case keymgr::PageIns::wait:
      return would_wait();
    case keymgr::PageIns::no_key:
      break;
  }
  return fail(Errc::no_key, "the key is being removed");
}

// The front has the page no more, or takes it for clean: whoever has the file open is told, and the
// removal under way.
void Volume::State::note_refused(const InodePtr& inode, u64 offset, u64 bytes, const Error& error) {
  if (bytes == 0) return;
  const bool without_key = error.code == Errc::no_key;
  if (!without_key) inode->note_error(error);
  if (!inode->encrypted()) return;
  if (without_key) {
    ++inode->losses;
    ++all_losses;
  }
  const crypto::KeyId id = inode->key_id();
  const u64 first = offset / kPageBytes;
  const u64 pages = (offset + bytes - 1) / kPageBytes - first + 1;
  Lock lock(table_mutex);
  for (Refusals* of : refusals) {
    if (of->id != id) continue;
    if (!of->error) of->error = error;
    const auto listed = or_no_memory([&] { of->writes.push_back({inode, first, pages}); });
    if (!listed) of->unlisted_pages += pages;
    return;
  }
}

// A worker keeps the deadline.
void Volume::State::suspend(const crypto::KeyId& id, std::set<u32> claimers, Until until) {
  keyring.suspensions().begin(id, std::move(claimers), until);
  if (until && options.front != nullptr) memory.kick();
}

void Volume::State::end_late_suspensions() {
  if (options.front == nullptr) return;
  for (const crypto::KeyId& id : keyring.suspensions().end_late(env.monotonic_ns())) try_again(id);
}

bool Volume::key_is_leaving(HandleId id) {
  const auto handle = state_->find(id);
  if (!handle || !(*handle)->inode->encrypted()) return false;
  const auto status = state_->keyring.status((*handle)->inode->key_id(), 0);
  return status.state == keymgr::KeyState::incompletely_removed;
}

}  // namespace latchkey::volume
