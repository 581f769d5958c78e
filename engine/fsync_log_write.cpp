// The log of the durable generation: where it lies, its blocks, who waits for them; and what an
// open does with one that it finds.

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/no_wait.h"
#include "engine/log_turn.h"
#include "engine/store_state.h"

namespace latchkey::engine {

namespace {

// The block to write and the two that it names.
constexpr std::size_t kReadyMin = 3;
// The log leaves this part of the store free, and what is promised.
constexpr u64 kPartLeftFree = 32;
constexpr u64 kRunBlocksMin = 4, kRunBlocksMax = 64;
// That the replay of a record changes.
constexpr u64 kLeavesAnInsert = 2, kLeavesACreate = 8;

}  // namespace

// --- writing ------------------------------------------------------------------------------------

bool StoreState::log_has_room() const {
  return log.written.size() < log.blocks_max && log.ready.size() >= kReadyMin;
}

// They lie together, apart from data, whose writers want long runs.
void StoreState::find_log_places() {
  if (log.blocks_max == 0) return;
  const u64 total = space->blocks_total();
  const u64 wanted = std::clamp(total / 1024, kRunBlocksMin, kRunBlocksMax);
  while (log.ready.size() < kReadyMin) {
    if (space->blocks_free() < data_kept() + total / kPartLeftFree + wanted) return;
    const u64 hint = log.ready.empty() ? total / 2 : log.ready.back();
    const auto run = space->allocate({static_cast<u32>(wanted), 1, hint});
    if (!run) return;
    for (u64 block = run->block; block < run->end(); ++block) log.ready.push_back(block);
    log.blocks += run->count;
  }
}

// What the superblock says that is about to be written. Places that no block was written to serve
// again: what lies there is of no log, or of an older generation.
std::array<u64, 2> StoreState::next_log_head() {
  if (!log.squeezed) find_log_places();
  if (log.ready.size() >= kReadyMin && !log.squeezed) return {log.ready[0], log.ready[1]};
  for (const u64 place : log.ready) space->cancel({place, 1});
  log.blocks -= log.ready.size();
  log.ready.clear();
  log.squeezed = space->blocks_free() < data_kept() + 2 * space->blocks_total() / kPartLeftFree;
  return {};
}

// The generation is durable, its log empty. The one before it is kept for one more: an open that
// finds this generation's superblocks damaged goes back to it.
void StoreState::begin_log() {
  Lock lock(space_mutex);
  for (const u64 place : log.before) space->cancel({place, 1});
  log.blocks -= log.before.size();
  log.before = std::exchange(log.written, {});
  log.last = {};
  log.sequence = 0;
}

// The log's next block, in its buffer. Answers where it will lie. By who holds the commit.
u64 StoreState::make_log_block(const LogChanges::Body& body) {
  LK_CHECK(body.records != 0 && log_has_room());
  LogBlock block;
  {
    Lock lock(commit_mutex);
    block.generation = superblock.generation;
    block.root = superblock.root.checksum;
  }
  block.sequence = log.sequence;
  block.next = {log.ready[1], log.ready[2]};
  block.previous = log.last;
  log.last = encode_log_block(fixed.volume_id, block, body.records, body.bytes, log.buffer.bytes());
  return log.ready.front();
}

// It is durable.
void StoreState::log_block_written() {
  ++log.sequence;
  log.written.push_back(log.ready.front());
  log.ready.pop_front();
  log_blocks.fetch_add(1, std::memory_order_relaxed);
  Lock lock(space_mutex);
  find_log_places();
}

// One block, one flush; the data that it tells of was written before and is flushed along. Where
// the block cannot be written a commit may do.
Result<void> StoreState::write_log(ObjectId id) {
  const LogChanges::Body body = log_changes.take(id);
  if (body.records == 0) return {};  // it was changed this moment: who asks again is told
  const u64 place = make_log_block(body);
  if (!write_sync(*commit_io, place * kBlockBytes, log.buffer.bytes())) {
    log_changes.log_broken();
    return {};
  }
  LK_TRYV(flush_sync(*commit_io));
  log_block_written();
  return {};
}

// While nobody writes, all that was taken for the log is durable, and the running transaction is
// the one after the durable one. So a record enters the log of the generation that it changes: what
// ended while a commit was under way waits for that.
Result<void> StoreState::sync_object(ObjectId id) {
  commit_mutex.lock();
  const u64 through = running.load(std::memory_order_acquire);
  const u64 records = log_changes.count(id);
  bool must_commit = false;
  while (!failed && durable < through && !must_commit) {
    if (committing) {
      (void)or_no_memory([&] { log_changes.want(id); });  // else it goes with one of its own
      commit_done.wait(commit_mutex);
      continue;
    }
    const LogChanges::Needs needs = log_changes.needs(id, records);
    if (needs == LogChanges::Needs::nothing) break;
    must_commit = needs == LogChanges::Needs::commit || !log_has_room();
    if (must_commit) break;
    committing = true;
    commit_mutex.unlock();
    const auto written = or_no_memory([&] { return write_log(id); });
    commit_mutex.lock();
    end_commit(written);
  }
  const std::optional<Error> error = failed;
  commit_mutex.unlock();
  if (error) return std::unexpected(*error);
  if (must_commit) return commit_through(through, false);
  return {};
}

Result<void> Store::sync_object(TreeId tree, u64 object) {
  check_may_wait();
  if (auto error = state_->failure()) return std::unexpected(*error);
  if (state_->read_only) return {};
  return state_->sync_object({tree, object});
}

// --- beside the data ----------------------------------------------------------------------------

std::optional<LogTurn> LogTurn::take(Store& store, const LogRecord& record) {
  StoreState& state = *store.state_;
  {
    Lock lock(state.commit_mutex);
    if (state.failed || state.committing || !state.log_has_room()) return {};
    state.committing = true;
  }
  const auto place = or_no_memory([&]() -> std::optional<u64> {
    const auto body = state.log_changes.take_with(record);
    if (!body) return {};
    return state.make_log_block(*body);
  });
  if (!place || !*place) {
    if (!place) state.log_changes.log_broken();  // what was taken is not in it
    Lock lock(state.commit_mutex);
    state.end_commit({});
    return {};
  }
  std::optional<LogTurn> turn(LogTurn(state, state.running.load(std::memory_order_acquire)));
  turn->op_.kind = OpKind::write;
  turn->op_.offset = **place * kBlockBytes;
  turn->op_.data = state.log.buffer.bytes();
  return turn;
}

LogTurn::LogTurn(LogTurn&& other) noexcept
    : state_(std::exchange(other.state_, nullptr)),
      generation_(other.generation_),
      op_(other.op_) {}

LogTurn::~LogTurn() { LK_CHECK_MSG(state_ == nullptr, "a turn of the fsync log has no end"); }

Result<u64> LogTurn::end(Io& io, bool landed) {
  StoreState& state = *std::exchange(state_, nullptr);
  Result<void> written;
  landed = landed && result_of(op_);
  if (landed) {
    written = flush_sync(io);
    if (written) written = or_no_memory([&] { state.log_block_written(); });
  } else {
    state.log_changes.log_broken();
  }
  {
    Lock lock(state.commit_mutex);
    state.end_commit(written);
  }
  if (!written) return std::unexpected(written.error());
  return landed ? generation_ : 0;
}

u64 Store::log_blocks() const { return state_->log_blocks.load(std::memory_order_relaxed); }
std::vector<LogRecord> Store::logged() const { return state_->log_found.records; }

// --- at the open --------------------------------------------------------------------------------

Result<void> StoreState::find_log() {
  Superblock of;
  {
    Lock lock(commit_mutex);
    of = superblock;
  }
  auto found =
      read_log(of, [this](u64 block, MutableBytes into) { return read_blocks(block, into); });
  const bool lenient = read_only || options.repair;
  if (!found && (!lenient || found.error().code == Errc::no_memory))
    return std::unexpected(found.error());
  if (found) log_found = std::move(*found);
  fixed.log_damaged = !found || log_found.damaged;
  if (fixed.log_damaged && !lenient)
    return fail(Errc::damaged, "a block of the fsync log is damaged: synced writes would be lost",
                log_found.next[0] * kBlockBytes);
  return {};
}

// Before anybody can allocate: all of it is free in the committed generation.
Result<void> StoreState::claim_log() {
  for (const LogRecord& record : log_found.records)
    for (const ExtentRecord& extent : record.extents) LK_TRYV(space->claim(extent.run));
  for (const u64 place : log_found.places) {
    LK_TRYV(space->claim({place, 1}));
    log.written.push_back(place);
    ++log.blocks;
  }
  for (const u64 place : log_found.next) {
    // Not worth an error: nothing was acknowledged there, and a commit finds others.
    if (place == 0 || log.blocks_max == 0 || !space->claim({place, 1})) break;
    log.ready.push_back(place);
    ++log.blocks;
  }
  return {};
}

// All records in one transaction, which nobody commits half of.
Result<void> Store::replay_log(const std::function<Result<void>(Transaction&)>& first) {
  StoreState& state = *state_;
  const u64 records = state.log_found.records.size();
  {
    const u64 fixed = state.fixed_reserve();
    Lock lock(state.space_mutex);
    if (const auto claimed = state.claim_log(); !claimed) {
      state.fixed.log_damaged = true;
      if (state.read_only) return {};
      return claimed;
    }
    // As before the transactions that these records come from. Not enough: it will say so.
    u64 leaves = 0;
    for (const LogRecord& record : state.log_found.records)
      leaves += record.kind == LogKind::create ? kLeavesACreate : kLeavesAnInsert;
    const u64 shared = state.shared_copies(leaves) + state.shared_growth(leaves);
    if (!state.read_only && records != 0)
      (void)state.pool->fill(fixed + std::max(shared, state.shared_floor()), 0);
  }
  if (records != 0 || first) {
    Transaction transaction(*this, Reservation());
    if (first) LK_TRYV(first(transaction));
    for (const LogRecord& record : state.log_found.records)
      LK_TRYV(state.options.replay(transaction, record));
  }
  state.fixed.log_replayed = records;
  const bool ends = records != 0 || first || state.log_found.unfinished || state.fixed.log_damaged;
  state.log_found = {};
  if (!state.read_only && ends)
    return state.commit_through(state.running.load(std::memory_order_acquire), true);
  Lock lock(state.space_mutex);
  if (!state.read_only && !state.log.ready.empty()) state.find_log_places();
  return {};
}

// `space_known`: what is free can be told. A repair comes back to it when that is so.
Result<void> Store::open_log(bool space_known) {
  StoreState& state = *state_;
  if (state.options.previous_generation) return {};
  LK_TRYV(state.find_log());
  const bool waits = !state.log_found.records.empty();
  if (waits && !state.options.replay) {
    if (state.read_only) return {};
    return fail(Errc::unsupported, "the store has an fsync log, which must be replayed first");
  }
  if (state.options.repair || !space_known || (state.read_only && !waits)) return {};
  return replay_log();
}

}  // namespace latchkey::engine
