// Goal: the store keeps its promises E1 to E5 on a device without faults and with single ones:
// trees equal a std::map, extents split and share with their tweaks, space is exact, damage is
// told. Method: seeded random operations on a SimDevice, compared with models that have no disk.
// Crashes are in store_crash_test.cpp.

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>

#include "base/checksum.h"
#include "engine/store.h"
#include "engine/superblock.h"
#include "tests/support/seed.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

std::vector<std::byte> bytes_of(u64 seed, std::size_t size) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

std::unique_ptr<Store> open_store(SimDevice& device, const OpenOptions& options = {}) {
  auto store = Store::open(device, options, system_env());
  EXPECT_TRUE(store) << store.error().what;
  return store ? std::move(*store) : nullptr;
}

void expect_clean(Store& store) {
  auto result = check_store(store, {});
  ASSERT_TRUE(result) << result.error().what;
  for (const Finding& finding : result->findings)
    ADD_FAILURE() << finding.where << ": " << finding.what;
}

class EngineTest : public ::testing::Test {
 protected:
  void rot_superblock(u32 place) {
    device_->flip_bit(superblock_place(place, 64 * kMiB) * kBlockBytes + 100, 3);
  }
  void make(u64 size = 64 * kMiB, u32 node_bytes = 4096) {
    device_ = std::make_unique<SimDevice>(SimConfig{.size_bytes = size});
    FormatOptions options;
    options.node_bytes = node_bytes;
    options.label = "test";
    auto made = Store::format(*device_, options);
    ASSERT_TRUE(made) << made.error().what;
  }
  static Result<void> put(Store& store, Key key, Bytes value) {
    LK_TRY(Reservation space, store.reserve({0, 1, static_cast<u32>(value.size())}));
    LK_TRY(Transaction transaction, store.begin(std::move(space)));
    return transaction.put(kFirstSubvolume, key, value);
  }
  // One extent of `count` blocks; returns where it lies.
  static BlockRun add_extent(Store& store, u32 count, u64 first_unit, u8 tag) {
    auto space = store.reserve({count, 4, 4096});
    EXPECT_TRUE(space);
    const BlockRun run = store.allocate(*space, count);
    EXPECT_EQ(run.count, count);
    auto transaction = store.begin(std::move(*space));
    EXPECT_TRUE(transaction);
    std::vector<u32> sums(count);
    for (u32 i = 0; i < count; ++i) sums[i] = tag * 1000U + i;
    const std::vector<std::byte> context(34, std::byte{tag});
    auto inserted = transaction->insert_extent(run, first_unit, context, sums);
    EXPECT_TRUE(inserted);
    return run;
  }
  template <class Change>
  static void change(Store& store, Change fn) {
    auto space = store.reserve({0, 4, 4096}, true);
    ASSERT_TRUE(space) << space.error().what;
    auto transaction = store.begin(std::move(*space));
    ASSERT_TRUE(transaction);
    auto done = fn(*transaction);
    ASSERT_TRUE(done) << done.error().what;
  }

  std::unique_ptr<SimDevice> device_;
};

TEST_F(EngineTest, a_fresh_store_is_empty_clean_and_says_what_it_is) {
  make();
  auto store = open_store(*device_);
  EXPECT_EQ(store->facts().label, "test");
  EXPECT_EQ(store->facts().node_bytes, 4096U);
  auto record = store->view().at_or_after(kFirstSubvolume, {});
  ASSERT_TRUE(record);
  EXPECT_FALSE(record->has_value());
  expect_clean(*store);
}

