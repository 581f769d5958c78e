// Goal: each promise of engine/free_space.h and of its format on its own: runs, hints, refusals,
// forgetting, a slot that a lost commit left, rot in a slot and in the map. Method: a few calls on
// a disk in memory; damage is done to single blocks.

#include "engine/free_space.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <set>

#include "tests/support/space_disk.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

constexpr u64 kRegion = kRegionBlocks;

// --- single facts ------------------------------------------------------------------------------

struct Small {
  explicit Small(u64 device_blocks) : blocks(device_blocks) { open().format(); }
  FreeSpace& open() {
    space = std::make_unique<FreeSpace>(blocks, space_places(blocks), disk.reader());
    return *space;
  }
  BlockRun use(u32 count, u64 hint = kNowhere) {
    const auto run = space->allocate({count, 1, hint});
    EXPECT_TRUE(run);
    if (!run) return {};
    space->mark_used(*run);
    return *run;
  }
  std::vector<FreeSpace::SlotWrite> commit() {
    auto writes = space->slots_to_write(++generation);
    EXPECT_TRUE(writes);
    for (const auto& write : *writes) disk.write(write);
    used = space->blocks_used();
    sum_before = std::exchange(sum, space->map_checksum());
    space->unpin_through(generation - 1);
    return std::move(*writes);
  }
  Result<void> reopen() { return open().recover({generation, used, sum, sum_before}); }
  // What the last commit wrote that is the slot of `region`.
  static u64 slot_of(const std::vector<FreeSpace::SlotWrite>& writes, u32 region) {
    for (const auto& write : writes)
      if (load_disk<BitmapSlotDisk>(write.image).magic == kBitmapMagic &&
          load_disk<BitmapSlotDisk>(write.image).region == region)
        return write.block;
    ADD_FAILURE() << "region " << region << " was not written";
    return 0;
  }

  u64 blocks;
  SpaceDisk disk;
  std::unique_ptr<FreeSpace> space;
  u64 generation = 0, used = 0;
  Checksum sum{}, sum_before{};
};

// The lost commit wrote a whole slot of a region that no commit touched after it.
TEST(FreeSpace, a_slot_of_a_lost_commit_is_never_believed) {
  Small small(3 * kRegion);
  const BlockRun kept = small.use(10, kRegion + 100);
  small.commit();
  ASSERT_TRUE(small.space->release(kept, small.generation + 1));
  const auto lost = small.space->slots_to_write(small.generation + 1);
  for (const auto& write : *lost) small.disk.write(write);

  ASSERT_TRUE(small.reopen());
  for (int i = 0; i < 4; ++i) {
    small.use(5, 2 * kRegion + 100);
    small.commit();
    ASSERT_TRUE(small.reopen());
    for (u64 block = kept.block; block < kept.end(); ++block)
      EXPECT_TRUE(*small.space->is_used(block));
  }
}

TEST(FreeSpace, opening_a_large_store_reads_nothing_but_the_map) {
  constexpr u64 kTebibyte = (u64{1} << 40) / kBlockBytes;
  Small small(16 * kTebibyte);
  const auto first = small.commit();
  EXPECT_EQ(first.size(), 2U * 133);  // a format writes no region that nothing is in
  small.use(1000);
  small.commit();
  small.disk.reads = 0;
  ASSERT_TRUE(small.reopen());
  EXPECT_EQ(small.disk.reads, 2U * 133);
  EXPECT_EQ(small.space->regions_loaded(), 0U);
  EXPECT_EQ(small.space->blocks_free(), 16 * kTebibyte - small.used);
  small.use(1000);
  EXPECT_EQ(small.disk.reads, 2U * 133 + 1);
}

TEST(FreeSpace, writers_in_sequence_get_long_runs_and_nodes_keep_out_of_their_way) {
  for (const u64 blocks : {u64{4096}, 4 * kRegion}) {
    Small small(blocks);
    u64 got = 0, runs = 0, next = 0, broken = 0;
    while (got < blocks * 3 / 4) {
      const BlockRun data = small.use(256);
      broken += data.block != next ? 1 : 0;
      next = data.end();
      got += data.count;
      ++runs;
      if (runs % 16 != 0) continue;
      const auto node = small.space->allocate({4, 4, kNowhere});
      ASSERT_TRUE(node);
      EXPECT_GT(node->block, blocks * 7 / 8);
    }
    EXPECT_GE(got / runs, 250U);
    EXPECT_LE(broken, 3 + blocks / kRegion);
  }
}

