#include "writeback/pipeline.h"

#include <optional>
#include <utility>

#include "base/check.h"
#include "extent/context.h"
#include "extent/seal.h"

namespace latchkey::writeback {

namespace {

constexpr u32 kBatchPages = 512;  // 2 MiB: half of a lane's buffer
constexpr u64 kPageBytes = extent::kBlockBytes;

}  // namespace

// Pages on their way: sealed into a half of the lane's buffer, written, inserted.
struct Pipeline::Batch {
  u32 half = 0;
  std::vector<DirtyPage> pages;
  engine::Reservation space;
  std::vector<engine::BlockRun> runs;
  std::vector<PlannedExtent> extents;
  std::vector<u32> checksums;
  std::vector<engine::Op> ops;
  u32 ops_left = 0;
  i64 error = 0;
};

struct Pipeline::Lane {
  std::unique_ptr<engine::Io> io;
  Secret<crypto::XtsKey> key;
  std::array<Batch, 2> batches;
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
    io_options.buffer_bytes = 2 * kBatchPages * kPageBytes;
    LK_TRY(lane->io, store.device().make_io(io_options));
    LK_TRY(lane->key, Secret<crypto::XtsKey>::create());
    lane->batches[1].half = 1;
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
  return {extents_.load(std::memory_order_relaxed), bytes_.load(std::memory_order_relaxed)};
}

Result<void> Pipeline::flush(DirtyFile& file, u64& transaction) {
  Lane& lane = take_lane();
  auto flushed = flush_on(lane, file, transaction);
  return_lane(lane);
  return flushed;
}

Result<void> Pipeline::flush_on(Lane& lane, DirtyFile& file, u64& transaction) {
  Result<void> result;
  u64 from = 0;
  u32 half = 0;
  for (;; half ^= 1) {
    Batch& batch = lane.batches[half];
    // This half's last batch must have landed before the half is used again.
    if (auto done = finish(lane, file, batch, transaction); !done && result) result = done;
    if (!result) break;
    batch.pages = file.take(from, kBatchPages, batch.space);
    if (batch.pages.empty()) break;
    from = batch.pages.back().index + 1;
    if (auto started = start(lane, file, batch); !started) {
      result = started;
      break;
    }
  }
  // In order, so that the size in the tree never runs ahead of the data in it.
  for (const u32 last : {half ^ 1, half})
    if (auto done = finish(lane, file, lane.batches[last], transaction); !done && result)
      result = done;
  return result;
}

Result<void> Pipeline::start(Lane& lane, DirtyFile& file, Batch& batch) {
  u64 wanted = batch.pages.size();
  batch.runs.clear();
  while (wanted != 0) {
    const engine::BlockRun run = store_.allocate(batch.space, static_cast<u32>(wanted));
    if (run.count == 0) {
      const Result<void> full = fail(Errc::no_space, "no free blocks although they were reserved");
      file.sealed(batch.pages);
      give_up(file, batch, full);
      return full;
    }
    batch.runs.push_back(run);
    wanted -= run.count;
  }
  batch.extents = plan_extents(batch.pages.size(), batch.runs, options_.extent_blocks_max, env_);
  const auto sealed = seal(lane, file, batch);
  file.sealed(batch.pages);
  if (!sealed) {
    give_up(file, batch, sealed);
    return sealed;
  }
  const MutableBytes half =
      lane.io->buffer().subspan(batch.half * kBatchPages * kPageBytes, kBatchPages * kPageBytes);
  batch.ops.clear();
  batch.error = 0;
  u64 at = 0;
  for (const engine::BlockRun& run : batch.runs) {
    engine::Op op;
    op.kind = engine::OpKind::write;
    op.offset = run.block * engine::kBlockBytes;
    op.data = half.subspan(at, run.count * kPageBytes);
    op.owner = &batch;
    op.done = [](engine::Op& done) {
      auto* owner = static_cast<Batch*>(done.owner);
      --owner->ops_left;
      if (done.result < 0) owner->error = done.result;
    };
    at += run.count * kPageBytes;
    batch.ops.push_back(op);
  }
  batch.ops_left = static_cast<u32>(batch.ops.size());
  for (engine::Op& op : batch.ops) lane.io->submit(op);
  auto ticked = lane.io->tick(0);
  if (!ticked) return std::unexpected(ticked.error());
  return {};
}

Result<void> Pipeline::seal(Lane& lane, DirtyFile& file, Batch& batch) {
  MutableBytes target =
      lane.io->buffer().subspan(batch.half * kBatchPages * kPageBytes, kBatchPages * kPageBytes);
  batch.checksums.resize(batch.pages.size());
  const bool cipher = file.lease() != nullptr && !options_.clear_cipher;
  std::optional<keymgr::KeyUse> use;
  if (cipher) {
    LK_TRY(keymgr::KeyUse begun, keymgr::KeyUse::begin(*file.lease()));
    use.emplace(std::move(begun));
  }
  for (const PlannedExtent& extent : batch.extents) {
    if (cipher) use->extent_key(extent.nonce, *lane.key);
    for (u32 unit = 0; unit < extent.run.count; ++unit) {
      const std::size_t page = extent.first_page + unit;
      const Bytes plaintext(batch.pages[page].data, kPageBytes);
      const MutableBytes block = target.subspan(page * kPageBytes, kPageBytes);
      batch.checksums[page] = cipher ? extent::seal_block(*lane.key, unit, plaintext, block)
                                     : extent::copy_block(plaintext, block);
    }
  }
  if (cipher) {
    wipe(&*lane.key, sizeof(crypto::XtsKey));
    burn_stack_and_registers();
  }
  return {};
}

Result<void> Pipeline::finish(Lane& lane, DirtyFile& file, Batch& batch, u64& transaction) {
  if (batch.pages.empty()) return {};
  while (batch.ops_left != 0) {
    auto ticked = lane.io->tick(1);
    LK_CHECK_MSG(ticked, "a ring broke while writes were in flight");
  }
  if (batch.error != 0) {
    const Result<void> failed =
        fail_os(Errc::io, static_cast<i32>(-batch.error), "the device refused a data write");
    give_up(file, batch, failed);
    return failed;
  }
  if (auto inserted = insert(file, batch, transaction); !inserted) {
    // The blocks may be in the broken transaction: they are left alone, the store has stopped.
    batch.runs.clear();
    give_up(file, batch, inserted);
    return inserted;
  }
  extents_.fetch_add(batch.extents.size(), std::memory_order_relaxed);
  bytes_.fetch_add(batch.pages.size() * kPageBytes, std::memory_order_relaxed);
  file.finished(batch.pages, {}, {});
  batch.pages.clear();
  return {};
}

Result<void> Pipeline::insert(DirtyFile& file, Batch& batch, u64& transaction) {
  LK_TRY(engine::Transaction joined, store_.begin(std::move(batch.space)));
  transaction = joined.id();
  for (const PlannedExtent& extent : batch.extents) {
    std::vector<std::byte> context;
    if (file.lease() != nullptr) {
      const extent::ContextDisk disk =
          extent::encode(extent::Context{crypto::Mode::aes_256_xts, file.key_id(), extent.nonce});
      const Bytes raw = std::as_bytes(std::span(&disk, 1));
      context.assign(raw.begin(), raw.end());
    }
    LK_TRYV(joined.insert_extent(
        extent.run, 0, context,
        std::span(batch.checksums).subspan(extent.first_page, extent.run.count)));
  }
  return file.insert(joined, map_entries(batch.pages, batch.extents));
}

// A retry draws new blocks and new nonces.
void Pipeline::give_up(DirtyFile& file, Batch& batch, const Result<void>& why) {
  for (const engine::BlockRun& run : batch.runs) store_.cancel(run, &batch.space);
  batch.runs.clear();
  file.finished(batch.pages, why, std::move(batch.space));
  batch.space = {};
  batch.pages.clear();
}

}  // namespace latchkey::writeback
