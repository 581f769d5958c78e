#pragma once
// A store on a simulated device, and the few operations that its tests are made of.

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "base/checksum.h"
#include "base/env.h"
#include "engine/store.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {

inline std::vector<std::byte> seeded_bytes(u64 seed, std::size_t size) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

class StoreTest : public ::testing::Test {
 protected:
  void make(u64 size, u32 node_bytes) {
    device_ = std::make_unique<SimDevice>(SimConfig{.size_bytes = size});
    engine::FormatOptions options;
    options.node_bytes = node_bytes;
    auto made = engine::Store::format(*device_, options);
    ASSERT_TRUE(made) << made.error().what;
    open();
  }
  void open(engine::OpenOptions options = {}) {
    store_.reset();
    auto opened = engine::Store::open(*device_, options, system_env());
    ASSERT_TRUE(opened) << opened.error().what;
    store_ = std::move(*opened);
  }
  Result<void> put(engine::Key key, Bytes value) {
    LK_TRY(engine::Reservation space, store_->reserve({0, 1, value.size()}));
    LK_TRY(engine::Transaction transaction, store_->begin(std::move(space)));
    return transaction.put(engine::kFirstSubvolume, key, value);
  }
  Result<bool> erase(engine::Key key) {
    LK_TRY(engine::Reservation space, store_->reserve({0, 1, 0}, true));
    LK_TRY(engine::Transaction transaction, store_->begin(std::move(space)));
    return transaction.erase(engine::kFirstSubvolume, key);
  }
  // `count` blocks as neighbours as they come, one extent for each run. no_space: nothing is added.
  Result<void> add_extents(u32 count, std::vector<engine::BlockRun>& runs) {
    LK_TRY(engine::Reservation space, store_->reserve({count, count + 1, count * 128}));
    std::vector<engine::BlockRun> mine;
    while (space.data_blocks() > 0) {
      mine.push_back(store_->allocate(space, static_cast<u32>(space.data_blocks())));
      if (mine.back().count == 0) return fail(Errc::damaged, "nothing could be allocated");
    }
    LK_TRY(engine::Transaction transaction, store_->begin(std::move(space)));
    const std::vector<std::byte> context(34, std::byte{7});
    for (const engine::BlockRun& run : mine) {
      LK_TRYV(transaction.insert_extent(run, 0, context, std::vector<u32>(run.count, 1)));
      runs.push_back(run);
    }
    return {};
  }
  Result<void> release(engine::BlockRun run) {
    LK_TRY(engine::Reservation space, store_->reserve({0, 2, 400}, true));
    LK_TRY(engine::Transaction transaction, store_->begin(std::move(space)));
    return transaction.release_extent(run);
  }
  void expect_clean() {
    auto result = engine::check_store(*store_, {});
    ASSERT_TRUE(result) << result.error().what;
    for (const engine::Finding& finding : result->findings)
      ADD_FAILURE() << finding.where << ": " << finding.what;
  }

  std::unique_ptr<SimDevice> device_;
  std::unique_ptr<engine::Store> store_;
};

}  // namespace latchkey::tests
