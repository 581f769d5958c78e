// Writeback of dirty pages: who flushes, when, and who waits for room.

#include <algorithm>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/no_wait.h"
#include "base/wait.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

// Files whose flush locks are held at a time, and pages after which a group is full.
constexpr std::size_t kFilesAtOnce = 64;
constexpr u64 kPagesAtOnce = 1024;
constexpr u64 kRoomWaitNs = 50'000'000;
constexpr u64 kIdleWaitNs = 10'000'000;

// Not so pages whose key is gone: their removal is about to drop them, which makes room.
bool device_refuses(const Result<void>& flushed) {
  return !flushed && flushed.error().code != Errc::no_key;
}

}  // namespace

// The files of a group are locked together: the first one by waiting for it, the others only where
// that needs no wait, so two groups cannot wait for each other. Their leases are held shared, so a
// writeout under way is finished before a lease is taken.
Volume::State::Flushed Volume::State::flush_many(std::span<const InodePtr> list, bool wait,
                                                 bool synced) LK_NO_ANALYSIS {
  Flushed flushed;
  if (!writable()) return flushed;
  std::vector<InodePtr> left(list.begin(), list.end());
  flushed.failed.reserve(left.size());
  while (!left.empty()) {
    // While locks are held nothing is allocated.
    std::vector<InodePtr> group, later;
    std::vector<writeback::FileFlush> files;
    group.reserve(std::min(left.size(), kFilesAtOnce));
    later.reserve(left.size());
    files.reserve(group.capacity());
    u64 pages = 0;
    for (const InodePtr& inode : left) {
      const bool full = group.size() == kFilesAtOnce || pages >= kPagesAtOnce;
      bool locked = !full && inode->flush_mutex.try_lock();
      if (!locked && wait && group.empty()) {
        inode->flush_mutex.lock();
        locked = true;
      }
      if (locked) {
        pages += inode->dirty_bytes() / kPageBytes;
        group.push_back(inode);
      } else if (full || wait) {
        later.push_back(inode);
      }
    }
    files.resize(group.size());
    for (std::size_t i = 0; i < group.size(); ++i) {
      group[i]->lease_lock.lock_shared();
      files[i].file = group[i].get();
      files[i].synced = synced;
    }
    if (auto failure = store->failure())  // D4: nothing more goes down
      for (writeback::FileFlush& file : files) file.result = std::unexpected(*failure);
    else if (pages != 0)
      pipeline->flush(files);
    for (std::size_t i = group.size(); i-- > 0;) {
      group[i]->lease_lock.unlock_shared();
      group[i]->flush_mutex.unlock();
      flushed.pages += files[i].pages;
      if (files[i].result) continue;
      flushed.failed.push_back(group[i]);
      if (flushed.result) flushed.result = files[i].result;
    }
    left = std::move(later);
  }
  return flushed;
}

Result<void> Volume::State::flush(const InodePtr& inode, bool synced) {
  return flush_many({&inode, 1}, true, synced).result;
}

bool Volume::State::may_pass(const Error& error) {
  return error.code == Errc::no_memory && !store->failure();
}

// Waits for the dirty limit. Outside of gates and transactions (T3).
Result<Room> Volume::State::take_room(u64 pages) {
  check_may_wait();
  std::optional<u64> begun_before;  // rounds of writeback
  for (;;) {
    const u64 seen = memory.room_changes();
    if (memory.promise(pages)) return Room(memory, pages);
    if (auto failure = store->failure()) return std::unexpected(*failure);
    if (workers.size() > workers_away) {
      {
        Lock lock(worker_mutex);
        if (!begun_before) begun_before = rounds_begun;
        if (stuck && stuck_round > *begun_before) return std::unexpected(*stuck);
      }
      memory.wait_room(seen, kRoomWaitNs);
      continue;
    }
    const std::vector<InodePtr> dirty = dirty_inodes();
    const Flushed flushed = flush_many(dirty, false);
    for (const InodePtr& inode : dirty) forget_if_idle(inode);
    if (flushed.pages != 0) continue;
    if (device_refuses(flushed.result)) return std::unexpected(flushed.result.error());
    memory.wait_room(seen, kIdleWaitNs);  // other threads hold the room
  }
}

