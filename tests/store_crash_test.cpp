// Goal: whatever instant the power goes, the store comes back with a committed state: everything
// that a successful commit covered is there, a transaction is there whole or not at all, and the
// structure is clean (design D1 to D3); and the generation before is whole until its superblocks
// are overwritten. Method: one seeded workload is run once for each write and each flush that it
// makes, cut there; the device then drops, keeps and tears what was not flushed, by seed. The
// reopened store is compared with a model that has no disk. One line tells how to repeat a failure:
// cut and seed.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <utility>

#include "base/checksum.h"
#include "base/disk.h"
#include "engine/io_buffer.h"
#include "engine/store.h"
#include "tests/support/seed.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

// A file of the model: one extent with a tag, named by a record in the tree.
struct Entry {
  u64 tag = 0;
  bool operator==(const Entry&) const = default;
};
using Model = std::map<u64, Entry>;

void fill(MutableBytes block, u64 tag) {
  std::mt19937_64 random(tag);
  for (std::size_t i = 0; i < block.size(); i += 8) store_disk(block.subspan(i), Le64(random()));
}

// Each step is one transaction: it writes a block of data, inserts its extent and the record that
// names it, and releases what the record named before; or it erases a record.
class Workload {
 public:
  Workload(SimDevice& device, u64 seed) : device_(device), random_(seed) {}

  // Until the steps are done or the device fails. `states` are the model after each step; the last
  // commit that was acknowledged covered the first `committed` of them.
  void run(int steps, const OpenOptions& options) {
    auto store = Store::open(device_, options, system_env());
    if (!store) return;
    auto io = device_.make_io({.buffer_bytes = kBlockBytes});
    ASSERT_TRUE(io);
    states.push_back({});
    for (int i = 0; i < steps; ++i) {
      if (!step(**store, **io)) break;
      if (random_() % 4 == 0) {
        if (!(*store)->commit()) break;
        committed = states.size() - 1;
      }
    }
  }

  std::vector<Model> states;
  std::size_t committed = 0;

 private:
  bool step(Store& store, Io& io) {
    Model next = states.back();
    const u64 name = random_() % 12;
    const bool erase = random_() % 4 == 0;
    const u64 tag = random_();
    // A step that fails half way may yet be in the committed tree: it stays out of `states` only if
    // its transaction never ended.
    if (!(erase ? remove(store, name) : write(store, io, name, tag))) return false;
    if (erase)
      next.erase(name);
    else
      next[name] = {tag};
    states.push_back(std::move(next));
    return true;
  }

  static Result<std::optional<BlockRun>> named(const View& view, u64 name) {
    LK_TRY(auto record, view.get(kFirstSubvolume, {name, 1, 0}));
    if (!record) return std::optional<BlockRun>{};
    return std::optional(BlockRun{load_disk<Le64>(record->value), 1});
  }

  Result<void> write(Store& store, Io& io, u64 name, u64 tag) {
    LK_TRY(Reservation space, store.reserve({1, 3, 128}));
    const BlockRun run = store.allocate(space, 1);
    fill(io.buffer(), tag);
    const u32 sum = crc32c(io.buffer());
    LK_TRYV(write_sync(io, run.block * kBlockBytes, io.buffer()));
    LK_TRY(Transaction transaction, store.begin(std::move(space)));
    LK_TRY(const auto old, named(transaction, name));
    LK_TRYV(transaction.insert_extent(run, 0, {}, std::span(&sum, 1)));
    std::array<Le64, 2> value{run.block, tag};
    LK_TRYV(transaction.put(kFirstSubvolume, {name, 1, 0}, std::as_bytes(std::span(value))));
    if (old) LK_TRYV(transaction.release_extent(*old));
    return {};
  }

  Result<void> remove(Store& store, u64 name) {
    LK_TRY(Reservation space, store.reserve({0, 2, 64}, true));
    LK_TRY(Transaction transaction, store.begin(std::move(space)));
    LK_TRY(const auto old, named(transaction, name));
    if (!old) return {};
    LK_TRY(const bool there, transaction.erase(kFirstSubvolume, {name, 1, 0}));
    EXPECT_TRUE(there);
    return transaction.release_extent(*old);
  }