TEST_F(EngineTest, trees_equal_a_map_across_commits_and_reopening) {
  const u64 seed = seed_base() + 20261121;
  SCOPED_TRACE(seed);
  make();
  std::mt19937_64 random(seed);
  std::map<Key, std::vector<std::byte>> model;
  auto store = open_store(*device_);
  for (int step = 0; step < 12000; ++step) {
    // Phases of growth and of shrinking, so that nodes split and merge.
    const bool grow = (step / 3000) % 2 == 0;
    const Key key{random() % 40, static_cast<u8>(random() % 3), random() % 60};
    if (random() % 10 < (grow ? 8U : 2U)) {
      model[key] = bytes_of(random(), random() % 8 == 0 ? random() % 900 : random() % 60);
      ASSERT_TRUE(put(*store, key, model[key]));
    } else {
      change(*store, [&](Transaction& transaction) -> Result<void> {
        LK_TRY(const bool there, transaction.erase(kFirstSubvolume, key));
        EXPECT_EQ(there, model.erase(key) == 1);
        return {};
      });
    }
    if (random() % 400 == 0) {
      ASSERT_TRUE(store->commit());
    }
    if (random() % 2000 == 0) {
      ASSERT_TRUE(store->close());
      store = open_store(*device_);
    }
  }
  ASSERT_TRUE(store->commit());
  std::map<Key, std::vector<std::byte>> read;
  ASSERT_TRUE(store->view().scan(kFirstSubvolume, {}, {~u64{0}, 255, ~u64{0}},
                                 [&](const Key& key, Bytes value) {
                                   read[key] = {value.begin(), value.end()};
                                   return true;
                                 }));
  EXPECT_EQ(read, model);
  for (int i = 0; i < 2000; ++i) {
    const Key key{random() % 41, static_cast<u8>(random() % 3), random() % 61};
    const auto after = model.lower_bound(key);
    auto found = store->view().at_or_after(kFirstSubvolume, key);
    ASSERT_TRUE(found);
    ASSERT_EQ(found->has_value(), after != model.end());
    if (*found) {
      EXPECT_EQ((*found)->key, after->first);
    }
    auto upper = model.upper_bound(key);
    found = store->view().at_or_before(kFirstSubvolume, key);
    ASSERT_TRUE(found);
    ASSERT_EQ(found->has_value(), upper != model.begin());
    if (*found) {
      EXPECT_EQ((*found)->key, std::prev(upper)->first);
    }
  }
  expect_clean(*store);
}

TEST_F(EngineTest, a_part_of_an_extent_keeps_context_and_tweak) {
  make();
  auto store = open_store(*device_);
  const BlockRun run = add_extent(*store, 200, 7, 5);  // more than one record
  auto record = store->view().extent_at(run.block + 130, 256);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->first_unit, 137U);
  EXPECT_EQ(record->run, (BlockRun{run.block + 130, 70}));
  EXPECT_EQ(record->checksums[0], 5130U);
  change(*store, [&](Transaction& t) { return t.share_extent({run.block + 10, 20}); });
  change(*store, [&](Transaction& t) { return t.release_extent({run.block + 5, 10}); });
  EXPECT_FALSE(store->view().extent_at(run.block + 5, 1));
  EXPECT_FALSE(store->view().extent_at(run.block + 9, 1));
  record = store->view().extent_at(run.block + 10, 256);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->references, 1U);
  EXPECT_EQ(record->run.count, 5U);
  record = store->view().extent_at(run.block + 15, 256);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->references, 2U);
  EXPECT_EQ(record->first_unit, 22U);
  EXPECT_EQ(record->context, std::vector<std::byte>(34, std::byte{5}));
  ASSERT_TRUE(store->commit());
  expect_clean(*store);
}

TEST_F(EngineTest, freed_blocks_wait_for_the_next_commit_and_for_readers) {
  make();
  auto store = open_store(*device_);
  const BlockRun run = add_extent(*store, 64, 0, 1);
  ASSERT_TRUE(store->commit());
  const u64 free_before = store->space().blocks_used;
  {
    const ReadPin pin = store->pin();
    change(*store, [&](Transaction& t) { return t.release_extent(run); });
    ASSERT_TRUE(store->commit());
    ASSERT_TRUE(put(*store, {1, 1, 1}, {}));
    ASSERT_TRUE(store->commit());
    ASSERT_TRUE(put(*store, {1, 1, 2}, {}));
    ASSERT_TRUE(store->commit());
    EXPECT_GE(store->space().blocks_pinned, 64U);
  }
  EXPECT_LT(store->space().blocks_used, free_before);
  ASSERT_TRUE(put(*store, {1, 1, 3}, {}));
  ASSERT_TRUE(store->commit());
  EXPECT_LT(store->space().blocks_pinned, 64U);
  expect_clean(*store);
}

