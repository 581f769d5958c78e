// Goal: free space never gives out what a committed tree, a reader or the generation before may
// still need, its counts are exact at every moment, and a crash at any commit, torn or whole, leads
// back to the last durable state, over and over (design D1, S5). Method: seeded random operations
// on a small device of several regions, beside a model that is one state for each block; a crash
// drops, keeps or tears each block of the commit that was under way.

#include "engine/free_space.h"
#include "tests/support/seed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>

#include "tests/support/space_disk.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

constexpr u64 kRegion = kRegionBlocks;

enum class State : u8 { free, allocated, used, pinned };

// The same with one state for each block, and what the two last generations use.
struct Model {
  explicit Model(u64 blocks) : state(blocks), pinned_in(blocks) {}

  void recover() {
    for (u64 block = 0; block < state.size(); ++block) {
      state[block] = committed[block] ? State::used : State::free;
      if (!committed[block] && before[block]) {
        state[block] = State::pinned;
        pinned_in[block] = generation;
      }
    }
  }
  u64 count(State wanted) const { return static_cast<u64>(std::ranges::count(state, wanted)); }
  void unpin_through(u64 transaction) {
    for (u64 block = 0; block < state.size(); ++block)
      if (state[block] == State::pinned && pinned_in[block] <= transaction)
        state[block] = State::free;
  }
  void commit(const Checksum& map) {
    map_older = map_before;
    map_before = std::exchange(map_committed, map);
    before = std::move(committed);
    committed.resize(state.size());
    for (u64 block = 0; block < state.size(); ++block)
      committed[block] = state[block] == State::used;
    ++generation;
  }

  std::vector<State> state;
  std::vector<u64> pinned_in;
  std::vector<bool> committed, before;
  Checksum map_committed{}, map_before{}, map_older{};
  u64 generation = 0;
};

class World {
 public:
  World(u64 blocks, u64 seed) : random_(seed), blocks_(blocks), model_(blocks) {
    open();
    space_->format();
    for (u64 block = 0; block < blocks; ++block)
      if (space_->is_reserved(block)) model_.state[block] = State::used;
    model_.commit(space_->map_checksum());
    model_.generation = 0;
    model_.before = model_.committed;
  }

