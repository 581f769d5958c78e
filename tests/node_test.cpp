// Goal: a leaf holds what was put into it and a device's checks take it, whatever was inserted,
// replaced, erased and split before; an interior node leads by all keys but its first one.
// Method: random operations, beside a map; after each the leaf is compared with it and validated.
// Interior nodes as they are when the entries before have gone.

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "engine/node.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

using Value = std::vector<std::byte>;
using Model = std::map<Key, Value>;

constexpr VolumeId kVolume{};
constexpr u64 kPlace = 77, kGeneration = 5;

NodePtr empty_leaf(u32 bytes) {
  NodePtr leaf = Node::create(bytes);
  leaf->init(kVolume, kExtentTree, 0, kGeneration, kPlace);
  return leaf;
}

class NodeTest : public testing::TestWithParam<u32> {
 protected:
  Value random_value(u32 most) {
    Value value(random_() % (most + 1));
    for (std::byte& byte : value) byte = static_cast<std::byte>(random_());
    return value;
  }
  Key random_key() { return {random_() % 64, static_cast<u8>(random_() % 4), random_() % 512}; }

  static void expect_equal(Node& leaf, const Model& model) {
    ASSERT_EQ(leaf.count(), model.size());
    u32 index = 0;
    for (const auto& [key, value] : model) {
      ASSERT_EQ(leaf.key(index), key);
      ASSERT_EQ(leaf.lower_bound(key), index);
      const Bytes held = leaf.value(index++);
      ASSERT_TRUE(std::ranges::equal(held, value)) << index;
    }
    const char* wrong = leaf.validate({kVolume, kExtentTree, 0, kGeneration, kPlace});
    ASSERT_EQ(wrong, nullptr) << wrong;
  }

  void put(Node& leaf, Model& model, u32 most) {
    const Key key = random_key();
    Value value = random_value(most);
    if (!leaf.has_room(static_cast<u32>(value.size()))) return;
    const u32 index = leaf.lower_bound(key);
    if (!model.contains(key)) {
      leaf.insert(index, key, value);
    } else {
      const bool fits = model[key].size() == value.size();
      ASSERT_EQ(leaf.replace(index, value), fits);
      if (!fits) return;
    }
    model[key] = std::move(value);
  }

  // One that is there, by another value as long.
  void replace_one(Node& leaf, Model& model) {
    if (model.empty()) return;
    const u32 index = static_cast<u32>(random_() % model.size());
    Value& value = std::next(model.begin(), index)->second;
    for (std::byte& byte : value) byte = ~byte;
    ASSERT_TRUE(leaf.replace(index, value));
  }

  void erase_one(Node& leaf, Model& model) {
    if (model.empty()) return;
    const u32 index = static_cast<u32>(random_() % model.size());
    leaf.erase(index);
    model.erase(std::next(model.begin(), index));
  }

  // And goes on with one of the halves.
  void split(NodePtr& leaf, Model& model) {
    if (model.size() < 2) return;
    NodePtr right = empty_leaf(GetParam());
    leaf->split_into(*right, static_cast<u32>(random_() % (model.size() + 1)));
    ASSERT_GT(leaf->count(), 0);
    ASSERT_GT(right->count(), 0);
    const auto middle = std::next(model.begin(), leaf->count());
    const Model lower(model.begin(), middle), upper(middle, model.end());
    expect_equal(*leaf, lower);
    expect_equal(*right, upper);
    const bool goes_right = random_() % 2 != 0;
    if (goes_right) leaf = right;
    model = goes_right ? upper : lower;
  }

  std::mt19937_64 random_{GetParam()};
};

