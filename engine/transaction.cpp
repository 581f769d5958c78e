// View and Transaction: the forest through its lock.

#include <algorithm>
#include <exception>
#include <utility>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/no_wait.h"
#include "engine/store_state.h"

namespace latchkey::engine {

View::View(Store& store, bool exclusive) LK_NO_ANALYSIS : store_(&store), exclusive_(exclusive) {
  if (exclusive)
    store.state_->forest_lock.lock();
  else
    store.state_->forest_lock.lock_shared();
  begin_no_wait();
}

View::View(View&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)), exclusive_(other.exclusive_) {}

View::~View() LK_NO_ANALYSIS {
  if (store_ == nullptr) return;
  if (exclusive_)
    store_->state_->forest_lock.unlock();
  else
    store_->state_->forest_lock.unlock_shared();
  end_no_wait();
}

namespace {

Forest::Visit keep(std::optional<Record>& record) {
  return [&record](const Key& key, Bytes value) {
    record = Record{key, {value.begin(), value.end()}};
    return false;
  };
}

constexpr Key kLastKey{~u64{0}, 255, ~u64{0}};

}  // namespace

Result<std::optional<Record>> View::get(TreeId tree, Key key) const {
  std::optional<Record> record;
  LK_TRYV(store_->state_->forest->scan(tree, key, key, keep(record)));
  return record;
}

Result<std::optional<Record>> View::at_or_after(TreeId tree, Key key) const {
  std::optional<Record> record;
  LK_TRYV(store_->state_->forest->scan(tree, key, kLastKey, keep(record)));
  return record;
}

Result<std::optional<Record>> View::at_or_before(TreeId tree, Key key) const {
  std::optional<Record> record;
  LK_TRYV(store_->state_->forest->visit_before(tree, key, keep(record)));
  return record;
}

Result<void> View::scan(TreeId tree, Key first, Key last,
                        const std::function<bool(const Key&, Bytes)>& fn) const {
  return store_->state_->forest->scan(tree, first, last, fn);
}

Result<ExtentRecord> View::extent_at(u64 block, u32 blocks_max) const {
  return find_extent(*store_->state_->forest, block, blocks_max);
}

Result<void> View::scan_distinct(const std::function<bool(TreeId, const Key&, Bytes)>& fn) const {
  return store_->state_->forest->scan_distinct(fn);
}

Result<bool> View::tree_exists(TreeId tree) const {
  const auto root = store_->state_->forest->root(tree);
  if (root) return true;
  if (root.error().code == Errc::not_found) return false;
  return std::unexpected(root.error());
}

bool View::shares_nodes() const { return store_->state_->forest->sharing(); }

Transaction::Transaction(Store& store, Reservation&& tree_space)
    : View(store, true),
      tree_space_(std::move(tree_space)),
      exceptions_(std::uncaught_exceptions()) {}

Transaction::~Transaction() {
  if (store_ == nullptr) return;
  const bool cut_off = changed_ && std::uncaught_exceptions() > exceptions_;
  const auto noted = or_no_memory([this] { note_changes(); });
  if (cut_off || !noted)
    store_->state_->set_failure({Errc::no_memory, "no memory in the middle of a change"});
}

StoreState& Transaction::change() {
  changed_ = true;
  return *store_->state_;
}

u64 Transaction::id() const { return store_->state_->forest->running(); }

namespace {

// Half an operation cannot be taken back: the store stops (E5).
template <class T>
Result<T> sticky(StoreState& state, Result<T> result) {
  if (!result && result.error().code != Errc::exists) state.set_failure(result.error());
  return result;
}

}  // namespace

// Where all changes of records pass: nobody has to remember to say so (fsync_log.h, L1).
void Transaction::touch(TreeId tree, const Key& key) {
  if (!is_subvolume(tree)) return;
  const IsName& is_name = store_->state_->options.is_name;
  named_ = named_ || !is_name || is_name(key);
  if (touched_.empty() || !touched_.back().is(tree, key.object))
    touched_.push_back({tree, key.object});
  ++touched_.back().changes;
}

