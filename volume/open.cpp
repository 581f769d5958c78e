// Making, opening and closing a volume.

#include <algorithm>

#include "base/check.h"
#include "base/no_memory.h"
#include "volume/lock_limit.h"
#include "volume/log_replay.h"
#include "volume/state.h"
#include "volume/subvolumes.h"

namespace latchkey::volume {

namespace {

constexpr u64 kPagesMin = 256;  // of dirty memory: less than 1 MiB is not worth a bound

}  // namespace

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
  LK_TRY(auto space, store->reserve({0, kNewTreeRecords, options.node_bytes}));
  {
    LK_TRY(engine::Transaction transaction, store->begin(std::move(space)));
    Attributes root;
    root.kind = FileKind::directory;
    root.mode = 0755;
    root.uid = options.uid;
    root.gid = options.gid;
    root.links = 1;
    set_all_times(root, static_cast<i64>(env.realtime_ns()));
    LK_TRYV(put_inode(transaction, kRootInode, root));
    LK_TRYV(transaction.create_tree(kSubvolumeTree));
    Subvolume first;
    first.created_ns = root.mtime_ns;
    LK_TRYV(put_subvolume(transaction, kRootInode.subvolume, first));
    const Le64 next_subvolume(kRootInode.subvolume + 1);
    LK_TRYV(transaction.put(kSubvolumeTree, kSubvolumeIdKey,
                            std::as_bytes(std::span(&next_subvolume, 1))));
    const Le64 counter(kRootNumber + 1);
    LK_TRYV(transaction.put(engine::kFirstSubvolume, {kCounterObject, kCounterType, 0},
                            std::as_bytes(std::span(&counter, 1))));
  }
  return store->close();
}

Volume::Volume(std::unique_ptr<State> state) : state_(std::move(state)) {}
Volume::~Volume() = default;

Volume::State::State(engine::Device& device_in, const VolumeOptions& options_in, Env& env_in)
    : device(device_in),
      options(options_in),
      env(env_in),
      keyring({.max_claims_per_uid = options_in.max_claims_per_uid,
               .anyone_may_retry = options_in.compat_fscrypt,
               .waiters_max = options_in.parked_max,
               .short_keys = options_in.compat_fscrypt}),
      memory(std::max(kPagesMin, options_in.dirty_bytes_max / kPageBytes)) {}

Volume::State::~State() {
  stop_workers();
  drop_everything();
}

// As a crash would, but for the secrets: all leases, all keys.
void Volume::State::drop_everything() {
  std::unordered_map<InodeId, InodePtr> gone;
  {
    Lock lock(table_mutex);
    handles.clear();
    handles_of_key.clear();
    lingering.clear();
    gone.swap(inodes);
    owners_by_word.clear();
  }
  for (const auto& [number, inode] : gone) {
    {
      Lock flush_lock(inode->flush_mutex);
      inode->drop_pages(0);
    }
    return_lease(*inode);
  }
  // Slots that cannot be named for lack of memory are wiped with their table.
  const auto keys = or_no_memory([&] { return keyring.list(); });
  keyring.remove_everything();
  if (!keys) return;
  for (const crypto::KeyId& key : *keys) slots->evict_key(key);
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
  open_options.discard = options.discard;
  const bool writable = !options.read_only && !options.previous_generation;
  writeback::PipelineOptions pipeline_options;
  pipeline_options.lanes = std::max(1U, options.writeback_workers);
  const LockedSizes sizes = fit_lock_limit({.key_slots = options.key_slots,
                                            .lanes = writable ? pipeline_options.lanes : 0,
                                            .read_rings = open_options.read_rings},
                                           lockable_bytes());
  open_options.read_ring_buffer_bytes = kReadRingBytes;
  open_options.register_buffers = pipeline_options.register_buffers = sizes.register_buffers;
  open_options.runs_of = runs_of;
  open_options.is_name = is_name;
  open_options.replay = replay_record;
  open_options.fsync_log = options.fsync_log;
  LK_TRY(store, engine::Store::open(device, open_options, env));
  LK_TRY(slots, keymgr::SlotTable::create(sizes.key_slots));
  pipeline_options.queue_depth = options.queue_depth;
  pipeline_options.extent_blocks_max = store->facts().extent_blocks_max;
  if (options.extent_bytes != 0)
    pipeline_options.extent_blocks_max =
        std::min(pipeline_options.extent_blocks_max,
                 std::max(1U, options.extent_bytes / u32{engine::kBlockBytes}));
  pipeline_options.clear_cipher = options.clear_cipher;
  if (writable) {
    LK_TRY(pipeline, writeback::Pipeline::create(*store, env, pipeline_options));
  }
  LK_TRYV(load_subvolumes());
  LK_TRYV(read_counter(store->view(), kRootInode.subvolume));
  LK_TRYV(get_inode(store->view(), kRootInode));
  if (!writable) return {};
  LK_TRYV(reap_orphans());
  if (options.inline_writeback) (void)finish_removals({});
  if (!options.inline_writeback)
    for (u32 i = 0; i < options.writeback_workers; ++i) workers.emplace_back([this] { work(); });
  return {};
}

Result<void> Volume::close() {
  State& state = *state_;
  state.stop_workers();
  auto first = or_no_memory([&] { return state.flush_many(state.dirty_inodes(), true).result; });
  if (auto closed = or_no_memory([&] { return state.store->close(); }); !closed && first)
    first = closed;
  state.drop_everything();
  return first;
}

engine::FreeRuns Volume::free_runs() const { return state_->store->free_runs(); }

VolumeFacts Volume::facts() const {
  VolumeFacts facts;
  facts.store = state_->store->facts();
  facts.space = state_->store->space();
  facts.commits = state_->store->commits();
  facts.log_blocks = state_->store->log_blocks();
  facts.maps_counted = state_->maps_counted;
  facts.slots = state_->slots->counters();
  if (state_->pipeline) {
    facts.extents_sealed = state_->pipeline->counters().extents;
    facts.bytes_sealed = state_->pipeline->counters().bytes;
  }
  facts.dirty_bytes = state_->memory.used() * kPageBytes;
  return facts;
}

}  // namespace latchkey::volume
