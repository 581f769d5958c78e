#include "engine/scrub.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "base/wait.h"
#include "engine/scrub_walk.h"
#include "engine/store_state.h"

namespace latchkey::engine {

namespace {

constexpr u64 kPauseMaxNs = 100'000'000;  // so that a slow scrub can be stopped

std::string at(u64 block) { return fmt::format("device offset {}", block * kBlockBytes); }

class Scrubber {
 public:
  Scrubber(Store& store, StoreState& state, const ScrubOptions& options)
      : store_(store), state_(state), options_(options), began_ns_(state.env.monotonic_ns()) {
    const SpaceFacts space = store.space();
    total_ = std::max<u64>(1, space.blocks_used) * kBlockBytes;
  }

  Result<ScrubResult> run() {
    LK_TRY(io_, state_.device.make_io({}));
    LK_TRYV(superblocks());
    LK_TRY(const std::vector<TreeId> trees, list_trees());
    for (const TreeId tree : trees) LK_TRYV(nodes(tree));
    if (!result_.stopped) bitmaps();
    if (options_.data) LK_TRYV(data());
    if (result_.mended != 0) LK_TRYV(flush_sync(*io_));
    std::ranges::sort(result_.bad_blocks, {}, &BadBlock::block);
    return std::move(result_);
  }

 private:
  void found(std::string what, std::string where, bool mended) {
    result_.findings.push_back({std::move(what), std::move(where), mended});
  }

  // Counts what was read, keeps the rate. False: stop.
  bool go_on(u64 bytes) {
    result_.bytes_read += bytes;
    for (;;) {
      if (options_.progress && !options_.progress(result_.bytes_read, total_))
        result_.stopped = true;
      if (result_.stopped || options_.bytes_per_second == 0) return !result_.stopped;
      const auto due = static_cast<u64>(static_cast<double>(result_.bytes_read) * 1e9 /
                                        static_cast<double>(options_.bytes_per_second));
      const u64 passed = state_.env.monotonic_ns() - began_ns_;
      if (passed >= due) return true;
      pause_for(std::min(due - passed, kPauseMaxNs));
    }
  }

  // --- superblocks ------------------------------------------------------------------------------

  // A copy that a commit is just writing may be met half written: it counts when it is bad twice
  // with no commit in between. A commit writes one set; so two mend any copy.
  Result<void> superblocks() {
    for (u32 attempt = 0; attempt < 3; ++attempt) {
      const u64 before = store_.facts().generation;
      LK_TRY(const SuperblockScan scan, scan_superblocks(*io_, state_.fixed.size_bytes));
      LK_TRY(const SuperblockScan again, scan_superblocks(*io_, state_.fixed.size_bytes));
      go_on(u64{8} * kBlockBytes);
      std::vector<u32> bad;
      for (u32 place = 0; place < 4; ++place)
        if (scan.copies[place].wrong != nullptr && again.copies[place].wrong != nullptr &&
            !(again.copies[place].blank && before <= 1))
          bad.push_back(place);
      if (bad.empty()) return {};
      if (store_.facts().generation != before) continue;
      bool mend = !state_.read_only && options_.commits;
      for (u32 i = 0; mend && i < 2; ++i)
        mend = state_.commit_through(store_.running_transaction(), true).has_value();
      for (const u32 place : bad) {
        found(fmt::format("a superblock copy {}", again.copies[place].wrong),
              at(superblock_place(place, state_.fixed.size_bytes)), mend);
        result_.mended += mend ? 1 : 0;
      }
      return {};
    }
    return {};
  }

  // --- trees ------------------------------------------------------------------------------------

  Result<std::vector<TreeId>> list_trees() {
    std::vector<TreeId> trees{kRootTree};
    const View view = store_.view();
    LK_TRYV(view.scan(kRootTree, {}, {~u64{0}, 255, ~u64{0}}, [&](const Key& key, Bytes) {
      if (key.type == kTreeRecordType) trees.push_back(key.object);
      return true;
    }));
    return trees;
  }

  Result<void> nodes(TreeId tree) {
    std::optional<Key> from;
    do {
      NodeBatch batch;
      const u64 before = result_.nodes;
      LK_TRYV(node_batch(tree, from, batch));
      from = batch.next;
      // Neither pin nor ring is held while the rate is kept.
      if (!go_on((result_.nodes - before) * 2 * state_.fixed.node_bytes)) break;
    } while (from);
    return {};
  }

  Result<void> node_batch(TreeId tree, const std::optional<Key>& from, NodeBatch& batch) {
    const ReadPin pin = store_.pin();
    {
      SharedLock lock(state_.forest_lock);
      // The tree may be gone meanwhile; a node that is lost is in the batch.
      if (!collect_nodes(*state_.forest, *state_.cache, tree, from, batch)) return {};
    }
    // What is younger is in memory, or a commit is writing it.
    const u64 durable = store_.facts().generation;
    for (const Pointer& pointer : batch.nodes) {
      if (pointer.generation > durable) continue;
      if (tree >= kFirstSubvolume && !seen_.insert(pointer.place[0]).second) continue;
      LK_TRYV(node(pointer, tree));
    }
    return {};
  }