  SimDevice& device_;
  std::mt19937_64 random_;
};

// What the store holds, every block of data read and verified.
void read_store(SimDevice& device, Store& store, Model& model) {
  std::map<u64, std::pair<u64, u64>> named;
  ASSERT_TRUE(
      store.view().scan(kFirstSubvolume, {}, {~u64{0}, 255, 0}, [&](const Key& key, Bytes value) {
        named[key.object] = {load_disk<Le64>(value), load_disk<Le64>(value.subspan(8))};
        return true;
      }));
  auto page = IoBuffer::create(kBlockBytes);
  auto expected = IoBuffer::create(kBlockBytes);
  auto io = device.make_io({});
  for (const auto& [name, where] : named) {
    ASSERT_TRUE(read_sync(**io, where.first * kBlockBytes, page->bytes()));
    fill(expected->bytes(), where.second);
    ASSERT_TRUE(std::ranges::equal(page->bytes(), expected->bytes())) << "data of " << name;
    model[name] = {where.second};
  }
}

// What the reopened store holds; it is clean. `all_data`: also data that the model does not name.
void read_back(SimDevice& device, bool all_data, Model& model) {
  auto opened = Store::open(device, {}, system_env());
  ASSERT_TRUE(opened) << opened.error().what;
  Store& store = **opened;
  read_store(device, store, model);
  CheckOptions options;
  options.data = all_data;
  auto check = check_store(store, options);
  ASSERT_TRUE(check);
  for (const Finding& finding : check->findings)
    ADD_FAILURE() << finding.where << ": " << finding.what;
}

// Where an older superblock verifies, what it leads to is whole (D1): nothing of it was reused.
void look_at_generation_before(SimDevice& device, const std::vector<Model>& states, u64& seen) {
  OpenOptions options;
  options.previous_generation = true;
  auto opened = Store::open(device, options, system_env());
  if (!opened && opened.error().code == Errc::wrong_device) return;  // there is none
  ASSERT_TRUE(opened) << "the generation before: " << opened.error().what;
  Model model;
  read_store(device, **opened, model);
  EXPECT_TRUE((*opened)->view().scan(kExtentTree, {}, {~u64{0}, 255, ~u64{0}},
                                     [](const Key&, Bytes) { return true; }));
  EXPECT_TRUE(std::ranges::find(states, model) != states.end()) << "never a state";
  ++seen;
}

void commit_something(SimDevice& device) {
  auto store = Store::open(device, {}, system_env());
  ASSERT_TRUE(store) << store.error().what;
  auto space = (*store)->reserve({0, 1, 16});
  ASSERT_TRUE(space);
  {
    auto transaction = (*store)->begin(std::move(*space));
    ASSERT_TRUE(transaction);
    ASSERT_TRUE(transaction->put(kKeyTree, {1, 1, 1}, {}));
  }
  ASSERT_TRUE((*store)->close());
}

// Takes what is free up to `blocks`, so that what is freed is reused as soon as it may be.
void leave_free(SimDevice& device, u64 blocks) {
  auto store = Store::open(device, {}, system_env());
  ASSERT_TRUE(store) << store.error().what;
  auto io = device.make_io({.buffer_bytes = 128 * kBlockBytes});
  ASSERT_TRUE(io);
  std::ranges::fill((*io)->buffer(), std::byte{0});
  const std::vector<u32> sums(128, crc32c((*io)->buffer().first(kBlockBytes)));
  for (;;) {
    const u64 available = (*store)->space().blocks_available;
    if (available <= blocks) break;
    const u64 wanted = std::min<u64>((available - blocks + 1) / 2, sums.size());
    auto space = (*store)->reserve({wanted, 1, sums.size() * 4 + 64});
    if (!space) break;  // what the trees need is more
    const BlockRun run = (*store)->allocate(*space, static_cast<u32>(wanted));
    const MutableBytes zeros = (*io)->buffer().first(run.count * kBlockBytes);
    ASSERT_TRUE(write_sync(**io, run.block * kBlockBytes, zeros));
    {
      auto transaction = (*store)->begin(std::move(*space));
      ASSERT_TRUE(transaction);
      ASSERT_TRUE(transaction->insert_extent(run, 0, {}, std::span(sums).first(run.count)));
    }
    ASSERT_TRUE((*store)->commit());  // now the nodes are counted
  }
  ASSERT_TRUE((*store)->close());
}