void Transaction::touch_tree(TreeId tree) {
  if (!is_subvolume(tree)) return;
  undeclared_ = true;
  store_->state_->log_changes.changed_tree(tree);
}

void Transaction::declare_insert(TreeId tree, u64 object, std::vector<std::byte> note, u64 blocks) {
  inserted_ = {tree, object, {}, std::move(note)};
  blocks_declared_ = blocks;
}

void Transaction::declare_create(const Create& create, std::vector<std::byte> note) {
  create_ = create;
  create_note_ = std::move(note);
}

// It did what it has declared and nothing else.
bool Transaction::is_create() const {
  if (!create_ || undeclared_ || blocks_declared_ != 0 || !inserted_.extents.empty()) return false;
  u32 changes = 0;
  for (const Touched& touched : touched_) {
    if (touched.is(create_->tree, create_->counts)) continue;
    const bool covered =
        touched.is(create_->tree, create_->object) || touched.is(create_->tree, create_->directory);
    if (!covered) return false;
    changes += touched.changes;
  }
  return changes == create_->changes;
}

void Transaction::note_changes() {
  LogChanges& changes = store_->state_->log_changes;
  if (is_create()) {
    const LogRecord record{create_->tree, create_->object, {}, create_note_, LogKind::create};
    return changes.created(record, create_->directory);
  }
  if (named_) changes.names_changed();
  u64 blocks = 0;
  for (const ExtentRecord& extent : inserted_.extents) blocks += extent.run.count;
  const bool whole = !undeclared_ && blocks_declared_ != 0 && blocks == blocks_declared_;
  for (const Touched& touched : touched_)
    if (!whole || !touched.is(inserted_.tree, inserted_.object))
      changes.changed({touched.tree, touched.object});
  if (whole) changes.inserted(inserted_, logged_ == id());
}

Result<void> Transaction::put(TreeId tree, Key key, Bytes value) {
  StoreState& state = change();
  touch(tree, key);
  return sticky(state, state.forest->put(tree, key, value));
}

Result<bool> Transaction::erase(TreeId tree, Key key) {
  StoreState& state = change();
  touch(tree, key);
  return sticky(state, state.forest->erase(tree, key));
}

void Transaction::need_feature(u64 bit) { change().features_incompat |= bit; }

Result<void> Transaction::create_tree(TreeId tree) {
  StoreState& state = change();
  touch_tree(tree);
  return sticky(state, state.forest->create_tree(tree));
}

Result<void> Transaction::clone_tree(TreeId from, TreeId to) {
  LK_TRY(const bool there, tree_exists(from));
  if (!there) return fail(Errc::not_found, "there is no such tree");
  StoreState& state = change();
  touch_tree(from);
  touch_tree(to);
  LK_TRYV(sticky(state, state.forest->clone_tree(from, to)));
  state.note_forest();
  return {};
}

Result<bool> Transaction::drop_tree_step(TreeId tree, u32 nodes_max) {
  LK_TRY(const bool there, tree_exists(tree));
  if (!there) return fail(Errc::not_found, "there is no such tree");
  StoreState& state = change();
  touch_tree(tree);
  LK_TRY(const u64 promised, sticky(state, state.forest->promised_blocks(tree)));
  DrawnPromise none;
  if (promised != 0) LK_TRYV(end_promise(tree, promised, none));
  std::vector<BlockRun> freed;
  LK_TRY(const bool gone, sticky(state, state.forest->drop_tree_step(tree, nodes_max, freed)));
  LK_TRYV(free_blocks(freed));
  if (gone) state.note_forest();
  return gone;
}

Result<void> Transaction::insert_extent(BlockRun run, u64 first_unit, Bytes context,
                                        std::span<const u32> checksums) {
  StoreState& state = change();
  LK_CHECK(checksums.size() == run.count && run.count != 0);
  ExtentRecord record;
  record.run = run;
  record.references = 1;
  record.first_unit = first_unit;
  record.context.assign(context.begin(), context.end());
  record.checksums.assign(checksums.begin(), checksums.end());
  {
    Lock lock(state.space_mutex);
    state.space->mark_used(run);
  }
  state.read_around->forget(run);
  LK_TRYV(sticky(state, engine::insert_extent(*state.forest, record)));
  inserted_.extents.push_back(std::move(record));
  return {};
}

