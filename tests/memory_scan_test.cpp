// Goal: the scan of the process's own memory finds a secret wherever it lies and nothing that is
// gone, and the needles themselves are no hits.
// Method: a buffer of the heap with a random secret at each address within a word, then wiped; the
// same in the arena.

#include "cli/memory_scan.h"

#include <gtest/gtest.h>

#include <fstream>
#include <vector>

#include "base/secret.h"

namespace latchkey::tests {
namespace {

using cli::MemoryScan;

constexpr std::size_t kSecretBytes = 32;  // four needles

std::pair<u64, u64> found(MemoryScan& scan) {
  const auto groups = scan.scan();
  EXPECT_TRUE(groups);
  EXPECT_EQ(groups->size(), 1U);
  EXPECT_EQ(groups->front().needles, kSecretBytes / 8);
  return {groups->front().found_now, groups->front().found_ever};
}
using Found = std::pair<u64, u64>;

// A sanitizer maps terabytes of shadow, which nobody can look through.
class MemoryScanTest : public testing::Test {
 protected:
  void SetUp() override {
    u64 pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    if (pages * 4 * kKiB > 1024 * kGiB) GTEST_SKIP() << "under a sanitizer";
  }
};

TEST_F(MemoryScanTest, a_secret_is_found_at_any_address_until_it_is_wiped) {
  std::vector<std::byte> heap(256);
  for (std::size_t at = 64; at < 72; ++at) {
    SCOPED_TRACE(at);
    const MutableBytes secret = MutableBytes(heap).subspan(at, kSecretBytes);
    system_env().random(secret);
    MemoryScan scan(system_env());
    scan.add("secret", secret);
    EXPECT_EQ(found(scan), Found(4, 4));
    wipe(secret.data(), secret.size());
    EXPECT_EQ(found(scan), Found(0, 4));
  }
}

TEST_F(MemoryScanTest, a_piece_of_a_secret_is_found_without_the_rest) {
  std::vector<std::byte> heap(256);
  const MutableBytes secret = MutableBytes(heap).subspan(65, kSecretBytes);
  system_env().random(secret);
  MemoryScan scan(system_env());
  scan.add("secret", secret);
  wipe(secret.data() + 20, 12);  // the last needle, half of the one before it
  EXPECT_EQ(found(scan), Found(2, 2));
  wipe(secret.data(), secret.size());
}

TEST_F(MemoryScanTest, the_arena_is_looked_at_too) {
  MemoryScan scan(system_env());
  {
    auto secret = SecretBytes::create(kSecretBytes);
    ASSERT_TRUE(secret);
    system_env().random(secret->bytes());
    scan.add("secret", secret->bytes());
    EXPECT_EQ(found(scan), Found(4, 4));
  }
  EXPECT_EQ(found(scan), Found(0, 4));
}

}  // namespace
}  // namespace latchkey::tests
