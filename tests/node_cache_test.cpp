// Goal: the clean nodes in memory stay within their bound (design D6), those used last stay, and
// nodes that are dirty or in somebody's hands are not taken away; memory that ends leaves no half
// of a node. Method: a cache of its own over a store of many nodes; who is still alive is counted
// by weak pointers; the n-th allocation fails. And the store's option, by the reads that a second
// walk over everything costs.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "engine/node_cache.h"
#include "engine/superblock.h"
#include "tests/support/own_new.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {

namespace {
thread_local bool counting = false;
thread_local i64 allocations_left = 0;  // until one fails
}  // namespace

void* own_allocate(std::size_t size, std::size_t align) noexcept {
  if (counting && allocations_left-- == 0) return nullptr;
  return from_malloc(size, align);
}
void own_release(void* allocated) noexcept { std::free(allocated); }

namespace {

using namespace engine;  // NOLINT: the whole file is about it

constexpr u32 kNodeBytes = 4096;
constexpr u64 kCacheBytes = u64{32} * kNodeBytes;
constexpr u64 kNodesMax = 32 + 8;  // a few beyond the bytes, so that a path always fits

class NodeCacheTest : public StoreTest {
 protected:
  void SetUp() override {
    make(32 * kMiB, kNodeBytes);
    for (u64 i = 0; i < kRecords; ++i) ASSERT_TRUE(put({i, 1, 0}, seeded_bytes(i, 900)));
    ASSERT_TRUE(store_->commit());
    auto io = device_->make_io({});
    ASSERT_TRUE(io);
    auto scan = scan_superblocks(**io, device_->info().size_bytes);
    ASSERT_TRUE(scan);
    volume_ = scan->newest(false)->volume_id;
    const Pointer top = scan->newest(false)->root;
    const NodePtr node = *cache(~u32{0})->get(top, kRootTree);
    const u32 index = node->lower_bound({kFirstSubvolume, kTreeRecordType, 0});
    collect(*cache(~u32{0}), from_disk(load_disk<TreeRecordDisk>(node->value(index)).root));
    ASSERT_GT(pointers_.size(), 200U);
  }
  std::unique_ptr<NodeCache> cache(u64 bytes) {
    const auto read = [this](u64 block, MutableBytes into) -> Result<void> {
      ++reads_;
      device_->peek(block * kBlockBytes, into);
      return {};
    };
    return std::make_unique<NodeCache>(NodeCache::Options{volume_, kNodeBytes, bytes}, read);
  }
  void collect(NodeCache& nodes, const Pointer& pointer) {
    pointers_.push_back(pointer);
    const NodePtr node = *nodes.get(pointer, kFirstSubvolume);
    for (u32 i = 0; node->level() != 0 && i < node->count(); ++i) collect(nodes, node->child(i));
  }
  u64 alive() const {
    return static_cast<u64>(
        std::ranges::count_if(seen_, [](const auto& node) { return !node.expired(); }));
  }
  NodePtr get(NodeCache& nodes, std::size_t index) {
    auto node = nodes.get(pointers_[index], kFirstSubvolume);
    EXPECT_TRUE(node);
    return *node;
  }

  static constexpr u64 kRecords = 1000;
  VolumeId volume_{};
  std::vector<Pointer> pointers_;
  std::vector<std::weak_ptr<const Node>> seen_;
  u64 reads_ = 0;
};

TEST_F(NodeCacheTest, clean_nodes_stay_within_the_bound_and_the_last_used_stay) {
  const auto nodes = cache(kCacheBytes);
  const NodePtr kept = get(*nodes, 0);
  for (std::size_t i = 0; i < pointers_.size(); ++i) {
    seen_.push_back(get(*nodes, i));
    ASSERT_LE(alive(), kNodesMax + 1) << i;  // and the one that is kept
  }
  EXPECT_EQ(alive(), kNodesMax + 1);
  const u64 before = reads_;
  for (std::size_t i = pointers_.size() - kNodesMax; i < pointers_.size(); ++i) get(*nodes, i);
  EXPECT_EQ(reads_, before) << "what was used last is not there";
  get(*nodes, 1);
  EXPECT_EQ(reads_, before + 1) << "what was used first is still there";
  EXPECT_EQ(kept->count(), get(*nodes, 0)->count());
}

TEST_F(NodeCacheTest, dirty_nodes_stay_and_count_once_they_are_clean) {
  const auto nodes = cache(kCacheBytes);
  std::vector<u64> dirty;
  for (std::size_t i = 1; i <= 100; ++i) {
    NodePtr node = Node::create(kNodeBytes);
    node->copy_from(*get(*nodes, i));
    nodes->insert_dirty(node);
    dirty.push_back(node->place());
    seen_.push_back(node);
  }
  for (std::size_t i = 101; i < pointers_.size(); ++i) get(*nodes, i);
  EXPECT_EQ(alive(), 100U);
  for (const u64 place : dirty) nodes->make_clean(place);
  EXPECT_LE(alive(), kNodesMax);
}

TEST_F(NodeCacheTest, a_node_that_met_the_end_of_memory_is_read_again) {
  u32 failed = 0;
  for (std::size_t i = 1; i < 20; ++i) {
    for (i64 nth = 0;; ++nth) {
      const auto nodes = cache(kCacheBytes);
      allocations_left = nth;
      counting = true;
      bool ended = false;
      try {
        ended = !nodes->get(pointers_[i], kFirstSubvolume);
      } catch (const std::bad_alloc&) {
        ended = true;
      }
      counting = false;
      EXPECT_EQ(get(*nodes, i)->place(), pointers_[i].place[0]);
      EXPECT_EQ(get(*nodes, i)->place(), pointers_[i].place[0]) << "as it was kept";
      if (!ended) break;
      ++failed;
    }
  }
  EXPECT_GE(failed, 19 * 3U) << "the node, its entry and its place in the list";
}

TEST_F(NodeCacheTest, a_store_keeps_to_its_option) {
  const auto second_walk = [this](u64 bytes) {
    open({.read_only = true, .cache_bytes = bytes});
    u64 reads = 0;
    for (int walk = 0; walk < 2; ++walk) {
      reads = device_->counters().reads;
      u64 records = 0;
      EXPECT_TRUE(store_->view().scan(kFirstSubvolume, {}, {~u64{0}, 255, ~u64{0}},
                                      [&](const Key&, Bytes) { return ++records != 0; }));
      EXPECT_EQ(records, kRecords);
    }
    return device_->counters().reads - reads;
  };
  EXPECT_EQ(second_walk(64 * kMiB), 0U);
  EXPECT_GE(second_walk(kCacheBytes), pointers_.size() - kNodesMax);
}

}  // namespace
}  // namespace latchkey::tests