TEST(FreeSpace, the_last_free_block_is_found_and_then_no_more) {
  Small small(2 * kRegion + 100);
  std::vector<BlockRun> runs;
  while (small.space->blocks_free() > 0) runs.push_back(small.use(kRegionBlocks));
  EXPECT_LT(runs.size(), 20U);
  EXPECT_EQ(small.space->allocate({1, 1, kNowhere}).error().code, Errc::no_space);
  small.space->release_unwritten({runs[1].block + 7, 1});
  EXPECT_EQ(small.space->allocate({2, 2, kNowhere}).error().code, Errc::no_space);
  EXPECT_EQ(*small.space->allocate({9, 1, kNowhere}), (BlockRun{runs[1].block + 7, 1}));
}

TEST(FreeSpace, a_hint_is_honoured_and_a_cancelled_tail_leaves_no_hole) {
  Small small(3 * kRegion);
  const u64 hint = 2 * kRegion + 777;
  EXPECT_EQ(*small.space->allocate({32, 1, hint}), (BlockRun{hint, 32}));
  const BlockRun first = *small.space->allocate({32, 1, kNowhere});
  small.space->cancel({first.block + 20, 12});
  EXPECT_EQ(small.space->allocate({32, 1, kNowhere})->block, first.block + 20);
}

TEST(FreeSpace, the_only_run_is_found_where_the_search_begins_inside_it) {
  Small small(2 * kRegion);
  while (small.space->blocks_free() > 0) small.use(kRegionBlocks);
  small.space->release_unwritten({kRegion + 1000, 50});
  EXPECT_EQ(*small.space->allocate({50, 50, kRegion + 1030}), (BlockRun{kRegion + 1000, 50}));
}

// A reader holds the pins of the recovered generation while their region is written and forgotten.
TEST(FreeSpace, pins_of_the_recovered_generation_are_found_once) {
  Small small(4 * kRegion);
  const BlockRun run = small.use(10, kRegion + 100);
  small.commit();
  ASSERT_TRUE(small.space->release({run.block, 5}, small.generation + 1));
  small.commit();
  ASSERT_TRUE(small.reopen());
  small.space->limit_loaded(0);
  EXPECT_EQ(small.space->blocks_pinned(), 5U);
  const u64 recovered = small.generation;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(
        small.space->release({run.block + 5 + static_cast<u64>(i), 1}, small.generation + 1));
    small.used = small.space->blocks_used();
    const auto writes = small.space->slots_to_write(++small.generation);
    for (const auto& write : *writes) small.disk.write(write);
    EXPECT_EQ(small.space->blocks_pinned(), 6U + static_cast<u64>(i));
    EXPECT_EQ(small.space->allocate({5, 1, run.block})->block, run.end() + 5 * static_cast<u64>(i));
  }
  small.space->unpin_through(recovered);
  EXPECT_EQ(small.space->blocks_pinned(), 3U);
  EXPECT_EQ(*small.space->allocate({5, 1, run.block}), (BlockRun{run.block, 5}));
  EXPECT_TRUE(small.space->damage().empty());
}

// Its slot of the generation before recovery has been written over by then.
TEST(FreeSpace, a_region_that_is_read_again_is_not_searched_for_pins) {
  Small small(4 * kRegion);
  for (int i = 0; i < 2; ++i) {
    small.use(10, kRegion + 100);
    small.commit();
  }
  ASSERT_TRUE(small.reopen());
  small.space->limit_loaded(0);
  for (int i = 0; i < 8; ++i) {
    if (i % 2 == 0) small.use(10, kRegion + 100);
    const auto writes = small.space->slots_to_write(++small.generation);
    for (const auto& write : *writes) small.disk.write(write);
  }
  EXPECT_EQ(small.space->regions_loaded(), 0U);
  EXPECT_TRUE(*small.space->is_used(kRegion + 159));
  EXPECT_TRUE(small.space->damage().empty());
}

