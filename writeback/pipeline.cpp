#include "writeback/pipeline.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "base/no_memory.h"
#include "base/secret_work.h"
#include "engine/log_turn.h"
#include "extent/context.h"
#include "extent/seal.h"

namespace latchkey::writeback {

namespace {

constexpr u32 kWriteBlocksMax = 128;
constexpr u64 kPageBytes = extent::kBlockBytes;

extent::ContextDisk context_of(const DirtyFile& file, const PlannedExtent& extent) {
  return extent::encode({crypto::Mode::aes_256_xts, file.key_id(), extent.nonce});
}
// A clear extent has none.
Bytes bytes_of(const DirtyFile& file, const extent::ContextDisk& context) {
  return file.lease() == nullptr ? Bytes{} : std::as_bytes(std::span(&context, 1));
}

}  // namespace

// The pages of one file in a batch.
struct Pipeline::Part {
  FileFlush* flush = nullptr;
  PageRange pages;
  engine::Reservation space;  // tree space, and data blocks that it gets back
  bool sealed = false;
  bool ended = false;  // given up: the file has its pages again
};

// Pages on their way: sealed into a half of the lane's buffer, written, inserted.
struct Pipeline::Batch {
  u32 half = 0;
  std::vector<Part> parts;
  std::vector<DirtyPage> pages;
  std::vector<const std::byte*> data;  // of each page
  engine::Reservation space;           // for blocks that are still to be had
  std::vector<engine::BlockRun> runs;
  std::vector<PlannedExtent> extents;
  std::vector<u32> checksums;
  std::vector<PlannedWrite> writes;
  std::vector<engine::Op> ops;  // of those writes
  u32 ops_left = 0;             // and the log's
  bool synced = false;          // all that is dirty of a file whose fsync somebody waits for
  std::optional<engine::LogTurn> turn;

  void clear() {
    parts.clear();
    pages.clear();
    runs.clear();
    extents.clear();
  }
  // What is filled while pages are in flight of which the batch does not know yet.
  void reserve() {
    parts.reserve(kBatchPages);
    pages.reserve(kBatchPages);
    runs.reserve(kBatchPages);
  }

  std::span<const DirtyPage> pages_of(std::size_t part) const {
    return std::span(pages).subspan(parts[part].pages.first, parts[part].pages.count);
  }
  std::span<const std::byte* const> data_of(PageRange range) const {
    return std::span(data).subspan(range.first, range.count);
  }
  std::span<u32> checksums_of(PageRange range) {
    return std::span(checksums).subspan(range.first, range.count);
  }
  // A plan goes from part to part.
  std::span<const PlannedExtent> extents_of(std::size_t part) const {
    return std::ranges::equal_range(extents, part, {}, &PlannedExtent::part);
  }
  std::span<PlannedExtent> extents_of(std::size_t part) {
    return std::ranges::equal_range(extents, part, {}, &PlannedExtent::part);
  }
  // That part and those behind it; a part under a key of its file's own is alone.
  std::vector<std::size_t> parts_under_key_of(std::size_t part) const {
    if (parts[part].flush->file->own_keys() != nullptr) return {part};
    const keymgr::Lease* lease = parts[part].flush->file->lease();
    std::vector<std::size_t> found;
    for (std::size_t i = part; i < parts.size(); ++i) {
      if (parts[i].flush->file->own_keys() != nullptr) continue;
      const keymgr::Lease* other = parts[i].flush->file->lease();
      if (lease == other || (lease != nullptr && other != nullptr && lease->same_key(*other)))
        found.push_back(i);
    }
    return found;
  }
};

struct Pipeline::Lane {
  std::unique_ptr<engine::Io> io;
  Secret<std::array<crypto::XtsKey, crypto::kExtentKeysAtOnce>> keys;
  std::array<Batch, 2> batches;