Result<void> Transaction::share_extent(BlockRun run) {
  std::vector<BlockRun> freed;
  StoreState& state = change();
  return sticky(state, count_references(*state.forest, run, +1, freed));
}

Result<void> Transaction::release_extent(BlockRun run) {
  StoreState& state = change();
  std::vector<BlockRun> freed;
  LK_TRYV(sticky(state, count_references(*state.forest, run, -1, freed)));
  return free_blocks(freed);
}

Result<void> Transaction::free_blocks(const std::vector<BlockRun>& freed) {
  StoreState& state = *store_->state_;
  Lock lock(state.space_mutex);
  for (const BlockRun& part : freed) {
    auto released = state.space->release(part, state.forest->running());
    // The record was right, the bitmap is not: a leak or worse, but no reason to stop deleting.
    if (!released && released.error().code != Errc::damaged)
      return std::unexpected(released.error());
  }
  return {};
}

Result<void> Transaction::promise(TreeId tree, u64 blocks, Reservation& space) {
  StoreState& state = change();
  undeclared_ = true;
  LK_CHECK(space.store_ == store_);
  LK_TRY(const u64 before, sticky(state, state.forest->promised_blocks(tree)));
  LK_TRYV(sticky(state, state.forest->set_promised_blocks(tree, before + blocks)));
  Lock lock(state.space_mutex);
  // What is kept grows by this much: the parts of a promise cost together what it costs whole, but
  // for a block of rounding each time that somebody draws in between.
  const u64 kept = state.data_kept();
  state.promised += blocks;
  const u64 cost = std::min(state.data_kept() - kept, space.data_blocks_);
  space.data_blocks_ -= cost;
  state.data_reserved -= cost;
  return {};
}

Result<void> Transaction::end_promise(TreeId tree, u64 blocks, DrawnPromise& drawn) {
  StoreState& state = change();
  undeclared_ = true;
  LK_CHECK(drawn.blocks_ <= blocks);
  LK_TRY(const u64 before, sticky(state, state.forest->promised_blocks(tree)));
  Result<void> counted;
  {
    Lock lock(state.space_mutex);
    if (before < blocks || state.promised - state.drawn < blocks - drawn.blocks_) {
      counted = fail(Errc::malformed, "there are more promises than are counted");
    } else {
      state.promised -= blocks;
      state.drawn -= std::exchange(drawn.blocks_, 0);
    }
  }
  LK_TRYV(sticky(state, counted));
  return sticky(state, state.forest->set_promised_blocks(tree, before - blocks));
}

Result<void> Transaction::recount_promises(TreeId tree, u64 blocks) {
  StoreState& state = change();
  undeclared_ = true;
  LK_TRY(const u64 before, sticky(state, state.forest->promised_blocks(tree)));
  LK_TRYV(sticky(state, state.forest->set_promised_blocks(tree, blocks)));
  Lock lock(state.space_mutex);
  state.promised = state.promised - std::min(before, state.promised) + blocks;
  return {};
}

View Store::view() const { return View(const_cast<Store&>(*this), false); }

bool Store::wanted() const { return state_->forest_lock.wanted(); }

Result<Transaction> Store::begin(Reservation&& space) {
  check_may_wait();
  StoreState& state = *state_;
  if (state.read_only) return fail(Errc::read_only, "the store is open read-only");
  for (int commits = 0;;) {
    if (auto error = state.failure()) return std::unexpected(*error);
    Transaction transaction(*this, Reservation());
    const bool small = state.forest->dirty_nodes() * 2 <= state.dirty_nodes_max;
    const bool room = small && state.may_begin(space.leaves_, space.tree_blocks());
    if (room) {
      transaction.tree_space_ = std::move(space);
      return transaction;
    }
    const u64 running = transaction.id();
    {
      const Transaction ended = std::move(transaction);
    }
    // What was freed in this generation can be had after two commits.
    if (small && ++commits > 3) return fail(Errc::no_space, "no room for copies of shared nodes");
    LK_TRYV(state.commit_through(running, small));
  }
}

}  // namespace latchkey::engine
