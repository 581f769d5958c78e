// Goal: the scan of the process's own memory finds a secret wherever it lies and nothing that is
// gone, and the needles themselves are no hits.
// Method: a buffer of the heap with a random secret at each address within a word, then wiped; the
// same in the arena.

#include "cli/memory_scan.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

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

// The scan's own buffer of 1 MiB lies where the kernel would put any: a neighbour that ends there.
TEST_F(MemoryScanTest, what_lies_beside_the_buffer_of_the_scan_is_looked_at) {
  constexpr std::size_t kBuffer = kMiB, kBeside = 64 * kKiB;
  const auto map = [](std::byte* at, std::size_t size) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at == nullptr ? 0 : MAP_FIXED_NOREPLACE);
    void* mapped = ::mmap(at, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    return mapped == MAP_FAILED ? nullptr : static_cast<std::byte*>(mapped);
  };
  MemoryScan scan(system_env());
  std::byte* buffer = map(nullptr, kBuffer);
  ASSERT_NE(buffer, nullptr);
  std::byte* beside = map(buffer - kBeside, kBeside);
  ASSERT_NE(beside, nullptr) << "the place is taken";
  const MutableBytes secret(buffer - kSecretBytes, kSecretBytes);
  system_env().random(secret);
  scan.add("secret", secret);
  ASSERT_EQ(::munmap(buffer, kBuffer), 0);
  EXPECT_EQ(found(scan), Found(4, 4));
  EXPECT_EQ(::munmap(beside, kBeside), 0);
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