TEST_F(EngineTest, blocks_that_were_never_inserted_are_free_after_a_crash) {
  make();
  {
    auto store = open_store(*device_);
    auto space = store->reserve({100, 1, 10});
    ASSERT_TRUE(space);
    EXPECT_GT(store->allocate(*space, 100).count, 0U);
    ASSERT_TRUE(put(*store, {1, 1, 1}, bytes_of(1, 10)));
    ASSERT_TRUE(store->commit());
  }
  device_->crash(1);
  auto store = open_store(*device_);
  expect_clean(*store);
}

TEST_F(EngineTest, a_full_store_says_so_before_a_transaction_and_can_always_delete) {
  make(16 * kMiB);
  auto store = open_store(*device_);
  std::vector<BlockRun> runs;
  for (;;) {
    auto space = store->reserve({8, 4, 512});
    if (!space) {
      EXPECT_EQ(space.error().code, Errc::no_space);
      break;
    }
    const BlockRun run = store->allocate(*space, 8);
    ASSERT_GT(run.count, 0U);
    auto transaction = store->begin(std::move(*space));
    ASSERT_TRUE(transaction);
    ASSERT_TRUE(transaction->insert_extent(run, 0, {}, std::vector<u32>(run.count, 1)));
    runs.push_back(run);
  }
  EXPECT_GT(runs.size(), 200U);
  ASSERT_TRUE(store->commit());
  for (const BlockRun& run : runs)
    change(*store, [&](Transaction& t) { return t.release_extent(run); });
  ASSERT_TRUE(store->commit());
  EXPECT_FALSE(store->failure());
  EXPECT_TRUE(store->reserve({1000, 4, 512}));
  expect_clean(*store);
}

TEST_F(EngineTest, a_failed_flush_stops_the_store_for_good) {
  make();
  auto store = open_store(*device_);
  ASSERT_TRUE(put(*store, {1, 1, 1}, bytes_of(1, 10)));
  ASSERT_TRUE(store->commit());
  ASSERT_TRUE(put(*store, {1, 1, 2}, bytes_of(2, 10)));
  device_->inject({.kind = OpKind::flush, .after = 0});
  EXPECT_FALSE(store->commit());
  device_->clear_faults();
  EXPECT_FALSE(store->commit());
  EXPECT_TRUE(store->failure());
  EXPECT_FALSE(put(*store, {1, 1, 3}, {}));
  EXPECT_TRUE(*store->view().get(kFirstSubvolume, {1, 1, 1}));  // reading goes on
  store.reset();
  device_->crash(3);
  store = open_store(*device_);
  EXPECT_TRUE(*store->view().get(kFirstSubvolume, {1, 1, 1}));
  expect_clean(*store);
}

TEST_F(EngineTest, any_one_superblock_copy_may_rot) {
  make();
  auto store = open_store(*device_);
  for (u64 i = 0; i < 2; ++i) {
    ASSERT_TRUE(put(*store, {1, 1, i}, bytes_of(1, 10)));
    ASSERT_TRUE(store->commit());
  }
  store.reset();
  const SimImage image = device_->snapshot();
  for (u32 place = 0; place < 4; ++place) {
    device_->restore(image);
    rot_superblock(place);
    {
      OpenOptions options;
      options.read_only = true;
      auto rotten = open_store(*device_, options);
      EXPECT_FALSE(check_store(*rotten, {})->notes.empty());
    }
    store = open_store(*device_);
    EXPECT_TRUE(*store->view().get(kFirstSubvolume, {1, 1, 1}));
    for (u64 i = 0; i < 2; ++i) {  // both sets are written again
      ASSERT_TRUE(put(*store, {2, 1, i}, {}));
      ASSERT_TRUE(store->commit());
    }
    expect_clean(*store);
    EXPECT_TRUE(check_store(*store, {})->notes.empty());
    store.reset();
  }
}