TEST(FreeSpace, a_region_without_pins_is_forgotten_and_read_again) {
  Small small(4 * kRegion);
  small.space->limit_loaded(0);
  std::vector<BlockRun> runs;
  for (u64 i = 0; i < 12; ++i) {
    runs.push_back(small.use(10, (i % 4) * kRegion + 200));
    small.commit();
    EXPECT_LE(small.space->regions_loaded(), 2U);
    for (const BlockRun& run : runs) EXPECT_TRUE(*small.space->is_used(run.end() - 1));
  }
}

TEST(FreeSpace, releases_of_what_is_not_used_are_refused) {
  Small small(3 * kRegion);
  const BlockRun run = small.use(8);
  const u64 used = small.space->blocks_used();
  const std::vector<BlockRun> wrong = {
      {0, 1}, {run.block, 9}, {run.end(), 1}, {3 * kRegion - 1, 2}, {~u64{0} - 1, 4}, {kRegion, 1}};
  for (const BlockRun& bad : wrong)
    EXPECT_EQ(small.space->release(bad, 1).error().code, Errc::malformed) << bad.block;
  EXPECT_EQ(small.space->blocks_used(), used);
  EXPECT_DEATH(small.space->cancel(run), "");
  EXPECT_DEATH(small.space->mark_used(run), "");
}

TEST(FreeSpace, a_committed_block_cannot_be_freed_at_once) {
  Small small(kRegion);
  const BlockRun run = small.use(4);
  small.commit();
  EXPECT_DEATH(small.space->release_unwritten(run), "committed");
}

// --- damage ------------------------------------------------------------------------------------

TEST(FreeSpace, a_region_whose_slot_rots_gives_nothing_and_loses_what_is_released) {
  for (const bool unreadable : {false, true}) {
    Small small(3 * kRegion);
    const BlockRun run = small.use(10, kRegion + 100);
    const u64 older = Small::slot_of(small.commit(), 1);
    ASSERT_TRUE(small.space->release({run.block, 3}, small.generation + 1));
    const u64 slot = Small::slot_of(small.commit(), 1);
    ASSERT_NE(slot, older);
    if (unreadable)
      small.disk.unreadable.insert(slot);
    else
      small.disk.flip(slot);

    ASSERT_TRUE(small.reopen());
    const u64 used = small.space->blocks_used();
    EXPECT_EQ(small.space->blocks_pinned(), 3U);
    EXPECT_TRUE(small.space->is_used(0) && small.space->is_used(2 * kRegion));
    ASSERT_TRUE(small.space->release({run.block + 3, 7}, small.generation + 1));
    EXPECT_EQ(small.space->blocks_used(), used - 7);
    EXPECT_GE(small.space->blocks_lost(), kRegion - 32);
    ASSERT_EQ(small.space->damage().size(), 1U);
    const FreeSpace::Damage& damage = small.space->damage().front();
    EXPECT_EQ(damage.region, 1U);
    EXPECT_EQ(damage.error.code, unreadable ? Errc::io : Errc::damaged);
    EXPECT_EQ(damage.error.at, slot * kBlockBytes);
    EXPECT_FALSE(small.space->is_used(run.block));

    small.space->unpin_through(small.generation);
    EXPECT_EQ(small.space->blocks_pinned(), 0U);
    while (small.space->blocks_free() > 0) {
      const auto more = small.space->allocate({kRegionBlocks, 1, kRegion + 5});
      ASSERT_TRUE(more) << more.error().what;  // what is counted as free is there
      EXPECT_TRUE(more->end() <= kRegion || more->block >= 2 * kRegion);
    }
    EXPECT_EQ(small.space->allocate({1, 1, kNowhere}).error().code, damage.error.code);
    // The slot stays as it is, and a later opening meets it again.
    small.commit();
    ASSERT_TRUE(small.reopen());
    EXPECT_FALSE(small.space->is_used(run.block));
  }
}

// As many blocks are used after each commit, so that no count tells the versions of a slot apart.
struct Rewritten : Small {
  Rewritten() : Small(3 * kRegion) {
    for (int i = 0; i < 5; ++i) rewrite();
  }
  void rewrite() {
    if (run.count != 0) {
      EXPECT_TRUE(space->release(run, generation + 1));
    }
    run = use(10, kRegion + 100 + 20 * generation);
    before = disk.blocks;
    slot = slot_of(commit(), 1);
  }
  BlockRun run;
  std::map<u64, std::vector<std::byte>> before;  // the last commit
  u64 slot = 0;                                  // of region 1, in that
};

