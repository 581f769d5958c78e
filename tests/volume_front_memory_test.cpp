// Goal: where memory ends under a page that a front writes back, the page is there or somebody is
// told: the next fsync or close of each handle, and the removal that runs. Method: a front that
// writes back in the middle of removals; operator new of this program fails the n-th allocation of
// those calls, or all from there on, for each n until none is left.

#include <functional>
#include <optional>

#include "tests/support/own_new.h"
#include "tests/support/volume_fixture.h"
#include "volume/front.h"

namespace {

struct Allocations {
  bool counting = false;
  bool sticky = false;
  unsigned long long left = 0;  // before the one that fails
  unsigned long long failed = 0;
};
constinit thread_local Allocations allocations;

bool fails() {
  if (!allocations.counting) return false;
  if (allocations.left != 0) {
    --allocations.left;
    return false;
  }
  if (!allocations.sticky && allocations.failed != 0) return false;
  ++allocations.failed;
  return true;
}

}  // namespace

namespace latchkey::tests {

void* own_allocate(std::size_t size, std::size_t align) noexcept {
  return fails() ? nullptr : from_malloc(size, align);
}

[[gnu::noinline]] void own_release(void* memory) noexcept { std::free(memory); }

namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::RemovalMode;

constexpr u64 kPage = 4096;
constexpr u64 kPages = 8;  // of each file
constexpr u64 kTriesMax = 1000;

// Writes the first pages of two files back as soon as it is asked for them.
class WritingFront final : public Front {
 public:
  u64 drop_pages(const crypto::KeyId& /*key*/, Which /*which*/) override {
    if (on_drop) on_drop();
    return 0;
  }
  void try_again(const crypto::KeyId& /*key*/) override {}
  std::function<void()> on_drop;
};

class VolumeFrontMemory : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    options_.front = &front_;
    VolumeTest::SetUp();
    id_ = vault();
    for (const char* path : {"/vault/file", "/plain"}) put(path, std::string(kPages * kPage, '-'));
    EXPECT_TRUE(volume_->sync());
  }

  // What the call said, with the allocation after `left` others failing.
  Result<u64> write_back(HandleId handle, char letter, u64 left, bool sticky) {
    const std::string pages(2 * kPage, letter);
    allocations = {.counting = true, .sticky = sticky, .left = left};
    Result<u64> wrote;
    try {
      wrote = volume_->write(handle, kPage, bytes_of(pages), {.wait = false, .written_back = true});
    } catch (const std::bad_alloc&) {
      ADD_FAILURE() << "the front is not told in words";
    }
    allocations.counting = false;
    return wrote;
  }
  u64 pages_with(std::string_view path, char letter) {
    const std::string text = content(path);
    u64 pages = 0;
    for (u64 page = 0; page < kPages; ++page)
      pages += text.substr(page * kPage, kPage) == std::string(kPage, letter) ? 1 : 0;
    return pages;
  }

  WritingFront front_;
  crypto::KeyId id_;
};

TEST_F(VolumeFrontMemory, a_page_that_is_not_there_is_told_once_by_each_handle) {
  for (const char* path : {"/vault/file", "/plain"}) {
    for (const bool sticky : {false, true}) {
      u64 met = 0;
      for (u64 left = 0; left < kTriesMax; ++left) {
        SCOPED_TRACE(path + std::string(" ") + std::to_string(left));
        const HandleId handle = open(path, {.write = true});
        const HandleId other = open(path, {.write = true});
        const char letter = static_cast<char>('a' + left % 26);
        const auto wrote = write_back(handle, letter, left, sticky);
        const bool failed = allocations.failed != 0;
        if (wrote) {
          EXPECT_EQ(*wrote, 2 * kPage);
          EXPECT_EQ(pages_with(path, letter), 2U);
        } else {
          ++met;
          EXPECT_EQ(wrote.error().code, Errc::no_memory);
          EXPECT_EQ(code_of(volume_->fsync(handle)), Errc::no_memory);
          EXPECT_EQ(code_of(volume_->take_errors(other)), Errc::no_memory);
        }
        EXPECT_TRUE(volume_->fsync(handle)) << "it was told";
        close(other);
        close(handle);
        if (!failed) break;
        ASSERT_LT(left + 1, kTriesMax);
      }
      EXPECT_GT(met, 0U);
    }
  }
}

TEST_F(VolumeFrontMemory, a_removal_counts_the_page_or_goes_back) {
  for (const RemovalMode mode : {RemovalMode::hard, RemovalMode::sync, RemovalMode::deny}) {
    for (const bool sticky : {false, true}) {
      for (u64 left = 0; left < kTriesMax; ++left) {
        SCOPED_TRACE(std::to_string(static_cast<int>(mode)) + " " + std::to_string(left));
        const HandleId handle = open("/vault/file", {.write = true});
        const char letter = static_cast<char>('a' + left % 26);
        std::optional<Result<u64>> wrote;
        bool failed = false;
        front_.on_drop = [&] {
          if (wrote) return;
          wrote = write_back(handle, letter, left, sticky);
          failed = allocations.failed != 0;
        };
        RemovalReport report;
        const auto removed = volume_->remove_key(kUser, id_, {.mode = mode}, report);
        front_.on_drop = {};
        ASSERT_TRUE(wrote);
        const u64 lost = *wrote ? 0 : 2 * kPage;
        EXPECT_EQ(report.bytes_lost, lost);
        EXPECT_EQ(report.files_lost, lost != 0 ? 1U : 0U);
        EXPECT_EQ(removed.has_value(), lost == 0 || mode != RemovalMode::deny);
        EXPECT_EQ(code_of(volume_->take_errors(handle)), lost == 0 ? Errc{}
                                                         : mode == RemovalMode::hard
                                                             ? Errc::io
                                                             : Errc::no_memory);
        add_key();
        (void)volume_->close_handle(handle);
        if (lost == 0) {
          EXPECT_EQ(pages_with("/vault/file", letter), 2U);
        }
        if (!failed) break;
        ASSERT_LT(left + 1, kTriesMax);
      }
    }
  }
}

}  // namespace
}  // namespace latchkey::tests
