// Group commit: freeze the running generation, write its nodes and bitmap slots, flush, write one
// superblock set, flush (E3). Whoever needs it does it; the others wait.

#include <algorithm>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/no_wait.h"
#include "engine/io_buffer.h"
#include "engine/store_state.h"

namespace latchkey::engine {

namespace {

// Ops of one commit; the first error wins.
struct Batch {
  std::vector<Op> ops;
  const Op* refused = nullptr;

  static void done(Op& op) {
    auto* batch = static_cast<Batch*>(op.owner);
    if (op.result < 0 && batch->refused == nullptr) batch->refused = &op;
  }
  void add(u64 block, MutableBytes data) {
    Op op;
    op.kind = OpKind::write;
    op.offset = block * kBlockBytes;
    op.data = data;
    op.done = &Batch::done;
    ops.push_back(op);
  }
  void add_discard(const BlockRun& run) {
    Op op;
    op.kind = OpKind::discard;
    op.offset = run.block * kBlockBytes;
    op.discard_size = run.count * kBlockBytes;
    op.done = &Batch::done;
    ops.push_back(op);
  }
  Result<void> run(Io& io) {
    for (Op& op : ops) {
      op.owner = this;
      io.submit(op);
    }
    while (io.pending() != 0) LK_TRYV(io.tick(io.pending()));
    return refused == nullptr ? Result<void>() : result_of(*refused);
  }
};

}  // namespace

void StoreState::set_failure(const Error& error) {
  Lock lock(commit_mutex);
  if (!failed) failed = error;
  has_failed.store(true, std::memory_order_release);
}

std::optional<Error> StoreState::failure() {
  if (!has_failed.load(std::memory_order_acquire)) return std::nullopt;
  Lock lock(commit_mutex);
  return failed;
}

Result<void> StoreState::write_frozen(const Forest::Frozen& frozen,
                                      const std::vector<FreeSpace::SlotWrite>& slots,
                                      const Superblock& next) {
  Batch batch;
  batch.ops.reserve(frozen.nodes.size() * 2 + slots.size());
  for (const Forest::Frozen::Write& write : frozen.nodes)
    for (const u64 place : write.place) batch.add(place, write.node->bytes());
  LK_TRY(IoBuffer images, IoBuffer::create(slots.size() * kBlockBytes));
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const MutableBytes image = images.bytes().subspan(i * kBlockBytes, kBlockBytes);
    std::ranges::copy(slots[i].image, image.begin());
    batch.add(slots[i].block, image);
  }
  LK_TRYV(batch.run(*commit_io));
  LK_TRYV(flush_sync(*commit_io));
  LK_TRYV(write_superblocks(*commit_io, next));
  return flush_sync(*commit_io);
}

Result<void> StoreState::write_generation(bool force) {
  Forest::Frozen frozen;
  std::vector<FreeSpace::SlotWrite> slots;
  Superblock next;
  {
    Lock lock(commit_mutex);
    next = superblock;
  }
  {
    ExclusiveLock lock(forest_lock);
    // The transaction that was waited for may have failed half way.
    if (auto error = failure()) return std::unexpected(*error);
    if (!forest->changed() && !force) return {};
    LK_TRY(frozen, forest->freeze());
    log_changes.frozen();
    running.store(forest->running(), std::memory_order_release);
    node_count.store(forest->node_count(), std::memory_order_relaxed);
    next.generation = frozen.generation;
    next.root = frozen.root;
    next.node_count = forest->node_count();
    next.extent_node_count = forest->extent_node_count();
    note_forest();
    Lock space_lock(space_mutex);
    next.log_head = next_log_head();
    if (next.log_head[0] != 0) features_incompat |= kFeatureLoggedCreates;
    next.features_incompat = features_incompat;
    LK_TRY(slots, space->slots_to_write(frozen.generation));
    next.used_blocks = space->blocks_used();
    next.promised_blocks = promised;
    next.map_checksum_before = next.map_checksum;
    next.map_checksum = space->map_checksum();
  }
  LK_TRYV(write_frozen(frozen, slots, next));
  for (const Forest::Frozen::Write& write : frozen.nodes) cache->make_clean(write.place[0]);
  {
    Lock lock(commit_mutex);
    superblock = next;
    durable = next.generation;
    commit_done.notify_all();  // who waits for this generation does not wait for discards
  }
  commits.fetch_add(1, std::memory_order_relaxed);
  log_changes.allow_creates((next.features_incompat & kFeatureLoggedCreates) != 0);
  begin_log();
  unpin();
  return {};
}

// What was written under it failed: the store stops.
void StoreState::end_commit(const Result<void>& written) {
  committing = false;
  if (!written && !failed) {
    failed = written.error();
    has_failed.store(true, std::memory_order_release);
  }
  commit_done.notify_all();
}

Result<void> StoreState::commit_through(u64 transaction, bool force) {
  commit_mutex.lock();
  while (!failed && (durable < transaction || force)) {
    if (committing) {
      commit_done.wait(commit_mutex);
      continue;
    }
    committing = true;
    commit_mutex.unlock();
    const auto written = or_no_memory([&] { return write_generation(force); });
    commit_mutex.lock();
    end_commit(written);
    break;  // what ran is durable, or nothing had changed, or it failed
  }
  const std::optional<Error> error = failed;
  commit_mutex.unlock();
  if (error) return std::unexpected(*error);
  return {};
}

// While they are pinned nobody can get them, so no discard meets a write of the next owner's.
void StoreState::discard_pinned(u64 through) {
  Batch batch;
  u64 blocks = 0;
  {
    Lock lock(space_mutex);
    if (!pins.empty() && *pins.begin() <= through) through = *pins.begin() - 1;
    for (const BlockRun& run : space->pinned_through(through)) {
      batch.add_discard(run);
      blocks += run.count;
    }
  }
  const auto discarded = batch.run(*commit_io);
  if (discarded)
    blocks_discarded.fetch_add(blocks, std::memory_order_relaxed);
  else if (discarded.error().code == Errc::unsupported)
    discarding = false;  // another error costs nothing: nobody needs what lies there
}

void StoreState::unpin() {
  u64 through = 0;
  {
    Lock lock(commit_mutex);
    if (durable == 0) return;
    through = durable - 1;
  }
  if (discarding) discard_pinned(through);
  Lock lock(space_mutex);
  if (!pins.empty() && *pins.begin() <= through) through = *pins.begin() - 1;
  space->unpin_through(through);
  pool->note_unpinned(running.load(std::memory_order_acquire));
  // Before further data can take it. Not enough is no error here: the next reserve() says so.
  (void)pool->fill(fixed_reserve() + shared_floor() + tree_reserved, data_kept());
}

Result<void> Store::commit() {
  check_may_wait();
  if (auto error = state_->failure()) return std::unexpected(*error);
  if (state_->read_only) return {};
  return state_->commit_through(running_transaction(), false);
}

Result<void> Store::wait_durable(u64 id) {
  check_may_wait();
  if (state_->read_only) return {};
  return state_->commit_through(id, false);
}

u64 Store::running_transaction() const { return state_->running.load(std::memory_order_acquire); }
u64 Store::commits() const { return state_->commits.load(std::memory_order_relaxed); }
std::optional<Error> Store::failure() const { return state_->failure(); }
void Store::stop(const Error& why) { state_->set_failure(why); }

}  // namespace latchkey::engine
