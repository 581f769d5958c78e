// Making, opening and closing a volume; its workers; orphans.

#include <algorithm>

#include "base/check.h"
#include "volume/state.h"

namespace latchkey::volume {

Result<void> Volume::mkfs(engine::Device& device, const MkfsOptions& options, Env& env) {
  engine::FormatOptions format;
  env.random(format.volume_id);
  format.node_bytes = options.node_bytes;
  if (options.extent_bytes_max % engine::kBlockBytes != 0)
    return fail(Errc::invalid, "an extent is a multiple of 4 KiB");
  format.extent_blocks_max = options.extent_bytes_max / engine::kBlockBytes;
  format.label = options.label;
  LK_TRYV(engine::Store::format(device, format));
  LK_TRY(auto store, engine::Store::open(device, {}, env));
  LK_TRY(auto space, store->reserve({0, 2, 256}));
  {
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    Attributes root;
    root.kind = FileKind::directory;
    root.mode = 0755;
    root.links = 1;
    root.mtime_ns = root.ctime_ns = static_cast<i64>(env.realtime_ns());
    LK_TRYV(put_inode(transaction, kRootInode, root));
    const Le64 counter(kRootInode + 1);
    LK_TRYV(transaction.put(engine::kFirstSubvolume, {kCounterObject, kCounterType, 0},
                            std::as_bytes(std::span(&counter, 1))));
  }
  return store->close();
}

Volume::Volume(std::unique_ptr<State> state) : state_(std::move(state)) {}
Volume::~Volume() = default;

Volume::State::~State() {
  stop_workers();
  Lock lock(table_mutex);
  handles.clear();
  for (auto& [number, inode] : inodes) {
    inode->drop_pages(0);
    return_lease(*inode);
  }
  inodes.clear();
}

Result<std::unique_ptr<Volume>> Volume::open(engine::Device& device, const VolumeOptions& options,
                                             Env& env) {
  auto state = std::make_unique<State>(device, options, env);
  LK_TRYV(state->start());
  return std::unique_ptr<Volume>(new Volume(std::move(state)));
}

Result<void> Volume::State::start() {
  engine::OpenOptions open_options;
  open_options.read_only = options.read_only;
  open_options.previous_generation = options.previous_generation;
  LK_TRY(store, engine::Store::open(device, open_options, env));
  LK_TRY(slots, keymgr::SlotTable::create(options.key_slots));
  writeback::PipelineOptions pipeline_options;
  pipeline_options.lanes = std::max(1U, options.writeback_workers);
  pipeline_options.queue_depth = options.queue_depth;
  pipeline_options.extent_blocks_max = store->facts().extent_blocks_max;
  if (options.extent_bytes != 0)
    pipeline_options.extent_blocks_max =
        std::min(pipeline_options.extent_blocks_max,
                 std::max(1U, options.extent_bytes / u32{engine::kBlockBytes}));
  pipeline_options.clear_cipher = options.clear_cipher;
  const bool writable = !options.read_only && !options.previous_generation;
  if (writable) {
    LK_TRY(pipeline, writeback::Pipeline::create(*store, env, pipeline_options));
  }
  {
    LK_TRY(const auto counter,
           store->view().get(engine::kFirstSubvolume, {kCounterObject, kCounterType, 0}));
    if (!counter || counter->value.size() != sizeof(Le64))
      return fail(Errc::malformed, "the store has no counter of inode numbers");
    Lock lock(table_mutex);
    next_inode = inode_limit = load_disk<Le64>(counter->value);
  }
  LK_TRYV(get_inode(store->view(), kRootInode));
  if (!writable) return {};
  LK_TRYV(reap_orphans());
  if (!options.inline_writeback)
    for (u32 i = 0; i < options.writeback_workers; ++i) workers.emplace_back([this] { work(); });
  return {};
}

void Volume::State::stop_workers() {
  {
    Lock lock(dirty_mutex);
    stopping = true;
    dirty_changed.notify_all();
  }
  for (std::thread& worker : workers) worker.join();
  workers.clear();
}

// Flushes what is dirty once half of the limit is reached, and commits now and then.
void Volume::State::work() {
  const u64 limit_pages = options.dirty_bytes_max / kPageBytes;
  const u64 interval_ns = u64{options.commit_interval_ms} * 1'000'000;
  u64 last_commit = env.monotonic_ns();
  for (;;) {
    {
      Lock lock(dirty_mutex);
      if (!stopping && pages_in_memory * 2 < limit_pages)
        dirty_changed.wait_for(dirty_mutex, interval_ns == 0 ? kForever : interval_ns / 4);
      if (stopping) return;
      const bool due = interval_ns != 0 && env.monotonic_ns() - last_commit >= interval_ns;
      if (pages_in_memory * 2 < limit_pages && !due) continue;
    }
    bool moved = false;
    for (const InodePtr& inode : dirty_inodes()) {
      if (!inode->flush_mutex.try_lock()) continue;  // somebody flushes it already
      const u64 before = inode->dirty_bytes();
      const auto flushed = flush_locked(*inode);  // its error is kept for the handles
      inode->flush_mutex.unlock();
      moved = moved || (flushed && before != 0);
      forget_if_idle(inode);
    }
    if (interval_ns != 0 && env.monotonic_ns() - last_commit >= interval_ns) {
      last_commit = env.monotonic_ns();
      (void)store->commit();  // sticky: whoever calls fsync hears of it
    } else if (!moved) {
      Lock lock(dirty_mutex);
      if (!stopping) dirty_changed.wait_for(dirty_mutex, 10'000'000);
    }
  }
}

Result<void> Volume::close() {
  State& state = *state_;
  state.stop_workers();
  Result<void> first;
  for (const InodePtr& inode : state.dirty_inodes())
    if (auto flushed = state.flush(*inode); !flushed && first) first = flushed;
  if (auto closed = state.store->close(); !closed && first) first = closed;
  Lock lock(state.table_mutex);
  state.handles.clear();
  for (auto& [number, inode] : state.inodes) {
    inode->drop_pages(0);
    state.return_lease(*inode);
  }
  state.inodes.clear();
  return first;
}

Result<void> Volume::sync() {
  Result<void> first;
  for (const InodePtr& inode : state_->dirty_inodes()) {
    if (auto flushed = state_->flush(*inode); !flushed && first) first = flushed;
    state_->forget_if_idle(inode);
  }
  LK_TRYV(state_->store->commit());
  return first;
}

VolumeFacts Volume::facts() const {
  VolumeFacts facts;
  facts.store = state_->store->facts();
  facts.space = state_->store->space();
  facts.commits = state_->store->commits();
  facts.slots = state_->slots->counters();
  if (state_->pipeline) {
    facts.extents_sealed = state_->pipeline->counters().extents;
    facts.bytes_sealed = state_->pipeline->counters().bytes;
  }
  Lock lock(state_->dirty_mutex);
  facts.dirty_bytes = state_->pages_in_memory * kPageBytes;
  return facts;
}

// --- orphans: unlinked while open, reaped at the last close or at the next open ------------------

Result<void> Volume::State::reap_orphans() {
  std::vector<InodeNumber> orphans;
  LK_TRYV(store->view().scan(engine::kFirstSubvolume, {kOrphanObject, kOrphanType, 0},
                             {kOrphanObject, kOrphanType, ~u64{0}},
                             [&](const engine::Key& key, Bytes) {
                               orphans.push_back(key.offset);
                               return true;
                             }));
  for (const InodeNumber inode : orphans) LK_TRYV(reap(inode));
  return {};
}

// Its blocks in bounded steps, then the inode and the orphan record in one.
Result<void> Volume::State::reap(InodeNumber inode) {
  static constexpr std::size_t kEntriesAtOnce = 64;
  for (;;) {
    LK_TRY(auto space, store->reserve({0, 4 * kEntriesAtOnce, 4096}, true));
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    std::vector<extent::MapEntry> entries;
    LK_TRYV(transaction.scan(engine::kFirstSubvolume, {inode, kMapType, 0},
                             {inode, kMapType, ~u64{0}}, [&](const engine::Key& key, Bytes value) {
                               if (auto entry = extent::decode_map(key.offset, value))
                                 entries.push_back(*entry);
                               return entries.size() < kEntriesAtOnce;
                             }));
    extent::MapEdit edit;
    for (const extent::MapEntry& entry : entries) {
      edit.erase.push_back(entry.file_block);
      edit.release.push_back({entry.disk_block, entry.blocks});
    }
    LK_TRYV(apply(transaction, inode, edit));
    if (entries.size() == kEntriesAtOnce) continue;
    LK_TRYV(transaction.erase(engine::kFirstSubvolume, inode_key(inode)));
    LK_TRYV(transaction.erase(engine::kFirstSubvolume, {kOrphanObject, kOrphanType, inode}));
    return {};
  }
}

}  // namespace latchkey::volume