// A crash tore one copy, an open has shown what the other says: then rot takes that one.
TEST_F(EngineTest, what_an_open_has_shown_does_not_hang_on_one_superblock_copy) {
  make();
  auto store = open_store(*device_);
  ASSERT_TRUE(put(*store, {1, 1, 1}, bytes_of(1, 10)));
  ASSERT_TRUE(store->commit());
  const u32 set = static_cast<u32>(store->facts().generation % 2);
  store.reset();
  const SimImage image = device_->snapshot();
  for (const u32 torn : {set, set + 2}) {
    device_->restore(image);
    rot_superblock(torn);
    open_store(*device_).reset();
    rot_superblock(torn == set ? set + 2 : set);
    store = open_store(*device_);
    EXPECT_TRUE(*store->view().get(kFirstSubvolume, {1, 1, 1}));
    EXPECT_FALSE(store->facts().stepped_back);
    expect_clean(*store);
    store.reset();
  }
}

// A crash tore one copy, and the first read of the other shows another block's bytes.
TEST_F(EngineTest, superblock_that_is_read_wrongly_once_is_read_again) {
  make();
  auto store = open_store(*device_);
  for (u64 i = 0; i < 2; ++i) {  // each set is the newest once
    ASSERT_TRUE(put(*store, {1, 1, i}, bytes_of(1, 10)));
    ASSERT_TRUE(store->commit());
    const u64 generation = store->facts().generation, set = generation % 2;
    store.reset();
    rot_superblock(static_cast<u32>(set + 2));
    device_->inject({.kind = OpKind::read, .after = set, .mishap = SimMishap::misplaced});
    store = open_store(*device_);
    EXPECT_EQ(store->facts().generation, generation);
    EXPECT_FALSE(store->facts().stepped_back);
    EXPECT_EQ(device_->faults_met(), i + 1);
  }
}

// A crash left the newest generation in one copy, with an older one in the other, and the device
// does not give that copy. Where the generation before it has been shown it must not come back.
TEST_F(EngineTest, a_superblock_copy_that_is_refused_is_no_newer_afterwards) {
  make();
  auto store = open_store(*device_);
  ASSERT_TRUE(put(*store, {1, 1, 1}, bytes_of(1, 10)));
  ASSERT_TRUE(store->commit());
  const u64 shown = store->facts().generation;
  const u32 set = static_cast<u32>((shown + 1) % 2);
  const auto at = [](u32 place) { return superblock_place(place, 64 * kMiB) * kBlockBytes; };
  std::array<std::vector<std::byte>, 4> before;
  for (const u32 place : {set, set + 2}) {
    before[place].resize(kBlockBytes);
    device_->peek(at(place), before[place]);
  }
  ASSERT_TRUE(put(*store, {1, 1, 2}, bytes_of(1, 10)));
  ASSERT_TRUE(store->commit());
  store.reset();
  const SimImage image = device_->snapshot();
  const auto torn = [&](u32 newest) {
    device_->restore(image);
    const u32 other = newest ^ 2;
    device_->overwrite(at(other), before[other]);
  };
  for (const u32 newest : {set, set + 2}) {
    torn(newest);
    device_->inject({.kind = OpKind::read, .after = newest});  // once: it is read again
    store = open_store(*device_);
    EXPECT_EQ(store->facts().generation, shown + 1);
    store.reset();

    torn(newest);
    device_->clear_faults();
    device_->bad_range(at(newest), kBlockBytes);
    store = open_store(*device_);
    EXPECT_EQ(store->facts().generation, shown);
    store.reset();
    device_->clear_faults();
    store = open_store(*device_);
    EXPECT_EQ(store->facts().generation, shown);
    EXPECT_FALSE(*store->view().get(kFirstSubvolume, {1, 1, 2}));
    EXPECT_TRUE(*store->view().get(kFirstSubvolume, {1, 1, 1}));
    expect_clean(*store);
    store.reset();
  }
}