struct Cuts {
  u64 workload_seed = 0;
  int steps = 0;
  int crashes_a_cut = 0;
  u64 device_bytes = 16 * kMiB;
  u32 node_bytes = 4096;
  u64 blocks_free = 0;  // of a full store
  bool discard = false;
};

void cut_everywhere(const Cuts& cuts) {
  const u64 workload_seed = cuts.workload_seed;
  SimDevice fresh({.size_bytes = cuts.device_bytes, .seed = workload_seed});
  FormatOptions format;
  format.node_bytes = cuts.node_bytes;
  ASSERT_TRUE(Store::format(fresh, format));
  if (cuts.blocks_free != 0) leave_free(fresh, cuts.blocks_free);
  const SimImage formatted = fresh.snapshot();
  u64 cut = 0, generations_before = 0;
  for (bool survived = false; !survived; ++cut) {
    SimDevice device({.size_bytes = cuts.device_bytes,
                      .seed = workload_seed,
                      .garbage_after_discard = cuts.discard});
    device.restore(formatted);
    device.cut_after(cut);
    Workload workload(device, workload_seed);
    OpenOptions options;
    options.discard = cuts.discard;
    workload.run(cuts.steps, options);
    survived = !device.power_off();
    EXPECT_EQ(survived && device.counters().discards != 0, survived && cuts.discard);
    ASSERT_TRUE(!survived || std::cmp_equal(workload.states.size(), cuts.steps + 1));
    if (workload.states.empty()) workload.states.push_back({});
    for (int i = 0; i < cuts.crashes_a_cut; ++i) {
      const u64 seed = seed_base() + cut * 1000 + static_cast<u64>(i);
      SCOPED_TRACE(testing::Message()
                   << "workload " << workload_seed << ", cut " << cut << ", crash seed " << seed);
      SimDevice after({.size_bytes = cuts.device_bytes, .seed = seed});
      after.restore(device.crash_image(seed));
      look_at_generation_before(after, workload.states, generations_before);
      Model model;
      read_back(after, cuts.blocks_free == 0, model);
      // Once more, after a commit that is not cut.
      if (cuts.device_bytes > 16 * kMiB) commit_something(after);
      read_back(after, cuts.blocks_free == 0, model);
      if (testing::Test::HasFatalFailure()) return;
      bool known = false;
      for (std::size_t s = workload.committed; s < workload.states.size(); ++s)
        known = known || workload.states[s] == model;
      ASSERT_TRUE(known) << "not a state that was ever committed or under way";
    }
  }
  EXPECT_GT(cut, 20U);
  EXPECT_GT(generations_before, cut / 2);
}

TEST(StoreCrash, every_cut_recovers_a_committed_state) {
  for (const u64 seed : seeds(9)) cut_everywhere({seed, 30, 3});
}

// The store is full but for a few blocks.
TEST(StoreCrash, every_cut_recovers_where_what_is_freed_is_reused) {
  for (const u64 seed : seeds(2)) cut_everywhere({seed + 19, 20, 1, 16 * kMiB, 4096, 26});
}

// Data, nodes and their second places lie in three regions of free space there, so that the first
// is not touched by the commit after a lost one. Nodes of one block would lie among the data.
TEST(StoreCrash, every_cut_recovers_where_bitmaps_have_several_regions) {
  for (const u64 seed : seeds(2)) cut_everywhere({seed + 12, 20, 1, 600 * kMiB, 8192});
}

// A discarded block reads as garbage: nothing that a superblock leads to is discarded.
TEST(StoreCrash, every_cut_recovers_where_what_is_freed_is_discarded) {
  for (const u64 seed : seeds(3)) {
    Cuts cuts{seed + 31, 25, 2};
    cuts.discard = true;
    cut_everywhere(cuts);
  }
}

}  // namespace
}  // namespace latchkey::tests