// What was there before verifies by itself; it calls blocks free that are used.
TEST(FreeSpace, a_slot_whose_last_write_was_lost_is_damage) {
  Rewritten store;
  ASSERT_TRUE(store.before.contains(store.slot));
  store.disk.blocks[store.slot] = store.before[store.slot];
  ASSERT_TRUE(store.reopen());
  const auto hinted = store.space->allocate({10, 1, store.run.block});
  ASSERT_TRUE(hinted);
  EXPECT_TRUE(hinted->end() <= kRegion || hinted->block >= 2 * kRegion);
  EXPECT_EQ(store.space->is_used(store.run.block).error().code, Errc::damaged);
  ASSERT_EQ(store.space->damage().size(), 1U);
  EXPECT_EQ(store.space->damage().front().region, 1U);
  EXPECT_EQ(store.space->damage().front().error.at, store.slot * kBlockBytes);
  while (store.space->blocks_free() > 0) {
    const auto more = store.space->allocate({kRegionBlocks, 1, store.run.block});
    ASSERT_TRUE(more) << more.error().what;
    EXPECT_TRUE(more->end() <= kRegion || more->block >= 2 * kRegion);
  }
}

// Its map is held to what it says, too; of the pins nothing is known then.
TEST(FreeSpace, a_lost_write_in_the_generation_before_is_listed_and_does_no_harm) {
  Rewritten store;
  const u64 slot = store.slot;
  const auto older = store.before[slot];
  store.rewrite();
  ASSERT_NE(store.slot, slot);
  store.disk.blocks[slot] = older;
  ASSERT_TRUE(store.reopen());
  EXPECT_TRUE(*store.space->is_used(store.run.block));
  ASSERT_EQ(store.space->damage().size(), 1U);
  EXPECT_EQ(store.space->damage().front().error.code, Errc::damaged);
  EXPECT_EQ(store.space->damage().front().error.at, slot * kBlockBytes);
  EXPECT_EQ(store.space->blocks_lost(), 0U);
}

// A commit that the power cut off before its superblock, and the next one, which has its number.
struct Recommitted : Small {
  explicit Recommitted(u32 regions = 3, u32 lost_blocks = 10) : Small(regions * kRegion) {
    use(10, kRegion + 100);
    commit();
    use(lost_blocks, kRegion + 200);
    const auto writes = space->slots_to_write(generation + 1);
    EXPECT_TRUE(writes);
    for (const auto& write : *writes) disk.write(write);
    lost = disk.blocks;
    EXPECT_TRUE(reopen());
    run = use(10, kRegion + 300);
    for (const auto& write : commit())
      (load_disk<BitmapSlotDisk>(write.image).magic == kBitmapMagic ? slots : maps)
          .push_back(write.block);
  }
  std::map<u64, std::vector<std::byte>> lost;  // with what the first of them wrote
  std::vector<u64> slots, maps;                // that the second one wrote
  BlockRun run;                                // in use since then
};

TEST(FreeSpace, a_slot_that_a_lost_commit_of_the_same_number_left_is_damage) {
  Recommitted store;
  ASSERT_EQ(store.slots.size(), 1U);
  store.disk.blocks[store.slots[0]] = store.lost[store.slots[0]];  // the later write was lost
  ASSERT_TRUE(store.reopen());
  EXPECT_EQ(store.space->is_used(store.run.block).error().code, Errc::damaged);
}

TEST(FreeSpace, a_map_that_a_lost_commit_of_the_same_number_left_is_not_believed) {
  Recommitted store;
  ASSERT_EQ(store.maps.size(), 2U);
  for (const u64 map : store.maps) {
    const auto meant = std::exchange(store.disk.blocks[map], store.lost[map]);
    ASSERT_TRUE(store.reopen());
    EXPECT_TRUE(store.space->damage().empty());
    const auto is_used = store.space->is_used(store.run.block);
    EXPECT_TRUE(is_used && *is_used);
    store.disk.blocks[map] = meant;
  }
  // Nor when it is the map of the generation before.
  store.disk.blocks[store.maps[0]] = store.lost[store.maps[0]];
  store.use(10, kRegion + 400);
  store.commit();
  ASSERT_TRUE(store.reopen());
  EXPECT_TRUE(*store.space->is_used(store.run.block));
  EXPECT_TRUE(store.space->damage().empty());
}

