// Reservations and allocation: a promise is made before a page is dirtied or a transaction begins,
// so that nothing runs out of space later (design D7).

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/no_wait.h"
#include "engine/store_state.h"

namespace latchkey::engine {

// What two commits may need at most: a commit writes a node at most once, in two places, and
// begin() keeps the nodes of one transaction below a bound.
u64 StoreState::fixed_reserve() const {
  const u64 nodes = std::min(2 * node_count.load(std::memory_order_relaxed) + 64, dirty_nodes_max);
  return 2 * nodes * 2 * node_blocks();
}

u64 Store::tree_blocks_for(u32 records, u64 record_bytes) const {
  // Growth, not copies: copies are what the fixed reserve is for. Nodes are at least a third full
  // on the average, and lie in two places.
  const u64 bytes = record_bytes + u64{records} * sizeof(LeafSlot);
  return (bytes * 3 * 2 + kBlockBytes - 1) / kBlockBytes;
}

namespace {

u64 cost_of_promise(u64 blocks) {
  const u64 records = blocks * (kRecordBytesABlock + kRecordsABlock * sizeof(LeafSlot));
  return blocks + (records * 3 * 2 + kBlockBytes - 1) / kBlockBytes;
}

}  // namespace

u64 StoreState::data_kept() const { return data_reserved + cost_of_promise(promised - drawn); }

// What nodes may need lies in the pool or comes back to it; the rest of what is free is for data.
// `floor`: what the pool keeps beyond the reservations.
bool StoreState::has_space(u64 data_blocks, u64 drawing, u64 tree_blocks, u64 floor,
                           bool use_reserve) {
  if (drawing > promised - drawn) return false;
  const u64 nodes = floor + tree_reserved + tree_blocks;
  const u64 data = data_reserved + data_blocks + cost_of_promise(promised - drawn - drawing);
  if (space->blocks_free() < data) pool->trim(nodes);
  const bool filled = pool->fill(nodes, data).has_value();
  if (!filled && pool->blocks() + pool->blocks_coming() < nodes) return false;
  // For copies of shared nodes beyond those of one operation it is enough that blocks are free.
  const u64 copies = use_reserve ? 0 : shared_reserve() - shared_floor();
  const u64 beyond = pool->blocks() - std::min(pool->blocks(), nodes);
  return space->blocks_free() >= data && space->blocks_free() + beyond >= data + copies;
}

// Where a bitmap could not be read, or does not verify, its region is out of use: that is told if
// its blocks would have done.
Error StoreState::why_full(u64 blocks) {
  Lock lock(space_mutex);
  if (space->blocks_lost() > blocks) return space->damage().back().error;
  return {Errc::no_space, "the store is full"};
}

Result<Reservation> Store::reserve(const SpaceNeed& need, bool use_reserve) {
  check_may_wait();
  if (auto error = state_->failure()) return std::unexpected(*error);
  if (state_->read_only) return fail(Errc::read_only, "the store is open read-only");
  LK_CHECK(need.promised_blocks <= need.data_blocks);
  const u64 tree = tree_blocks_for(need.records, need.record_bytes);
  const bool keeps = need.promised_blocks != 0 && need.promised_blocks == need.data_blocks;
  for (int attempt = 0;; ++attempt) {
    {
      const u64 fixed = state_->fixed_reserve();
      const u64 floor = use_reserve || keeps ? fixed / 4 : fixed;
      Reservation reservation;  // whatever ends it gives back what was counted; it takes the lock
      reservation.store_ = this;
      Lock lock(state_->space_mutex);
      reservation.leaves_ = need.leaves != 0 ? need.leaves : need.records;
      reservation.clones_ = need.clone ? 1 : 0;
      state_->leaves_reserved += reservation.leaves_;
      state_->clones_reserved += reservation.clones_;
      // What changes no record copies no shared node: the end of a clone is always possible.
      const bool frees_only = use_reserve && reservation.leaves_ == 0;
      const u64 shared = frees_only ? 0 : state_->shared_floor();
      if (state_->has_space(need.data_blocks, need.promised_blocks, tree, floor + shared,
                            use_reserve || keeps)) {
        state_->data_reserved += need.data_blocks;
        state_->tree_reserved += tree;
        state_->drawn += need.promised_blocks;
        reservation.data_blocks_ = need.data_blocks;
        reservation.tree_blocks_ = tree;
        reservation.drawn_.store_ = this;
        reservation.drawn_.blocks_ = need.promised_blocks;
        return reservation;
      }
    }
    // What was freed in this generation can be had after two commits, as can the log's blocks.
    if (attempt == 2) return std::unexpected(state_->why_full(need.data_blocks + tree));
    {
      Lock lock(state_->space_mutex);
      state_->log.squeezed = true;
    }
    LK_TRYV(state_->commit_through(running_transaction(), true));
  }
}

BlockRun Store::allocate(Reservation& reservation, u32 blocks_wanted) {
  LK_CHECK(reservation.store_ == this && blocks_wanted != 0);
  const u64 wanted = std::min<u64>(blocks_wanted, reservation.data_blocks_);
  if (wanted == 0) return {};
  Lock lock(state_->space_mutex);
  auto run = state_->space->allocate({static_cast<u32>(wanted), 1, kNowhere});
  if (!run) return {};  // only where bitmaps are damaged
  reservation.data_blocks_ -= run->count;
  state_->data_reserved -= run->count;
  return *run;
}

void Store::cancel(BlockRun run, Reservation* back) {
  if (run.count == 0) return;
  Lock lock(state_->space_mutex);
  state_->space->cancel(run);
  if (back == nullptr) return;
  LK_CHECK(back->store_ == nullptr || back->store_ == this);
  back->store_ = this;
  back->data_blocks_ += run.count;
  state_->data_reserved += run.count;
}

SpaceFacts Store::space() const {
  const u64 fixed = state_->fixed_reserve();
  Lock lock(state_->space_mutex);
  const FreeSpace& space = *state_->space;
  SpaceFacts facts;
  facts.blocks_total = space.blocks_total();
  facts.blocks_used = space.blocks_used();
  facts.blocks_pinned = space.blocks_pinned();
  facts.blocks_reserved = state_->data_reserved + state_->tree_reserved;
  facts.blocks_promised = state_->promised;
  facts.blocks_log = state_->log.blocks;
  facts.blocks_discarded = state_->blocks_discarded.load(std::memory_order_relaxed);
  const u64 node = state_->node_blocks();  // what is kept for nodes is kept as whole ones
  const u64 nodes = state_->tree_reserved + fixed + state_->shared_reserve();
  const u64 promised = state_->data_kept() + (nodes + node - 1) / node * node;
  const u64 free =
      space.blocks_free() + space.blocks_pinned() + state_->pool->blocks() + facts.blocks_log;
  facts.blocks_available = free > promised ? free - promised : 0;
  // Where what is free lies in pieces that are too small for nodes, there is nothing to promise.
  const bool settled = facts.blocks_pinned == 0 && !state_->read_only;
  if (settled && !state_->has_space(0, 0, 0, fixed + state_->shared_floor(), false))
    facts.blocks_available = 0;
  return facts;
}

// Region by region: others allocate in between.
FreeRuns Store::free_runs() const {
  FreeRuns runs;
  for (u32 index = 0;; ++index) {
    Lock lock(state_->space_mutex);
    if (index >= state_->space->regions()) return runs;
    (void)state_->space->count_free_runs(index, runs);
  }
}

Reservation::Reservation(Reservation&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)),
      data_blocks_(std::exchange(other.data_blocks_, 0)),
      tree_blocks_(std::exchange(other.tree_blocks_, 0)),
      leaves_(std::exchange(other.leaves_, 0)),
      clones_(std::exchange(other.clones_, 0)),
      drawn_(std::move(other.drawn_)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Reservation old = std::move(*this);
    store_ = std::exchange(other.store_, nullptr);
    data_blocks_ = std::exchange(other.data_blocks_, 0);
    tree_blocks_ = std::exchange(other.tree_blocks_, 0);
    leaves_ = std::exchange(other.leaves_, 0);
    clones_ = std::exchange(other.clones_, 0);
    drawn_ = std::move(other.drawn_);
  }
  return *this;
}