  void run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFatalFailure(); ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step);
      const u64 dice = random_() % 100;
      if (dice < 40) {
        allocate();
      } else if (dice < 50) {
        cancel();
      } else if (dice < 65) {
        use();
      } else if (dice < 80) {
        release();
      } else if (dice < 85) {
        drop_unwritten();
      } else if (dice < 97) {
        commit();
      } else {
        crash();
      }
      check_counts();
    }
    check_bits();
  }

 private:
  void open() {
    space_ = std::make_unique<FreeSpace>(blocks_, space_places(blocks_), disk_.reader());
    space_->limit_loaded(2);
  }

  void allocate() {
    FreeSpace::Want want;
    want.wanted = 1 + static_cast<u32>(random_() % (random_() % 8 == 0 ? 9000 : 64));
    want.count_min = random_() % 3 == 0 ? want.wanted : 1;
    if (random_() % 4 == 0) want.hint = random_() % blocks_;
    const auto run = space_->allocate(want);
    if (!run) {
      ASSERT_EQ(run.error().code, Errc::no_space) << run.error().what;
      EXPECT_LT(longest_free(), want.count_min);
      return;
    }
    ASSERT_GE(run->count, want.count_min);
    ASSERT_LE(run->count, want.wanted);
    expect_all(*run, State::free);
    if (testing::Test::HasFatalFailure()) return;
    change(*run, State::allocated);
    allocated_.push_back(*run);
  }

  BlockRun take(std::vector<BlockRun>& runs) {
    const std::size_t i = random_() % runs.size();
    BlockRun run = runs[i];
    // Sometimes only its front or its back.
    const u32 part = random_() % 2 == 0 ? run.count : 1 + static_cast<u32>(random_() % run.count);
    const bool front = random_() % 2 == 0;
    const BlockRun taken{front ? run.block : run.end() - part, part};
    runs[i] = {front ? run.block + part : run.block, run.count - part};
    if (runs[i].count == 0) runs.erase(runs.begin() + static_cast<std::ptrdiff_t>(i));
    return taken;
  }

  void cancel() {
    if (allocated_.empty()) return;
    const BlockRun run = take(allocated_);
    space_->cancel(run);
    change(run, State::free);
  }

  void use() {
    if (allocated_.empty()) return;
    const BlockRun run = take(allocated_);
    space_->mark_used(run);
    change(run, State::used);
    fresh_.push_back(run);
  }

  void release() {
    auto& runs = used_.empty() || random_() % 4 == 0 ? fresh_ : used_;
    if (runs.empty()) return;
    const BlockRun run = take(runs);
    const u64 transaction = model_.generation + 1;
    const auto released = space_->release(run, transaction);
    ASSERT_TRUE(released) << released.error().what;
    change(run, State::pinned);
    for (u64 block = run.block; block < run.end(); ++block) model_.pinned_in[block] = transaction;
    // A second time it is damage, and changes nothing.
    const auto again = space_->release(run, transaction);
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code, Errc::malformed);
  }

  void drop_unwritten() {
    if (fresh_.empty()) return;
    const BlockRun run = take(fresh_);
    space_->release_unwritten(run);
    change(run, State::free);
  }

  void commit() {
    const auto writes = space_->slots_to_write(model_.generation + 1);
    ASSERT_TRUE(writes) << writes.error().what;
    expect_places_free(*writes);
    for (const auto& write : *writes) disk_.write(write);
    model_.commit(space_->map_checksum());
    used_.insert(used_.end(), fresh_.begin(), fresh_.end());
    fresh_.clear();
    // Sometimes a reader keeps it back.
    if (random_() % 4 != 0) {
      space_->unpin_through(model_.generation - 1);
      model_.unpin_through(model_.generation - 1);
    }
  }

  // A commit's own writes spare what the two generations before it mean, which is why a copy of the
  // disk as it was must recover to each of them in spite of those writes.
  void expect_places_free(const std::vector<FreeSpace::SlotWrite>& writes) {
    if (random_() % 8 != 0 || model_.generation == 0) return;
    SpaceDisk after = disk_;
    for (const auto& write : writes) after.tear(write, random_);
    FreeSpace newest(blocks_, space_places(blocks_), after.reader());
    expect_state(newest, model_.generation, model_.committed,
                 {model_.map_committed, model_.map_before});
    FreeSpace previous(blocks_, space_places(blocks_), after.reader());
    expect_state(previous, model_.generation - 1, model_.before,
                 {model_.map_before, model_.map_older});
  }

  void expect_state(FreeSpace& space, u64 generation, const std::vector<bool>& used,
                    const std::array<Checksum, 2>& maps) {
    const auto count = static_cast<u64>(std::ranges::count(used, true));
    const auto recovered = space.recover({generation, count, maps[0], maps[1]});
    ASSERT_TRUE(recovered) << recovered.error().what;
    for (u64 block = 0; block < blocks_; block += 1 + random_() % 64) {
      const auto is_used = space.is_used(block);
      ASSERT_TRUE(is_used) << is_used.error().what;
      ASSERT_EQ(*is_used, used[block]) << "block " << block << ", generation " << generation;
    }
  }

  // Perhaps in the middle of a commit, of which any part may have reached the disk.
  void crash() {
    if (random_() % 4 != 0) {
      const auto writes = space_->slots_to_write(model_.generation + 1);
      ASSERT_TRUE(writes);
      const u64 kind = random_() % 3;
      for (const auto& write : *writes) {
        const u64 fate = kind == 0 ? 0 : random_() % 3;
        if (fate == 0)
          disk_.write(write);
        else if (fate == 1)
          disk_.tear(write, random_);
      }
    }
    model_.recover();
    allocated_.clear();
    fresh_.clear();
    used_.clear();
    for (u64 block = 0; block < blocks_; ++block) {
      if (model_.state[block] != State::used || space_->is_reserved(block)) continue;
      if (!used_.empty() && used_.back().end() == block && used_.back().count < 100)
        ++used_.back().count;
      else
        used_.push_back({block, 1});
    }
    open();
    disk_.reads = 0;
    const auto recovered = space_->recover(
        {model_.generation, model_.count(State::used), model_.map_committed, model_.map_before});
    ASSERT_TRUE(recovered) << recovered.error().what;
    EXPECT_LE(disk_.reads, 4U);
  }

  void check_counts() {
    ASSERT_EQ(space_->blocks_used(), model_.count(State::used));
    ASSERT_EQ(space_->blocks_free(), model_.count(State::free));
    ASSERT_EQ(space_->blocks_pinned(), model_.count(State::pinned));
    ASSERT_EQ(space_->blocks_allocated(), model_.count(State::allocated));
    ASSERT_EQ(space_->blocks_lost(), 0U);
    ASSERT_TRUE(space_->damage().empty()) << space_->damage().front().error.what;
  }

  void check_bits() {
    for (u64 block = 0; block < blocks_; ++block) {
      const auto is_used = space_->is_used(block);
      ASSERT_TRUE(is_used);
      ASSERT_EQ(*is_used, model_.state[block] == State::used) << block;
    }
  }

  void expect_all(BlockRun run, State wanted) {
    for (u64 block = run.block; block < run.end(); ++block) {
      ASSERT_EQ(model_.state[block], wanted) << "block " << block;
      ASSERT_FALSE(model_.committed[block]) << "block " << block;
    }
  }
  void change(BlockRun run, State to) {
    for (u64 block = run.block; block < run.end(); ++block) model_.state[block] = to;
  }
  u64 longest_free() const {  // within a region
    u64 longest = 0, run = 0;
    for (u64 block = 0; block < blocks_; ++block) {
      if (block % kRegion == 0) run = 0;
      run = model_.state[block] == State::free ? run + 1 : 0;
      longest = std::max(longest, run);
    }
    return longest;
  }

  std::mt19937_64 random_;
  u64 blocks_;
  SpaceDisk disk_;
  Model model_;
  std::unique_ptr<FreeSpace> space_;
  std::vector<BlockRun> allocated_, fresh_, used_;
};

TEST(FreeSpace, random_operations_and_crashes_agree_with_the_model) {
  for (const u64 seed : seeds(6)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    World world(3 * kRegion + 5000 * (seed % 8), seed);
    world.run(700);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(FreeSpace, a_nearly_full_device_agrees_with_the_model) {
  for (const u64 seed : seeds(20)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    World world(4096 + seed % 64, seed);
    world.run(1000);
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace latchkey::tests
