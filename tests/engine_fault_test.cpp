// Goal: what a caller was told is so, and no image can crash or hang the engine. Each test is one
// way in which that could go wrong. Method: single faults, and images whose checksums are right and
// whose contents are not.

#include <thread>

#include "engine/io_buffer.h"
#include "engine/node.h"
#include "engine/repair.h"
#include "engine/superblock.h"
#include "tests/support/seed.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

class FaultTest : public StoreTest {
 protected:
  Superblock newest() {
    auto io = device_->make_io({});
    auto scan = scan_superblocks(**io, device_->info().size_bytes);
    return *scan->newest(false);
  }
  // The root node of a tree as the newest commit has it, and the way back with right checksums.
  Pointer root_of(TreeId tree) {
    const Superblock superblock = newest();
    if (tree == kRootTree) return superblock.root;
    NodePtr root = load(superblock.root);
    const u32 index = root->lower_bound({tree, kTreeRecordType, 0});
    return from_disk(load_disk<TreeRecordDisk>(root->value(index)).root);
  }
  NodePtr load(const Pointer& pointer) {
    NodePtr node = Node::create(newest().node_bytes);
    device_->peek(pointer.place[0] * kBlockBytes, node->bytes());
    node->validate({newest().volume_id, node->header().tree, pointer.level, pointer.generation,
                    pointer.place[0]});
    return node;
  }
  Pointer save(Pointer pointer, const Node& node) {
    pointer.checksum = checksum128(node.bytes());
    for (const u64 place : pointer.place) device_->overwrite(place * kBlockBytes, node.bytes());
    return pointer;
  }
  // Replaces the root node of the first subvolume and of everything above it.
  void forge(const Pointer& tree_root, const Node& node) {
    Superblock superblock = newest();
    NodePtr root = load(superblock.root);
    const TreeRecordDisk record{to_disk(save(tree_root, node)), u64{0}, u64{0}, {}};
    const u32 index = root->lower_bound({kFirstSubvolume, kTreeRecordType, 0});
    root->erase(index);
    root->insert(index, {kFirstSubvolume, kTreeRecordType, 0},
                 std::as_bytes(std::span(&record, 1)));
    superblock.root = save(superblock.root, *root);
    auto io = device_->make_io({});
    ASSERT_TRUE(write_superblocks(**io, superblock));
    ASSERT_TRUE(flush_sync(**io));
  }
  // Reads and changes everything there is; whatever it answers, it answers.
  void exercise() {
    auto opened = Store::open(*device_, {}, system_env());
    if (!opened) return;
    store_ = std::move(*opened);
    (void)check_store(*store_, {});
    (void)store_->view().get(kFirstSubvolume, {5, 1, 5});
    (void)store_->view().at_or_before(kFirstSubvolume, {~u64{0}, 255, ~u64{0}});
    (void)store_->view().scan(kFirstSubvolume, {}, {~u64{0}, 255, ~u64{0}},
                              [](const Key&, Bytes) { return true; });
    (void)put({5, 1, 5}, seeded_bytes(1, 900));
    (void)put({5, 1, 6}, seeded_bytes(2, 900));
    (void)erase({5, 1, 5});
    (void)store_->commit();
    (void)store_->close();
    store_.reset();
  }
  void make_leaves(int records) {
    make(16 * kMiB, 4096);
    for (int i = 0; i < records; ++i)
      ASSERT_TRUE(put({static_cast<u64>(i), 1, 0}, seeded_bytes(i, 900)));
    ASSERT_TRUE(store_->commit());
  }
};