Reservation::~Reservation() {
  if (store_ == nullptr || (empty() && leaves_ == 0)) return;
  Lock lock(store_->state_->space_mutex);
  store_->state_->drawn -= std::exchange(drawn_.blocks_, 0);
  store_->state_->data_reserved -= data_blocks_;
  store_->state_->tree_reserved -= tree_blocks_;
  store_->state_->leaves_reserved -= leaves_;
  store_->state_->clones_reserved -= clones_;
}

void Reservation::merge(Reservation&& other) {
  if (store_ == nullptr) store_ = other.store_;
  LK_CHECK(other.store_ == nullptr || other.store_ == store_);
  data_blocks_ += std::exchange(other.data_blocks_, 0);
  tree_blocks_ += std::exchange(other.tree_blocks_, 0);
  leaves_ += std::exchange(other.leaves_, 0);
  clones_ += std::exchange(other.clones_, 0);
  drawn_.merge(std::move(other.drawn_));
}

Reservation Reservation::take(u64 data_blocks, u64 tree_blocks) {
  Reservation part;
  part.store_ = store_;
  part.data_blocks_ = std::min(data_blocks, data_blocks_);
  part.tree_blocks_ = std::min(tree_blocks, tree_blocks_);
  if (tree_blocks_ != 0)  // its share, rounded up, so that the last part takes all
    part.leaves_ = (leaves_ * part.tree_blocks_ + tree_blocks_ - 1) / tree_blocks_;
  leaves_ -= part.leaves_;
  data_blocks_ -= part.data_blocks_;
  tree_blocks_ -= part.tree_blocks_;
  return part;
}