  MutableBytes blocks(const Batch& batch, PageRange pages) const {
    return io->buffer().subspan((u64{batch.half} * kBatchPages + pages.first) * kPageBytes,
                                u64{pages.count} * kPageBytes);
  }
};

Pipeline::Pipeline(engine::Store& store, Env& env, const PipelineOptions& options)
    : store_(store), env_(env), options_(options) {}
Pipeline::~Pipeline() = default;

Result<std::unique_ptr<Pipeline>> Pipeline::create(engine::Store& store, Env& env,
                                                   const PipelineOptions& options) {
  std::unique_ptr<Pipeline> pipeline(new Pipeline(store, env, options));
  for (u32 i = 0; i < options.lanes; ++i) {
    auto lane = std::make_unique<Lane>();
    engine::IoOptions io_options;
    io_options.queue_depth = options.queue_depth;
    io_options.buffer_bytes = u64{2} * kBatchPages * kPageBytes;
    io_options.register_buffer = options.register_buffers;
    LK_TRY(lane->io, store.device().make_io(io_options));
    LK_TRY(lane->keys, (Secret<std::array<crypto::XtsKey, crypto::kExtentKeysAtOnce>>::create()));
    lane->batches[1].half = 1;
    for (Batch& batch : lane->batches) batch.reserve();
    pipeline->return_lane(*lane);
    pipeline->lanes_.push_back(std::move(lane));
  }
  return pipeline;
}

Pipeline::Lane& Pipeline::take_lane() {
  Lock lock(mutex_);
  while (idle_.empty()) lane_free_.wait(mutex_);
  Lane* lane = idle_.back();
  idle_.pop_back();
  return *lane;
}

void Pipeline::return_lane(Lane& lane) {
  Lock lock(mutex_);
  idle_.push_back(&lane);
  lane_free_.notify_one();
}

PipelineCounters Pipeline::counters() const {
  return {extents_.load(std::memory_order_relaxed), bytes_.load(std::memory_order_relaxed),
          derivations_.load(std::memory_order_relaxed)};
}

void Pipeline::flush(std::span<FileFlush> files) {
  Lane& lane = take_lane();
  const auto flushed = or_no_memory([&] { flush_through(lane, files); });
  if (!flushed) abandon(lane, files, flushed.error());
  return_lane(lane);
}

void Pipeline::flush_through(Lane& lane, std::span<FileFlush> files) {
  std::size_t next = 0;
  u64 from = 0;
  u32 half = 0;
  for (;; half ^= 1) {
    Batch& batch = lane.batches[half];
    // This half's last batch must have landed before the half is used again; batches land in the
    // order in which they were taken, so that the size in the tree never runs ahead of the data.
    finish(lane, batch);
    const bool first = next == 0 && from == 0;
    fill(files, next, from, batch);
    if (batch.parts.empty()) break;
    batch.synced = first && files.size() == 1 && files[0].synced && next == files.size();
    start(lane, batch);
    if (batch.turn) finish(lane, batch);  // others wait for it
  }
  finish(lane, lane.batches[half ^ 1]);
}

// Memory ran out half way: the files have their pages again, and nothing stays in flight. Allocates
// nothing.
void Pipeline::abandon(Lane& lane, std::span<FileFlush> files, const Error& why) {
  wipe(&*lane.keys, sizeof *lane.keys);
  for (Batch& batch : lane.batches) {
    await_writes(lane, batch);
    if (batch.turn) (void)batch.turn->end(*lane.io, false);  // its block was not submitted
    batch.turn.reset();
    if (batch.extents.empty()) give_back_blocks(batch);
    for (std::size_t i = 0; i < batch.parts.size(); ++i) {
      if (batch.parts[i].ended) continue;
      batch.parts[i].flush->file->sealed(batch.pages_of(i));
      give_up(batch, i, why);
    }
    batch.clear();
  }
  for (FileFlush& file : files)
    if (file.result) file.result = std::unexpected(why);
}

void Pipeline::fill(std::span<FileFlush> files, std::size_t& next, u64& from, Batch& batch) {
  while (next < files.size() && batch.pages.size() < kBatchPages) {
    FileFlush& flush = files[next];
    Part part;
    std::vector<DirtyPage> taken;
    if (flush.result)
      taken =
          flush.file->take(from, kBatchPages - static_cast<u32>(batch.pages.size()), part.space);
    if (taken.empty()) {
      ++next;
      from = 0;
      continue;
    }
    from = taken.back().index + 1;
    part.flush = &flush;
    part.pages = {batch.pages.size(), taken.size()};
    batch.pages.insert(batch.pages.end(), taken.begin(), taken.end());
    // Neighbours in the batch are one part, so that an extent may cross two takes of a file.
    if (!batch.parts.empty() && batch.parts.back().flush == &flush) {
      batch.parts.back().pages.count += part.pages.count;
      batch.parts.back().space.merge(std::move(part.space));
    } else {
      batch.parts.push_back(std::move(part));
    }
  }
}

void Pipeline::start(Lane& lane, Batch& batch) {
  if (!allocate(batch)) {
    const Error full{Errc::no_space, "no free blocks although they were reserved"};
    for (std::size_t i = 0; i < batch.parts.size(); ++i) {
      batch.parts[i].flush->file->sealed(batch.pages_of(i));
      give_up(batch, i, full);
    }
    return;
  }
  std::vector<PageRange> ranges;
  ranges.reserve(batch.parts.size());
  for (const Part& part : batch.parts) ranges.push_back(part.pages);
  batch.extents = plan_extents(ranges, batch.runs, options_.extent_blocks_max, env_);
  for (std::size_t i = 0; i < batch.parts.size(); ++i)
    if (keymgr::OwnKeys* keys = batch.parts[i].flush->file->own_keys(); keys != nullptr)
      plan_under(*keys, batch.extents_of(i));
  seal(lane, batch);
  if (batch.synced && !batch.parts[0].ended) take_log_turn(batch);
  write(lane, batch);
}

// Blocks for the whole batch, side by side where the device has room for that.
bool Pipeline::allocate(Batch& batch) {
  for (Part& part : batch.parts) batch.space.merge(part.space.take(part.pages.count, 0));
  u64 wanted = batch.pages.size();
  while (wanted != 0) {
    const engine::BlockRun run = store_.allocate(batch.space, static_cast<u32>(wanted));
    if (run.count == 0) break;  // only where bitmaps are damaged
    batch.runs.push_back(run);
    wanted -= run.count;
  }
  if (wanted != 0) give_back_blocks(batch);
  return wanted == 0;
}

// To the parts' reservations, with what there is none of yet.
void Pipeline::give_back_blocks(Batch& batch) {
  for (const engine::BlockRun& run : batch.runs) store_.cancel(run, &batch.space);
  batch.runs.clear();
  for (Part& part : batch.parts) part.space.merge(batch.space.take(part.pages.count, 0));
}

// Keys are derived eight at a time, also across files: what is under one key is sealed together.
void Pipeline::seal(Lane& lane, Batch& batch) {
  batch.checksums.resize(batch.pages.size());
  batch.data.clear();
  for (const DirtyPage& page : batch.pages) batch.data.push_back(page.data);
  const SecretWork work;
  for (std::size_t i = 0; i < batch.parts.size(); ++i) {
    if (batch.parts[i].sealed) continue;
    const std::vector<std::size_t> parts = batch.parts_under_key_of(i);
    const auto sealed = seal_parts(lane, batch, parts);
    for (const std::size_t part : parts) {
      batch.parts[part].sealed = true;
      batch.parts[part].flush->file->sealed(batch.pages_of(part));
      if (!sealed) give_up(batch, part, sealed.error());
    }
  }
  wipe(&*lane.keys, sizeof *lane.keys);
}

Result<void> Pipeline::seal_parts(Lane& lane, Batch& batch, std::span<const std::size_t> parts) {
  std::vector<const PlannedExtent*> extents;
  for (const std::size_t part : parts)
    for (const PlannedExtent& extent : batch.extents_of(part)) extents.push_back(&extent);
  const DirtyFile& file = *batch.parts[parts.front()].flush->file;
  const keymgr::Lease* lease = file.lease();
  if (lease == nullptr || options_.clear_cipher) {
    for (const PlannedExtent* extent : extents) {
      const PageRange pages{extent->first_page, extent->run.count};
      extent::copy_blocks(batch.data_of(pages), lane.blocks(batch, pages),
                          batch.checksums_of(pages));
    }
    return {};
  }
  if (const keymgr::OwnKeys* keys = file.own_keys(); keys != nullptr) {
    for (const PlannedExtent* extent : extents)
      seal_extent(lane, batch, keys->write_key(), *extent);
    return {};
  }
  LK_TRY(const keymgr::KeyUse use, keymgr::KeyUse::begin(*lease));
  for (std::span<const PlannedExtent* const> rest(extents); !rest.empty();) {
    const auto some = rest.first(std::min(rest.size(), crypto::kExtentKeysAtOnce));
    seal_extents(lane, batch, use, some);
    rest = rest.subspan(some.size());
  }
  return {};
}

void Pipeline::seal_extents(Lane& lane, Batch& batch, const keymgr::KeyUse& use,
                            std::span<const PlannedExtent* const> extents) {
  std::array<crypto::Nonce, crypto::kExtentKeysAtOnce> nonces;
  std::ranges::transform(extents, nonces.begin(),
                         [](const PlannedExtent* extent) { return extent->nonce; });
  use.extent_keys(std::span(nonces).first(extents.size()),
                  std::span(*lane.keys).first(extents.size()));
  derivations_.fetch_add(1, std::memory_order_relaxed);
  for (std::size_t i = 0; i < extents.size(); ++i)
    seal_extent(lane, batch, (*lane.keys)[i], *extents[i]);
}

void Pipeline::seal_extent(Lane& lane, Batch& batch, const crypto::XtsKey& key,
                           const PlannedExtent& extent) {
  const PageRange pages{extent.first_page, extent.run.count};
  extent::seal_blocks(key, extent.first_unit, batch.data_of(pages), lane.blocks(batch, pages),
                      batch.checksums_of(pages));
}

void Pipeline::take_log_turn(Batch& batch) {
  const DirtyFile& file = *batch.parts[0].flush->file;
  auto record = file.log_record(store_, map_entries(batch.pages, batch.extents));
  if (!record) return;
  for (const PlannedExtent& extent : batch.extents) {
    const extent::ContextDisk context = context_of(file, extent);
    const Bytes bytes = bytes_of(file, context);
    const std::span<const u32> checksums =
        batch.checksums_of({extent.first_page, extent.run.count});
    record->extents.push_back({extent.run,
                               1,
                               extent.first_unit,
                               {bytes.begin(), bytes.end()},
                               {checksums.begin(), checksums.end()}});
  }
  if (auto turn = engine::LogTurn::take(store_, *record)) batch.turn.emplace(std::move(*turn));
}

void Pipeline::write(Lane& lane, Batch& batch) {
  std::vector<bool> ended;
  ended.reserve(batch.parts.size());
  for (const Part& part : batch.parts) ended.push_back(part.ended);
  batch.writes = plan_writes(batch.extents, kWriteBlocksMax, ended);
  batch.ops.assign(batch.writes.size(), {});
  batch.ops_left = 0;
  const auto submit = [&](engine::Op& op) {
    op.owner = &batch;
    op.done = [](engine::Op& done) { --static_cast<Batch*>(done.owner)->ops_left; };
    ++batch.ops_left;
    lane.io->submit(op);
  };
  for (std::size_t i = 0; i < batch.ops.size(); ++i) {
    engine::Op& op = batch.ops[i];
    op.kind = engine::OpKind::write;
    op.offset = batch.writes[i].block * engine::kBlockBytes;
    op.data = lane.blocks(batch, batch.writes[i].pages);
    submit(op);
  }
  if (batch.turn) submit(batch.turn->op());
  LK_CHECK_MSG(lane.io->tick(0), "a ring broke while writes were in flight");
}

void Pipeline::await_writes(Lane& lane, Batch& batch) {
  while (batch.ops_left != 0)
    LK_CHECK_MSG(lane.io->tick(1), "a ring broke while writes were in flight");
}

// Throws nothing: a part finds no memory by itself.
void Pipeline::finish(Lane& lane, Batch& batch) {
  await_writes(lane, batch);
  const u64 logged = batch.turn ? end_log_turn(lane, batch) : 0;
  for (std::size_t i = 0; i < batch.parts.size(); ++i) {
    Part& part = batch.parts[i];
    if (part.ended) continue;
    // Of a batch behind this one it may be known already that it was never sealed: this one lands.
    Result<void> result = part.flush->gap ? part.flush->result : Result<void>{};
    for (std::size_t w = 0; w < batch.writes.size() && result; ++w) {
      const PageRange& pages = batch.writes[w].pages;
      if (batch.ops[w].result < 0 && pages.first < part.pages.end() &&
          pages.end() > part.pages.first)
        result = engine::result_of(batch.ops[w]);
    }
    if (result) result = or_no_memory([&] { return insert(batch, i, logged); });
    // Its blocks would be free for others, and the log has them.
    if (!result && logged != 0) store_.stop(result.error());
    if (result) continue;
    part.flush->gap = true;
    give_up(batch, i, result.error());
  }
  batch.clear();
}

// Answers in which generation's log the batch is.
u64 Pipeline::end_log_turn(Lane& lane, Batch& batch) {
  const bool landed =
      std::ranges::none_of(batch.ops, [](const engine::Op& op) { return op.result < 0; });
  const auto logged = batch.turn->end(*lane.io, landed);
  batch.turn.reset();
  return logged.value_or(0);  // a failure has stopped the store: it is not inserted
}

// First what can fail and has changed nothing then: the file's map. The part keeps its tree space
// until the extents are in, for a retry.
Result<void> Pipeline::insert(Batch& batch, std::size_t index, u64 logged) {
  Part& part = batch.parts[index];
  DirtyFile& file = *part.flush->file;
  u64 extents = 0;
  {
    LK_TRY(engine::Transaction transaction, store_.begin({}));
    LK_TRYV(file.insert(transaction, map_entries(batch.pages, batch.extents_of(index))));
    for (const PlannedExtent& extent : batch.extents_of(index)) {
      const extent::ContextDisk context = context_of(file, extent);
      LK_TRYV(transaction.insert_extent(extent.run, extent.first_unit, bytes_of(file, context),
                                        batch.checksums_of({extent.first_page, extent.run.count})));
      ++extents;
    }
    transaction.already_logged(logged);
    part.flush->transaction = transaction.id();
  }
  part.space = {};
  part.flush->pages += part.pages.count;
  extents_.fetch_add(extents, std::memory_order_relaxed);
  bytes_.fetch_add(part.pages.count * kPageBytes, std::memory_order_relaxed);
  file.finished(batch.pages_of(index), {}, {});
  return {};
}

// A retry draws new blocks and new nonces. Once the store has stopped the blocks may be in the
// transaction that broke: they are left alone.
void Pipeline::give_up(Batch& batch, std::size_t index, const Error& why) {
  Part& part = batch.parts[index];
  if (!store_.failure())
    for (const PlannedExtent& extent : batch.extents_of(index))
      store_.cancel(extent.run, &part.space);
  part.ended = true;
  if (part.flush->result) part.flush->result = std::unexpected(why);
  part.flush->file->finished(batch.pages_of(index), part.flush->result, std::move(part.space));
}

}  // namespace latchkey::writeback