// The erase leaves no dirty node behind: leaf and root go, the root becomes a leaf that is clean.
TEST_F(FaultTest, a_commit_covers_an_erase_that_leaves_only_clean_nodes) {
  make_leaves(0);
  u64 count = 0;
  do {
    ASSERT_TRUE(put({count, 1, 0}, seeded_bytes(count + 1, 900)));
    ASSERT_TRUE(store_->commit());
    ++count;
  } while (root_of(kFirstSubvolume).level == 0);
  const u32 left = load(load(root_of(kFirstSubvolume))->child(1))->count();
  for (u64 i = count - left; i < count; ++i) {
    ASSERT_TRUE(erase({i, 1, 0}));
    ASSERT_TRUE(store_->commit());
  }
  store_.reset();
  device_->crash(1);
  open();
  for (u64 i = 0; i < count; ++i) {
    auto record = store_->view().get(kFirstSubvolume, {i, 1, 0});
    ASSERT_TRUE(record);
    EXPECT_EQ(record->has_value(), i < count - left) << i;
  }
  expect_clean();
}

TEST_F(FaultTest, half_an_operation_is_not_committed_by_a_commit_that_waited_for_it) {
  make_leaves(40);
  open();
  auto space = store_->reserve({0, 2, 100});
  ASSERT_TRUE(space);
  auto transaction = store_->begin(std::move(*space));
  ASSERT_TRUE(transaction);
  ASSERT_TRUE(transaction->put(kFirstSubvolume, {0, 2, 0}, {}));
  Result<void> committed;
  std::thread other([&] { committed = store_->wait_durable(store_->running_transaction()); });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // it is inside and waits for us
  device_->bad_range(0, 16 * kMiB);
  EXPECT_FALSE(transaction->put(kFirstSubvolume, {39, 2, 0}, {}));
  device_->clear_faults();
  {
    const Transaction ended = std::move(*transaction);
  }
  other.join();
  EXPECT_FALSE(committed);
  store_.reset();
  open();
  EXPECT_FALSE(*store_->view().get(kFirstSubvolume, {0, 2, 0}));
}

TEST_F(FaultTest, nodes_are_read_while_every_ring_is_borrowed) {
  make_leaves(40);
  OpenOptions options;
  options.read_rings = 1;
  open(options);
  const BorrowedIo borrowed = store_->borrow_io();
  EXPECT_TRUE(*store_->view().get(kFirstSubvolume, {39, 1, 0}));
}

TEST_F(FaultTest, a_node_that_names_itself_is_damage) {
  make_leaves(40);
  store_.reset();
  const Pointer pointer = root_of(kFirstSubvolume);
  ASSERT_EQ(pointer.level, 1);
  NodePtr node = load(pointer);
  for (u32 i = 0; i < node->count(); ++i) {
    Pointer self = pointer;
    self.level = 0;
    node->set_child(i, self);
  }
  forge(pointer, *node);
  exercise();
}

// The generation that is about to run marks what is in memory only.
TEST_F(FaultTest, a_pointer_from_the_future_is_damage) {
  for (const u64 ahead : {1, 2, 1000}) {
    make_leaves(40);
    store_.reset();
    const u64 generation = newest().generation;
    const Pointer pointer = root_of(kFirstSubvolume);
    NodePtr node = load(pointer);
    Pointer child = node->child(0);
    NodePtr leaf = load(child);
    leaf->header().generation = generation + ahead;
    child.generation = generation + ahead;
    node->set_child(0, save(child, *leaf));
    forge(pointer, *node);
    const SimImage before = device_->snapshot();
    exercise();
    std::vector<std::byte> now(4096);
    device_->peek(child.place[0] * kBlockBytes, now);
    EXPECT_TRUE(std::equal(now.begin(), now.end(), leaf->bytes().begin()))
        << "a node of a committed tree was overwritten";
  }
}

// Commits of a repair would make it one of the past, and what it refers to believed.
TEST_F(FaultTest, a_tree_from_the_future_is_not_repaired_into_the_past) {
  for (const u64 ahead : {1, 2, 1000}) {
    make_leaves(3);
    store_.reset();
    Pointer pointer = root_of(kFirstSubvolume);
    ASSERT_EQ(pointer.level, 0);
    NodePtr node = load(pointer);
    pointer.generation = node->header().generation = newest().generation + ahead;
    forge(pointer, *node);
    device_->rot(
        superblock_place(newest().generation % 2, device_->info().size_bytes) * kBlockBytes, 16, 1);
    const u64 writes = device_->counters().writes;
    OpenOptions options;
    options.repair = true;
    open(options);
    const auto repaired = repair_store(*store_);
    ASSERT_TRUE(repaired);
    EXPECT_FALSE(repaired->sound);
    store_.reset();
    EXPECT_EQ(device_->counters().writes, writes) << "not even the rotten superblock";
  }
}

