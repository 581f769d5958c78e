// Making and opening a store, its rings and its facts.

#include "engine/store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "engine/io_buffer.h"
#include "engine/store_state.h"

namespace latchkey::engine {

namespace {

constexpr u32 kCommitQueueDepth = 64;
constexpr u64 kDirtyNodesMax = 1024;
constexpr u32 kNodeRings = 4;
constexpr u32 kSmallRingsMax = 32;
constexpr u64 kSmallRingBytes = 64 * kKiB;
constexpr u64 kLogBlocksMax = 1024, kLogPartOfStore = 64;

// The first 64 KiB stay zero: where others look for boot code, partition tables and file systems,
// the bits of a bitmap could pass for one.
constexpr u32 kHeadBlocks = 16;

std::vector<BlockRun> places_taken(u64 device_bytes) {
  std::vector<BlockRun> runs = {{0, kHeadBlocks}};
  for (u32 place = 0; place < 4; ++place)
    runs.push_back({superblock_place(place, device_bytes), 1});
  return runs;
}

Result<void> check_options(const FormatOptions& options, const DeviceInfo& info) {
  const u32 node = options.node_bytes;
  if (node < kNodeBytesMin || node > kNodeBytesMax || (node & (node - 1)) != 0)
    return fail(Errc::invalid, "a node is a power of two from 4 KiB to 64 KiB");
  if (options.extent_blocks_max == 0 || options.extent_blocks_max > kExtentBlocksMax)
    return fail(Errc::invalid, "an extent is from 4 KiB to 1 MiB");
  if (options.label.size() > 63) return fail(Errc::invalid, "a label is at most 63 bytes");
  if (info.size_bytes < kDeviceBytesMin)
    return fail(Errc::wrong_device, "too small: a store needs 16 MiB");
  if (info.read_only) return fail(Errc::read_only, "the device is read-only");
  return {};
}

// An older store's superblocks would win by their generation.
Result<void> wipe_superblocks(Io& io, u64 device_bytes) {
  LK_TRY(IoBuffer zeros, IoBuffer::create(kHeadBlocks * kBlockBytes));
  LK_TRYV(write_sync(io, 0, zeros.bytes()));
  for (u32 place = 0; place < 4; ++place)
    LK_TRYV(write_sync(io, superblock_place(place, device_bytes) * kBlockBytes,
                       zeros.bytes().first(kBlockBytes)));
  return flush_sync(io);
}

}  // namespace

StoreState::StoreState(Device& device_in, const OpenOptions& options_in, Env& env_in)
    : device(device_in), options(options_in), env(env_in) {}

Result<void> StoreState::read_blocks(u64 block, MutableBytes into) {
  if (block > fixed.size_bytes / kBlockBytes ||
      block * kBlockBytes + into.size() > fixed.size_bytes)
    return fail(Errc::damaged, "a pointer leads past the end of the store", block * kBlockBytes);
  Io* io = node_rings.take();
  auto read = read_sync(*io, block * kBlockBytes, into);
  node_rings.give_back(io);
  return read;
}

namespace {

IoOptions small_ring() {
  IoOptions options;
  options.buffer_bytes = kSmallRingBytes;
  options.register_buffer = false;
  return options;
}

Result<void> make_rings(StoreState& state) {
  IoOptions options;
  options.buffer_bytes = state.options.read_ring_buffer_bytes;
  options.register_buffer = state.options.register_buffers;
  for (u32 i = 0; i < std::max(1U, state.options.read_rings); ++i) {
    LK_TRY(auto io, state.device.make_io(options));
    state.rings.add(std::move(io));
  }
  LK_TRY(auto small, state.device.make_io(small_ring()));
  state.small_rings.add(std::move(small));
  for (u32 i = 0; i < kNodeRings; ++i) {
    LK_TRY(auto io, state.device.make_io({}));
    state.node_rings.add(std::move(io));
  }
  IoOptions commit_options;
  commit_options.queue_depth = kCommitQueueDepth;
  LK_TRY(state.log.buffer, IoBuffer::create(kBlockBytes));
  LK_TRY(state.commit_io, state.device.make_io(commit_options));
  return {};
}

void build(StoreState& state, const Superblock& superblock) {
  state.fixed.volume_id = superblock.volume_id;
  state.fixed.label = superblock.label;
  state.fixed.node_bytes = superblock.node_bytes;
  state.fixed.extent_blocks_max = superblock.extent_blocks_max;
  state.fixed.size_bytes = superblock.size_bytes;
  state.fixed.features_compat = superblock.features_compat;
  state.fixed.features_ro_compat = superblock.features_ro_compat;
  state.features_incompat = superblock.features_incompat;
  const u64 blocks = superblock.size_bytes / kBlockBytes;
  const auto read = [&state](u64 block, MutableBytes into) {
    return state.read_blocks(block, into);
  };
  state.cache = std::make_unique<NodeCache>(
      NodeCache::Options{superblock.volume_id, superblock.node_bytes, state.options.cache_bytes},
      read);
  state.space = std::make_unique<FreeSpace>(blocks, places_taken(superblock.size_bytes), read);
  state.read_around = std::make_unique<ReadAround>(blocks);
  state.pool = std::make_unique<NodePool>(*state.space, state.node_blocks());
  state.forest = std::make_unique<Forest>(
      Forest::Options{superblock.volume_id, superblock.node_bytes, state.options.runs_of},
      *state.cache, *state.space, *state.pool, state.space_mutex);
  const u64 node_blocks = state.node_blocks();
  state.log.blocks_max =
      state.options.fsync_log ? std::min(kLogBlocksMax, blocks / kLogPartOfStore) : 0;
  state.dirty_nodes_max = std::clamp<u64>(blocks / (16 * 2 * node_blocks), 32, kDirtyNodesMax);
  state.log_changes.allow_creates((superblock.features_incompat & kFeatureLoggedCreates) != 0);
  Lock lock(state.commit_mutex);
  state.superblock = superblock;
}

}  // namespace

Result<void> Store::format(Device& device, const FormatOptions& options) {
  LK_TRYV(check_options(options, device.info()));
  const OpenOptions open_options;
  StoreState state(device, open_options, system_env());
  Superblock superblock;
  superblock.volume_id = options.volume_id;
  superblock.size_bytes = device.info().size_bytes;
  superblock.node_bytes = options.node_bytes;
  superblock.extent_blocks_max = options.extent_blocks_max;
  superblock.label = options.label;
  LK_TRYV(make_rings(state));
  LK_TRYV(wipe_superblocks(*state.commit_io, superblock.size_bytes));
  build(state, superblock);
  {
    ExclusiveLock lock(state.forest_lock);
    {
      Lock space_lock(state.space_mutex);
      state.space->format();
    }
    LK_TRYV(state.forest->format(1));
    for (const TreeId tree : {kExtentTree, kKeyTree, kFirstSubvolume})
      LK_TRYV(state.forest->create_tree(tree));
  }
  return state.write_generation(true);
}

Result<std::unique_ptr<Store>> Store::open(Device& device, const OpenOptions& options, Env& env) {
  auto state = std::make_unique<StoreState>(device, options, env);
  if (device.info().size_bytes < kDeviceBytesMin)
    return fail(Errc::wrong_device, "not a latchkey store: too small");
  LK_TRYV(make_rings(*state));
  LK_TRY(const SuperblockScan scan, scan_superblocks(*state->commit_io, device.info().size_bytes));
  const bool unread = scan.newest_may_be_unread();
  if (unread && !options.previous_generation)
    return fail(Errc::io, "a superblock set cannot be read, and it may be the newest");
  const auto superblock = scan.newest(options.previous_generation && !unread);
  if (!superblock) return fail(Errc::wrong_device, "the store has no previous generation");
  if (superblock->size_bytes > device.info().size_bytes)
    return fail(Errc::wrong_device, "the device is shorter than the store on it: it was truncated",
                device.info().size_bytes);
  if (superblock->root.level > kLevelMax)
    return fail(Errc::malformed, "the root tree is impossibly high");
  if (superblock->root.generation > superblock->generation)
    return fail(Errc::malformed, "the root tree is from the future");
  state->read_only = options.read_only || options.previous_generation;
  state->discarding = options.discard && device.info().discard && !state->read_only;
  if (!state->read_only && device.info().read_only)
    return fail(Errc::read_only, "the device is read-only");
  if (!state->read_only && (superblock->features_ro_compat & ~kFeaturesRoCompat) != 0)
    return fail(Errc::format_version, "the store has a feature with which it can only be read");
  // What is shown from now on must not hang on the one copy that a crash left, nor on one that the
  // device does not give today.
  if (const auto rewrites = scan.to_write_anew();
      !rewrites.empty() && !state->read_only && !options.repair) {
    for (const auto& [place, copy] : rewrites)
      LK_TRYV(write_superblock(*state->commit_io, copy, place));
    LK_TRYV(flush_sync(*state->commit_io));
  }
  build(*state, *superblock);
  state->fixed.stepped_back = scan.stepped_back();
  state->forest->recover(superblock->root, superblock->generation, superblock->node_count,
                         std::min(superblock->node_count, superblock->extent_node_count));
  const auto recovered =
      state->space->recover({superblock->generation, superblock->used_blocks,
                             superblock->map_checksum, superblock->map_checksum_before});
  if (!recovered && !state->read_only && !options.repair) return std::unexpected(recovered.error());
  {
    Lock lock(state->space_mutex);
    state->promised = superblock->promised_blocks;
  }
  state->running = superblock->generation + 1;
  state->node_count = superblock->node_count;
  {
    Lock lock(state->commit_mutex);
    state->durable = superblock->generation;
  }
  LK_TRY(const NodePtr root, state->cache->get(superblock->root, kRootTree));
  (void)root;
  {
    ExclusiveLock lock(state->forest_lock);
    state->forest->find_shared_trees();
    state->note_forest();
  }
  std::unique_ptr<Store> store(new Store(std::move(state)));
  LK_TRYV(store->open_log(recovered.has_value()));
  return store;
}

Store::Store(std::unique_ptr<StoreState> state) : state_(std::move(state)) {}
Store::~Store() = default;

Result<void> Store::close() {
  const auto committed = commit();
  state_->read_only = true;
  return committed;
}

StoreFacts Store::facts() const {
  StoreFacts facts = state_->fixed;
  Lock lock(state_->commit_mutex);
  facts.generation = state_->durable;
  facts.features_incompat = state_->features_incompat;
  return facts;
}

bool Store::has_feature(u64 bits) const { return (state_->features_incompat & bits) == bits; }

Device& Store::device() const { return state_->device; }

BorrowedIo Store::borrow_io(u64 bytes) const {
  BorrowedIo borrowed;
  const bool is_small = bytes <= kSmallRingBytes;
  borrowed.pool_ = is_small ? &state_->small_rings : &state_->rings;
  borrowed.io_ = is_small
                     ? state_->small_rings.take_or_make(
                           kSmallRingsMax, [&] { return state_->device.make_io(small_ring()); })
                     : state_->rings.take();
  return borrowed;
}

ReadAround& Store::read_around() const { return *state_->read_around; }

BorrowedIo::BorrowedIo(BorrowedIo&& other) noexcept
    : pool_(other.pool_), io_(std::exchange(other.io_, nullptr)) {}

BorrowedIo::~BorrowedIo() {
  if (io_ != nullptr) pool_->give_back(io_);
}

}  // namespace latchkey::engine