  Result<void> node(const Pointer& pointer, TreeId tree) {
    ++result_.nodes;
    const std::string where =
        fmt::format("tree {}, level {}, {}", tree, pointer.level, at(pointer.place[0]));
    NodePtr good;
    std::array<const char*, 2> wrong{};
    for (u32 place = 0; place < 2; ++place) {
      auto read = state_.cache->read_place(pointer, tree, place, wrong[place]);
      if (!read && read.error().code == Errc::no_memory) return std::unexpected(read.error());
      if (!read)
        wrong[place] = read.error().what;
      else if (wrong[place] == nullptr)
        good = *read;
    }
    if (!good) {
      found("a tree node is lost: neither place verifies", where, false);
      return {};
    }
    for (u32 place = 0; place < 2; ++place) {
      if (wrong[place] == nullptr) continue;
      const bool mended = !state_.read_only && mend(pointer, tree, place, *good);
      result_.mended += mended ? 1 : 0;
      found(fmt::format("{}, in its {} place", wrong[place], place == 0 ? "first" : "second"),
            where, mended);
    }
    return {};
  }

  bool mend(const Pointer& pointer, TreeId tree, u32 place, const Node& good) {
    if (!write_sync(*io_, pointer.place[place] * kBlockBytes, good.bytes())) return false;
    const char* wrong = nullptr;
    return state_.cache->read_place(pointer, tree, place, wrong) && wrong == nullptr;
  }

  // --- free space -------------------------------------------------------------------------------

  void bitmaps() {
    const u64 blocks = state_.fixed.size_bytes / kBlockBytes;
    for (u64 block = 0; block < blocks; block += kRegionBlocks) {
      Lock lock(state_.space_mutex);
      (void)state_.space->is_used(block);  // loads the region; damage() has what that met
    }
    Lock lock(state_.space_mutex);
    for (const FreeSpace::Damage& damage : state_.space->damage())
      found(damage.error.what, at(damage.error.at / kBlockBytes), false);
  }

  // --- data -------------------------------------------------------------------------------------

  Result<void> data() {
    u64 cursor = 0;
    for (u64 bytes = 1; bytes != 0 && !result_.stopped; go_on(bytes)) {
      LK_TRY(bytes, data_batch(cursor));
    }
    return {};
  }

  // Bytes read; 0: there is nothing more.
  Result<u64> data_batch(u64& cursor) {
    const BorrowedIo io = store_.borrow_io();
    const ReadPin pin = store_.pin();
    std::vector<ExtentRecord> batch;
    {
      SharedLock lock(state_.forest_lock);
      LK_TRYV(collect_extents(*state_.forest, cursor, io->buffer().size() / kBlockBytes, batch));
    }
    if (batch.empty()) return u64{0};
    cursor = batch.back().run.end();
    return verify(*io, batch);
  }

  Result<u64> verify(Io& io, std::vector<ExtentRecord>& batch) {
    std::vector<Op> ops(batch.size());
    u64 used = 0;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const u64 size = batch[i].run.count * kBlockBytes;
      ops[i].offset = batch[i].run.block * kBlockBytes;
      ops[i].data = io.buffer().subspan(used, size);
      ops[i].done = [](Op&) {};
      used += size;
      io.submit(ops[i]);
    }
    while (io.pending() != 0) LK_TRYV(io.tick(io.pending()));
    for (std::size_t i = 0; i < batch.size(); ++i)
      for (u32 block = 0; block < batch[i].run.count; ++block) {
        const MutableBytes bytes = ops[i].data.subspan(block * kBlockBytes, kBlockBytes);
        // Of a run that could not be read each block is asked for by itself.
        const bool readable =
            ops[i].result >= 0 ||
            read_sync(io, (batch[i].run.block + block) * kBlockBytes, bytes).has_value();
        if (!readable || crc32c(bytes) != batch[i].checksums[block])
          bad({batch[i].run.block + block, batch[i].checksums[block], !readable});
      }
    result_.data_blocks += used / kBlockBytes;
    return used;
  }

  void bad(const BadBlock& block) {
    ++result_.bad_blocks_count;
    if (result_.bad_blocks.size() < kBadBlocksMax) result_.bad_blocks.push_back(block);
  }

  Store& store_;
  StoreState& state_;
  const ScrubOptions& options_;
  const u64 began_ns_;
  u64 total_ = 0;
  std::unique_ptr<Io> io_;
  std::unordered_set<u64> seen_;  // first places of nodes that several subvolumes may share
  ScrubResult result_;
};

}  // namespace

Result<ScrubResult> scrub_store(Store& store, const ScrubOptions& options) {
  return Scrubber(store, *store.state_, options).run();
}

}  // namespace latchkey::engine
