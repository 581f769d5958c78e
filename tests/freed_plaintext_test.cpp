// Goal: of an encrypted name, the target of an encrypted symlink and the value of an encrypted
// attribute nothing lies in memory that the library has given back. Method: this program's own
// operator delete looks at what comes to it. What the library hands to its caller is the caller's
// to wipe: here it is kept until the search is over, in which it has to be found once.

#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <string_view>
#include <vector>

#include "base/secret.h"
#include "tests/support/own_new.h"
#include "tests/support/volume_fixture.h"

namespace {

// Longer than what a string has room for in itself, and no multiple of what a name is padded to.
constexpr std::string_view kWord = "quarterly figures before anybody else";
constexpr std::string_view kPiece = kWord.substr(16, 16);  // a heap overwrites what comes before it
constinit std::atomic<unsigned> found{0};
constinit std::atomic<bool> searching{false};

}  // namespace

namespace latchkey::tests {

void* own_allocate(std::size_t size, std::size_t align) noexcept {
  return from_malloc(size, align);
}

[[gnu::noinline]] void own_release(void* memory) noexcept {
  if (searching && memory != nullptr) {
    const std::string_view freed(static_cast<const char*>(memory), malloc_usable_size(memory));
    if (freed.find(kPiece) != std::string_view::npos) ++found;
  }
  std::free(memory);
}

namespace {

class FreedPlaintext : public VolumeTest {
 protected:
  void SetUp() override {
    VolumeTest::SetUp();
    vault();
    directory_ = *volume::resolve(*volume_, "/vault");
  }
  // How often what fn() made the library free had the word in it.
  template <class Fn>
  unsigned freed_by(const Fn& fn) {
    found = 0;
    searching = true;
    fn();
    searching = false;
    return found;
  }

  volume::InodeId directory_;
};

TEST_F(FreedPlaintext, is_seen_where_it_is) {
  const unsigned freed = freed_by([] { const std::vector<char> copy(kWord.begin(), kWord.end()); });
  EXPECT_EQ(freed, 1U);
}

TEST_F(FreedPlaintext, has_no_name_that_was_made_found_and_removed) {
  const unsigned freed = freed_by([&] {
    EXPECT_TRUE(volume_->mkdir(kUser, directory_, kWord, 0755));
    EXPECT_TRUE(volume_->lookup(directory_, kWord));
    EXPECT_TRUE(volume_->rename(directory_, kWord, directory_, "other", {}));
    EXPECT_TRUE(volume_->rename(directory_, "other", directory_, kWord, {}));
    EXPECT_EQ(code_of(volume_->mkdir(kUser, directory_, kWord, 0755)), Errc::exists);
    EXPECT_TRUE(volume_->rmdir(directory_, kWord));
    EXPECT_EQ(code_of(volume_->lookup(directory_, kWord)), Errc::not_found);
  });
  EXPECT_EQ(freed, 0U);
}

TEST_F(FreedPlaintext, has_no_name_that_was_listed) {
  ASSERT_TRUE(volume_->mkdir(kUser, directory_, kWord, 0755));
  const unsigned freed = freed_by([&] {
    auto listed = volume_->read_directory(directory_);
    ASSERT_TRUE(listed);
    ASSERT_EQ(listed->size(), 1U);
    EXPECT_EQ(listed->front().name, kWord);
    wipe(listed->front().name.data(), listed->front().name.size());
  });
  EXPECT_EQ(freed, 0U);
}

TEST_F(FreedPlaintext, has_no_target_that_was_set_measured_and_read) {
  const unsigned freed = freed_by([&] {
    auto link = volume_->symlink(kUser, directory_, "link", kWord);
    ASSERT_TRUE(link);
    const auto stat = volume_->stat(*link);
    ASSERT_TRUE(stat);
    EXPECT_EQ(stat->size, kWord.size());
    auto target = volume_->read_link(*link);
    ASSERT_TRUE(target);
    EXPECT_EQ(*target, kWord);
    wipe(target->data(), target->size());
  });
  EXPECT_EQ(freed, 0U);
}

TEST_F(FreedPlaintext, has_no_value_that_was_set_and_read) {
  auto inode = volume_->mkdir(kUser, directory_, "d", 0755);
  ASSERT_TRUE(inode);
  const unsigned freed = freed_by([&] {
    EXPECT_TRUE(volume_->set_xattr(*inode, "user.value", bytes_of(kWord), {}));
    auto value = volume_->get_xattr(*inode, "user.value");
    ASSERT_TRUE(value);
    EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(value->data()), value->size()), kWord);
    wipe(*value);
  });
  EXPECT_EQ(freed, 0U);
}

}  // namespace
}  // namespace latchkey::tests
