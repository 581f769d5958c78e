// Goal: trees that share nodes behave as if each were a copy, and when all are gone nothing is left
// of them (design S1, S3). Method: random operations on a family of clones against maps, with data
// that records refer to, drops in steps, commits and reopens; the counts are compared with what is
// reachable; a seed is printed on failure.

#include <gtest/gtest.h>

#include "tests/support/clone_family.h"
#include "tests/support/seed.h"
#include "tests/support/store_fixture.h"

namespace latchkey::tests {
namespace {

using namespace engine;  // NOLINT: the whole file is about it

class ForestClone : public StoreTest {
 protected:
  void make_family(u64 size, u32 node_bytes, u64 seed, const CloneFamily::Options& options) {
    make(size, node_bytes);
    open(family_options());
    ASSERT_TRUE(store_->commit());
    used_when_empty_ = store_->space().blocks_used;
    family_.emplace(*store_, seed, options);
  }
  void reopen_family() {
    ASSERT_TRUE(store_->close());
    open(family_options());
    family_->reopened(*store_);
  }
  void expect_equal(bool data) {
    ASSERT_TRUE(store_->commit());  // a check reads the device
    FamilyModel found;
    read_family(*store_, family_->dropping(), data, found);
    EXPECT_TRUE(found == family_->model()) << "the trees are not what the maps are";
    expect_family_clean(*store_, data);
  }
  void expect_empty_at_the_end() {
    const auto emptied = family_->empty();
    ASSERT_TRUE(emptied) << emptied.error().what;
    ASSERT_TRUE(store_->commit());
    EXPECT_EQ(store_->space().blocks_used, used_when_empty_);
    expect_equal(false);
  }

  std::optional<CloneFamily> family_;
  u64 used_when_empty_ = 0;
};

TEST_F(ForestClone, random_operations_agree_with_maps) {
  for (const u64 seed : seeds(6)) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    make_family(64 * kMiB, seed % 2 == 0 ? 4096 : 8192, seed, {});
    for (int i = 0; i < 1500; ++i) {
      const auto stepped = family_->step();
      ASSERT_TRUE(stepped) << stepped.error().what;
      if (family_->random() % 40 == 0) {
        ASSERT_TRUE(store_->commit());
      }
      if (family_->random() % 300 == 0) reopen_family();
      if (family_->random() % 150 == 0) expect_equal(false);
      if (HasFatalFailure()) return;
    }
    expect_equal(true);
    expect_empty_at_the_end();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace latchkey::tests