TEST_P(NodeTest, a_leaf_is_what_was_done_to_it) {
  NodePtr leaf = empty_leaf(GetParam());
  Model model;
  u32 splits = 0;
  for (u32 step = 0; step < 20'000 && !HasFatalFailure(); ++step) {
    const u64 what = random_() % 100;
    if (what < 70) {
      put(*leaf, model, what < 35 ? 8 : 300);
    } else if (what < 85) {
      replace_one(*leaf, model);
    } else if (what < 98) {
      erase_one(*leaf, model);
    } else if (!leaf->has_room(600)) {
      split(leaf, model);
      ++splits;
    }
    if (step % 16 == 0) expect_equal(*leaf, model);
  }
  EXPECT_GT(splits, 10);
}

// Entries with these keys, in this order; each child's place is its key.
NodePtr interior(const std::vector<u64>& keys) {
  NodePtr node = Node::create(4096);
  node->init(kVolume, kExtentTree, 1, kGeneration, kPlace);
  for (const u64 key : keys)
    node->insert_child(node->count(), Key{key, 0, 0}, Pointer{{key, key + 1}, 1, 0, {}});
  return node;
}
std::vector<u64> keys_of(const Node& node) {
  std::vector<u64> keys;
  keys.reserve(node.count());
  for (u32 i = 0; i < node.count(); ++i) {
    keys.push_back(node.key(i).object);
  }
  return keys;
}
const char* wrong_with(Node& node) {
  return node.validate({kVolume, kExtentTree, 1, kGeneration, kPlace});
}

// What was before 900 has gone, and lesser children came behind it.
TEST(InteriorNode, the_first_key_says_nothing) {
  const NodePtr node = interior({900, 20, 58, 300});
  EXPECT_EQ(wrong_with(*node), nullptr);
  for (const auto& [wanted, index] :
       {std::pair{0, 0}, {19, 0}, {20, 1}, {21, 1}, {58, 2}, {299, 2}, {300, 3}, {900, 3}})
    EXPECT_EQ(node->child_index({static_cast<u64>(wanted), 0, 0}), static_cast<u32>(index));
  EXPECT_TRUE(node->is_place_of_child(1, {10, 0, 0}));
  EXPECT_FALSE(node->is_place_of_child(1, {20, 0, 0}));
  EXPECT_FALSE(node->is_place_of_child(2, {20, 0, 0}));
  EXPECT_TRUE(node->is_place_of_child(4, {301, 0, 0}));
  EXPECT_FALSE(node->is_place_of_child(4, {300, 0, 0}));
  EXPECT_EQ(interior({7})->child_index({3, 0, 0}), 0U);
}

TEST(InteriorNode, other_keys_that_do_not_ascend_are_refused) {
  const NodePtr node = interior({5, 20, 58});
  node->bytes()[sizeof(NodeHeader) + sizeof(InteriorEntry)] = std::byte{200};  // 20 of three
  ASSERT_EQ(keys_of(*node)[1], 200U);
  EXPECT_STREQ(wrong_with(*node), "a tree node's keys are out of order");
}

TEST(InteriorNode, one_that_joins_gets_the_key_that_led_to_it) {
  const NodePtr left = interior({900, 20, 58});
  ASSERT_TRUE(left->append(*interior({4000, 70, 80}), {60, 0, 0}));
  EXPECT_EQ(keys_of(*left), (std::vector<u64>{900, 20, 58, 60, 70, 80}));
  EXPECT_EQ(left->child(3).place[0], 4000U);
  EXPECT_EQ(wrong_with(*left), nullptr);
}

TEST(InteriorNode, one_that_does_not_follow_does_not_join) {
  const NodePtr left = interior({900, 20, 58});
  EXPECT_FALSE(left->append(*interior({70, 80}), {58, 0, 0}));
  EXPECT_FALSE(left->append(*interior({60, 70}), {70, 0, 0}));
  EXPECT_EQ(keys_of(*left), (std::vector<u64>{900, 20, 58}));
}

INSTANTIATE_TEST_SUITE_P(sizes, NodeTest, testing::Values(4096, 16384, 65536));

}  // namespace
}  // namespace latchkey::tests