TEST_F(EngineTest, rot_in_free_space_is_found_by_check_and_never_ends_in_a_wrong_write) {
  make();
  auto store = open_store(*device_);
  ASSERT_TRUE(put(*store, {1, 1, 1}, bytes_of(1, 10)));
  ASSERT_TRUE(store->commit());
  store.reset();
  // 64 MiB: one region, its slots in blocks 17 to 19, the map in 20 to 25 (docs/disk_format.md).
  for (u64 block = 17; block < 20; ++block) device_->flip_bit(block * kBlockBytes + 200, 3);
  store = open_store(*device_);
  EXPECT_TRUE(*store->view().get(kFirstSubvolume, {1, 1, 1}));
  const auto result = check_store(*store, {});
  ASSERT_TRUE(result);
  ASSERT_EQ(result->findings.size(), 1U);
  EXPECT_EQ(result->findings[0].what, "a free space bitmap does not match its checksum");
  const auto written = put(*store, {1, 1, 2}, bytes_of(1, 10));
  EXPECT_FALSE(written && store->commit());
  store.reset();

  for (u64 block = 20; block < 26; ++block) device_->flip_bit(block * kBlockBytes + 200, 3);
  EXPECT_EQ(Store::open(*device_, {}, system_env()).error().code, Errc::damaged);
  OpenOptions options;
  options.read_only = true;
  store = open_store(*device_, options);
  EXPECT_TRUE(*store->view().get(kFirstSubvolume, {1, 1, 1}));
  EXPECT_EQ(check_store(*store, {})->findings.size(), 1U);
}

TEST_F(EngineTest, what_is_no_store_is_refused_by_its_reason) {
  make();
  const SimImage image = device_->snapshot();
  const auto code = [&] {
    auto store = Store::open(*device_, {}, system_env());
    return store ? Errc{} : store.error().code;
  };
  for (u32 place = 0; place < 4; ++place) rot_superblock(place);
  EXPECT_EQ(code(), Errc::damaged);
  device_->load_from(std::vector<std::byte>(64 * kMiB));
  EXPECT_EQ(code(), Errc::wrong_device);
  SimDevice shorter({.size_bytes = 32 * kMiB});
  shorter.restore(image);
  auto truncated = Store::open(shorter, {}, system_env());
  ASSERT_FALSE(truncated);
  EXPECT_EQ(truncated.error().code, Errc::wrong_device);
  SimDevice tiny({.size_bytes = kMiB});
  EXPECT_FALSE(Store::format(tiny, {}));
}

TEST_F(EngineTest, a_rotten_node_is_read_from_its_second_place) {
  make();
  auto store = open_store(*device_);
  ASSERT_TRUE(put(*store, {1, 1, 1}, bytes_of(1, 100)));
  ASSERT_TRUE(store->commit());
  store.reset();
  auto io = device_->make_io({});
  ASSERT_TRUE(io);
  auto scan = scan_superblocks(**io, 64 * kMiB);
  ASSERT_TRUE(scan);
  const Pointer root = scan->newest(false)->root;
  device_->flip_bit(root.place[0] * kBlockBytes + 70, 1);
  OpenOptions options;
  options.read_only = true;
  store = open_store(*device_, options);
  EXPECT_TRUE(*store->view().get(kFirstSubvolume, {1, 1, 1}));
  EXPECT_EQ(check_store(*store, {})->findings.size(), 1U);
  store.reset();
  device_->flip_bit(root.place[1] * kBlockBytes + 90, 1);
  auto lost = Store::open(*device_, {}, system_env());
  ASSERT_FALSE(lost);
  EXPECT_EQ(lost.error().code, Errc::damaged);
  EXPECT_EQ(lost.error().at, root.place[0] * kBlockBytes);
}

}  // namespace
}  // namespace latchkey::tests