// Beside the other blocks of its copy it is a contradiction.
TEST(FreeSpace, a_block_of_a_map_that_a_lost_commit_left_has_its_twin) {
  Recommitted store(kMapRegions + 3, 20);
  ASSERT_EQ(store.maps.size(), 4U);
  for (const u64 map : store.maps) {
    const auto meant = std::exchange(store.disk.blocks[map], store.lost[map]);
    const auto recovered = store.reopen();
    ASSERT_TRUE(recovered) << recovered.error().what;
    EXPECT_TRUE(*store.space->is_used(store.run.block));
    EXPECT_TRUE(store.space->damage().empty());
    store.disk.blocks[map] = meant;
  }
}

TEST(FreeSpace, a_map_whose_copies_are_both_of_a_lost_commit_is_damage) {
  Recommitted store;
  for (const u64 map : store.maps) store.disk.blocks[map] = store.lost[map];
  EXPECT_EQ(store.reopen().error().code, Errc::damaged);
}

TEST(FreeSpace, a_map_that_says_what_an_unwritten_region_has_is_malformed) {
  SlotMap map(3);
  map.entries[1] = {1, FreeClass::under_half, 0xabcdef1};
  std::vector<std::byte> block(kBlockBytes);
  map.encode(0, block);
  SlotMap read(3);
  ASSERT_TRUE(read.decode(0, 0, block, 0));
  EXPECT_EQ(read.entries[1].check, 0xabcdef1U);
  map.entries[1].slot = kSlotNone;
  map.encode(0, block);
  EXPECT_EQ(read.decode(0, 0, block, 0).error().code, Errc::malformed);
}

TEST(FreeSpace, a_rotten_copy_of_the_map_has_its_twin_and_both_are_damage) {
  Small small(3 * kRegion);
  small.use(10);
  std::vector<u64> maps;
  for (const auto& write : small.commit())
    if (load_disk<SlotMapDisk>(write.image).magic == kSlotMapMagic) maps.push_back(write.block);
  ASSERT_EQ(maps.size(), 2U);
  EXPECT_GT(maps[1], maps[0] + kRegion / 2);
  small.disk.flip(maps[0]);
  EXPECT_TRUE(small.reopen());
  EXPECT_EQ(small.space->blocks_used(), small.used);

  small.disk.flip(maps[1]);
  const auto recovered = small.reopen();
  ASSERT_FALSE(recovered);
  EXPECT_EQ(recovered.error().code, Errc::damaged);
  EXPECT_EQ(recovered.error().at, maps[0] * kBlockBytes);
  EXPECT_EQ(small.space->blocks_free(), 0U);
  EXPECT_EQ(small.space->allocate({1, 1, kNowhere}).error().code, Errc::damaged);
  EXPECT_FALSE(small.space->slots_to_write(small.generation + 1));
  EXPECT_TRUE(small.space->release({100, 1}, 2));
}

TEST(FreeSpace, counts_that_disagree_are_refused) {
  Small small(3 * kRegion);
  small.use(10);
  small.commit();
  EXPECT_EQ(small.open()
                .recover({small.generation, small.used + 1, small.sum, small.sum_before})
                .error()
                .code,
            Errc::malformed);
  EXPECT_EQ(small.open()
                .recover({small.generation + 3, small.used, small.sum, small.sum_before})
                .error()
                .code,
            Errc::damaged);
}

TEST(FreeSpace, rot_in_the_generation_before_is_listed_and_does_no_harm) {
  Small small(2 * kRegion);
  const BlockRun run = small.use(10, 500);
  const u64 slot = Small::slot_of(small.commit(), 0);
  ASSERT_TRUE(small.space->release(run, small.generation + 1));
  small.commit();
  small.disk.flip(slot);
  ASSERT_TRUE(small.reopen());
  EXPECT_EQ(small.space->blocks_pinned(), 10U);
  EXPECT_FALSE(*small.space->is_used(run.block));
  EXPECT_EQ(small.space->damage().size(), 1U);
  EXPECT_EQ(small.space->blocks_lost(), 0U);
  small.commit();
  EXPECT_EQ(small.space->blocks_pinned(), 0U);
  EXPECT_EQ(*small.space->allocate({10, 10, run.block}), run);
}