u64 Store::promise_cost(u64 blocks) const { return cost_of_promise(blocks); }

u64 Store::promised_blocks() const {
  Lock lock(state_->space_mutex);
  return state_->promised;
}

DrawnPromise::DrawnPromise(DrawnPromise&& other) noexcept
    : store_(other.store_), blocks_(std::exchange(other.blocks_, 0)) {}

DrawnPromise& DrawnPromise::operator=(DrawnPromise&& other) noexcept {
  if (this != &other) {
    const DrawnPromise old = std::move(*this);
    store_ = other.store_;
    blocks_ = std::exchange(other.blocks_, 0);
  }
  return *this;
}

DrawnPromise::~DrawnPromise() {
  if (blocks_ == 0) return;
  Lock lock(store_->state_->space_mutex);
  store_->state_->drawn -= blocks_;
}

void DrawnPromise::merge(DrawnPromise&& other) {
  if (store_ == nullptr) store_ = other.store_;
  LK_CHECK(other.blocks_ == 0 || other.store_ == store_);
  blocks_ += std::exchange(other.blocks_, 0);
}

DrawnPromise DrawnPromise::take(u64 blocks) {
  DrawnPromise part;
  part.store_ = store_;
  part.blocks_ = std::min(blocks, blocks_);
  blocks_ -= part.blocks_;
  return part;
}

ReadPin::ReadPin(ReadPin&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)), transaction_(other.transaction_) {}

ReadPin& ReadPin::operator=(ReadPin&& other) noexcept {
  if (this != &other) {
    ReadPin old = std::move(*this);
    store_ = std::exchange(other.store_, nullptr);
    transaction_ = other.transaction_;
  }
  return *this;
}

ReadPin::~ReadPin() {
  if (store_ == nullptr) return;
  Lock lock(store_->state_->space_mutex);
  auto& pins = store_->state_->pins;
  pins.erase(pins.find(transaction_));
}

ReadPin Store::pin() const {
  ReadPin pin;
  Lock lock(state_->space_mutex);
  pin.transaction_ = running_transaction();
  state_->pins.insert(pin.transaction_);
  pin.store_ = const_cast<Store*>(this);
  return pin;
}

}  // namespace latchkey::engine