bool Volume::State::should_stop() {
  Lock lock(worker_mutex);
  return stopping;
}

void Volume::State::stop_workers() {
  {
    Lock lock(worker_mutex);
    stopping = true;
  }
  memory.kick();
  for (Thread& worker : workers) worker.join();
  workers.clear();
}

// Flushes what is dirty once an eighth of the limit is reached, and commits now and then.
void Volume::State::work() {
  u64 last_commit = env.monotonic_ns();
  for (;;) {
    const u64 seen = memory.pressure_changes();
    if (should_stop()) return;
    const auto worked = or_no_memory([&] { work_once(seen, last_commit); });
    if (worked) continue;
    {
      Lock lock(worker_mutex);
      stuck = worked.error();
      stuck_round = rounds_begun;
    }
    memory.wait_pressure(memory.pressure_changes(), kIdleWaitNs);
  }
}

void Volume::State::work_once(u64 seen, u64& last_commit) {
  const u64 interval_ns = u64{options.commit_interval_ms} * 1'000'000;
  const bool due = interval_ns != 0 && env.monotonic_ns() - last_commit >= interval_ns;
  remove_overdue();  // however much there is to write
  if (!memory.pressing() && !due) {
    if (const auto stepped = drop_step(); stepped && *stepped) return;
    memory.wait_pressure(
        seen, std::min(interval_ns == 0 ? kForever : interval_ns / 4, next_overdue_ns()));
    return;
  }
  u64 round = 0;
  {
    Lock lock(worker_mutex);
    round = ++rounds_begun;
  }
  const std::vector<InodePtr> dirty = dirty_inodes();
  const Flushed flushed = flush_many(dirty, false);  // errors are kept for the handles
  {
    Lock lock(worker_mutex);
    if (flushed.pages != 0) {
      stuck.reset();
    } else if (device_refuses(flushed.result)) {
      stuck = flushed.result.error();
      stuck_round = std::max(stuck_round, round);
    }
  }
  for (const InodePtr& inode : dirty) forget_if_idle(inode);
  if (due) {
    last_commit = env.monotonic_ns();
    (void)store->commit();  // sticky: whoever calls fsync hears of it
  } else if (flushed.pages == 0) {
    memory.wait_pressure(memory.pressure_changes(), kIdleWaitNs);
  }
}

Result<void> Volume::State::fsync(Handle& handle) {
  const auto flushed = handle.directory ? Result<void>{} : flush(handle.inode, true);
  LK_TRYV(tell_errors(handle));
  LK_TRYV(flushed);
  const InodeId inode = handle.inode->id();
  return store->sync_object(inode.subvolume, inode.number);
}

// The store may have stopped in the flush already, where the log's block was beside the data.
Result<void> Volume::fsync(HandleId id) {
  State& state = *state_;
  LK_TRY(const auto handle, state.find(id));
  auto synced = state.fsync(*handle);
  if (!synced && state.store->failure()) handle->stop_told = true;
  return synced;
}

// What a removal, or a last close under one, drops while this waits for its flush is not there
// either, and nobody else may have a handle that hears of it.
Result<void> Volume::sync() {
  State& state = *state_;
  const u64 losses = state.all_losses;
  const std::vector<InodePtr> dirty = state.dirty_inodes();
  const auto flushed = state.flush_many(dirty, true);
  for (const InodePtr& inode : dirty) state.forget_if_idle(inode);
  LK_TRYV(state.store->commit());
  if (flushed.result && state.all_losses != losses)
    return fail(Errc::io, "dirty data was lost meanwhile: its key was removed");
  return flushed.result;
}

}  // namespace latchkey::volume