// docs/disk_format.md, "Free space".
TEST(FreeSpace, the_first_commit_is_the_worked_example) {
  SpaceDisk disk;
  FreeSpace space(16384, {{0, 16}, {16, 1}, {272, 1}, {16112, 1}, {16368, 1}}, disk.reader());
  space.format();
  space.mark_used(*space.allocate({10, 1, 1000}));
  const auto writes = space.slots_to_write(1);
  ASSERT_EQ(writes->size(), 3U);
  EXPECT_EQ((*writes)[0].block, 17U);
  EXPECT_EQ((*writes)[1].block, 21U);
  EXPECT_EQ((*writes)[2].block, 24U);
  const auto& slot = (*writes)[0].image;
  EXPECT_EQ(slot[64], std::byte{0xff});
  EXPECT_EQ(slot[64 + 3], std::byte{0x03});  // blocks 24 and 25
  EXPECT_EQ(slot[64 + 125], std::byte{0xff});
  EXPECT_EQ(slot[64 + 126], std::byte{0x03});
  EXPECT_EQ(load_disk<BitmapSlotDisk>(slot).used_count, 16U + 4 + 9 + 10);
  EXPECT_EQ(load_disk<SlotMapDisk>((*writes)[1].image).used_blocks, 16U + 4 + 9 + 10);
  const u32 entry = load_disk<Le32>(Bytes((*writes)[1].image).subspan(64));
  EXPECT_EQ(entry & 15U, 0x0cU);
  EXPECT_EQ(entry >> 4, slot_check(load_disk<BitmapSlotDisk>(slot).checksum));
  EXPECT_EQ((*writes)[1].image, (*writes)[2].image);
}

// --- layout ------------------------------------------------------------------------------------

TEST(FreeSpace, places_do_not_meet_on_devices_of_any_size) {
  std::mt19937_64 random(7);
  for (u64 i = 0; i < 300; ++i) {
    u64 blocks = 4096 + random() % (5 * kRegion);
    if (i < 130) blocks = (1 + i % 3) * kRegion + i;  // short last regions
    const std::vector<BlockRun> others = {{0, 1},          {16, 1},          {blocks / 3, 1},
                                          {blocks / 2, 2}, {blocks - 17, 1}, {blocks - 1, 1}};
    const SpaceLayout layout(blocks, others);
    std::set<u64> seen;
    const auto add = [&](u64 block) {
      ASSERT_LT(block, blocks);
      ASSERT_TRUE(seen.insert(block).second) << block << " of " << blocks;
      ASSERT_TRUE(layout.is_reserved(block)) << block << " of " << blocks;
    };
    for (const BlockRun& run : others)
      for (u64 block = run.block; block < run.end(); ++block) add(block);
    for (u32 region = 0; region < layout.regions(); ++region)
      for (u32 slot = 0; slot < kSlotsPerRegion; ++slot) add(layout.slot_block(region, slot));
    for (u32 copy = 0; copy < 2; ++copy)
      for (u64 generation = 0; generation < kMapPlaces; ++generation)
        for (u32 part = 0; part < layout.map_blocks(); ++part)
          add(layout.map_block(copy, generation, part));
    const u64 end = std::min(blocks, u64{layout.regions()} * kRegion);
    for (u64 block = end; block < blocks; ++block) seen.insert(block);
    u64 reserved = 0, listed = blocks - end;
    for (u64 block = 0; block < blocks; ++block) reserved += layout.is_reserved(block) ? 1 : 0;
    for (u32 region = 0; region < layout.regions(); ++region)
      for (const auto& run : layout.reserved_in(region)) listed += run.count;
    EXPECT_EQ(reserved, seen.size()) << blocks;
    EXPECT_EQ(layout.blocks_reserved(), seen.size()) << blocks;
    EXPECT_EQ(listed, seen.size()) << blocks;
  }
}

}  // namespace
}  // namespace latchkey::tests