TEST_F(FaultTest, a_record_longer_than_any_we_write_is_damage) {
  make_leaves(1);
  store_.reset();
  const Pointer pointer = root_of(kFirstSubvolume);
  NodePtr node = load(pointer);
  node->erase(0);
  node->insert(0, {4, 1, 0}, seeded_bytes(1, 3900));
  forge(pointer, *node);
  exercise();
}

TEST_F(FaultTest, random_bits_under_right_checksums_do_not_crash) {
  make_leaves(40);
  store_.reset();
  const Pointer pointer = root_of(kFirstSubvolume);
  const SimImage image = device_->snapshot();
  for (const u64 seed : seeds(300)) {
    SCOPED_TRACE(seed);
    device_->restore(image);
    std::mt19937_64 random(seed);
    NodePtr node = load(pointer);
    const bool deep = seed % 2 == 1;
    const u32 index = static_cast<u32>(random() % node->count());
    Pointer child = node->child(index);
    NodePtr victim = deep ? load(child) : node;
    const u32 flips = 1 + static_cast<u32>(random() % 4);
    for (u32 i = 0; i < flips; ++i) {
      // Mostly where headers, slots and entries are.
      const u64 at = random() % (random() % 4 == 0 ? 4096 : 200);
      victim->bytes()[at] ^= static_cast<std::byte>(1U << random() % 8);
    }
    if (deep) {
      node->set_child(index, save(child, *victim));
      forge(pointer, *node);
    } else {
      forge(pointer, *victim);
    }
    exercise();
  }
}

TEST_F(FaultTest, a_superblock_has_its_bytes_where_the_document_says) {
  make(16 * kMiB, 4096);
  store_.reset();
  std::vector<std::byte> block(4096);
  const auto le = [&](std::size_t at, std::size_t size) {
    u64 value = 0;
    for (std::size_t i = size; i-- > 0;) value = value << 8 | static_cast<u64>(block[at + i]);
    return value;
  };
  // Generation 1 is in set 1: places 1 and 3.
  device_->peek(kMiB + 64 * kKiB, block);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(block.data()), 8), "latchkey");
  EXPECT_EQ(le(8, 4), 2U);               // format version
  EXPECT_EQ(le(12, 1), 1U);              // place
  EXPECT_EQ(le(16, 8), 1U);              // generation
  EXPECT_EQ(le(40, 8), 16 * kMiB);       // size
  EXPECT_EQ(le(48, 4), 4096U);           // block
  EXPECT_EQ(le(52, 4), 4096U);           // node
  EXPECT_EQ(le(56, 4), 32U);             // blocks of the longest extent
  EXPECT_EQ(le(64, 8) + le(72, 8), 0U);  // features: compat, ro_compat
  EXPECT_EQ(le(80, 8), 2U);              // incompat: the log may have new files
  EXPECT_NE(le(88, 8), 0U);              // root: first place
  EXPECT_NE(le(96, 8), 0U);              // root: second place
  EXPECT_EQ(le(104, 8), 1U);             // root: generation
  EXPECT_EQ(le(160, 8), 4U);             // nodes
  std::vector<std::byte> map(4096);
  device_->peek(21 * 4096, map);  // of generation 1
  const Checksum of_map = checksum128(Bytes(map).subspan(32, 32));
  EXPECT_TRUE(std::ranges::equal(Bytes(block).subspan(568, 32), of_map));
  device_->peek(16 * kMiB - kMiB - 64 * kKiB, block);
  EXPECT_EQ(le(12, 1), 3U);
}

}  // namespace
}  // namespace latchkey::tests
