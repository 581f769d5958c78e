// Goal: the size in the tree never runs ahead of the data in the tree (design D5), also where a
// flush ends half way or a truncate comes before the flush. Method: writeouts that are broken or
// overtaken at a known place; then only what is in the tree is committed, by the fsync of another
// file, and the power goes.

#include <algorithm>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

class VolumeOrder : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    options_.fsync_log = false;
    VolumeTest::SetUp();
    vault();
    ASSERT_TRUE(volume_->sync());
  }
  // Commits what the tree has, flushes no other file, and cuts the power.
  void commit_tree_and_crash() {
    const HandleId other = open("/vault/other");
    append(other, "x");
    ASSERT_TRUE(volume_->fsync(other));
    crash(1);
    add_key();
  }
};

std::string pattern(u64 size, u64 seed) {
  std::string text(size, '\0');
  for (u64 i = 0; i < size; ++i) text[i] = static_cast<char>('a' + (i / 4096 * 7 + i + seed) % 26);
  return text;
}

TEST_F(VolumeOrder, what_landed_of_a_broken_flush_is_a_beginning_of_the_file) {
  constexpr u64 kPages = 1500;  // three batches of a flush, a dozen writes
  int parts = 0;
  for (u64 write = 0; write < 12; ++write) {
    SCOPED_TRACE(testing::Message() << "write " << write);
    const std::string path = "/vault/" + std::to_string(write);
    const std::string text = pattern(kPages * 4096 - 100, write);
    const HandleId handle = open(path);
    append(handle, text);
    device_.inject({.kind = engine::OpKind::write, .after = write});
    EXPECT_EQ(code_of(volume_->fsync(handle)), Errc::io);
    device_.clear_faults();
    commit_tree_and_crash();
    const std::string there = content(path);
    ASSERT_LT(there.size(), text.size());
    ASSERT_TRUE(there == text.substr(0, there.size())) << there.size() << " bytes";
    parts += there.empty() ? 0 : 1;
  }
  EXPECT_GT(parts, 3);  // some had landed in part
}

TEST_F(VolumeOrder, a_truncate_takes_the_data_below_it_along) {
  const std::string text = pattern(3 * 4096 + 500, 1);
  for (const u64 size : {u64{40000}, u64{4096 + 100}, u64{2 * 4096}}) {
    SCOPED_TRACE(size);
    const std::string path = "/vault/" + std::to_string(size);
    const HandleId handle = open(path);
    append(handle, text);
    ASSERT_TRUE(volume_->truncate(handle, size));
    commit_tree_and_crash();
    std::string expected = text;
    expected.resize(size, '\0');
    EXPECT_TRUE(content(path) == expected) << content(path).size() << " bytes";
  }
}

}  // namespace
}  // namespace latchkey::tests
