// Goal: what a scrub finds, mends and names, on a volume that is in use; and what a read says of a
// damaged block. Method: rot in a SimDevice behind the volume's back, place by place.

#include <atomic>
#include <cstring>
#include <thread>

#include "base/check.h"
#include "base/wait.h"
#include "engine/superblock.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using engine::kBlockBytes;
using namespace volume;  // NOLINT: the whole file is about it

class Scrub : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
    id_ = vault();
  }
  ScrubReport scrub(const engine::ScrubOptions& options = {}) {
    auto report = volume_->scrub(options);
    EXPECT_TRUE(report) << report.error().what;
    return report ? *report : ScrubReport{};
  }
  void fill(std::string_view path, u64 blocks) {
    const HandleId handle = open(path);
    for (u64 block = 0; block < blocks; ++block)
      ASSERT_TRUE(
          volume_->write(handle, block * kBlockBytes,
                         bytes_of(std::string(kBlockBytes, static_cast<char>('a' + block % 26)))));
    ASSERT_TRUE(volume_->fsync(handle));
    close(handle);
  }
  // A tree of several levels.
  void fill_names(u32 count) {
    for (u32 i = 0; i < count; ++i) put("/vault/file " + std::to_string(i), "text");
    ASSERT_TRUE(volume_->sync());
  }
  u64 device_offset(std::string_view path, u64 file_offset) {
    const HandleId handle = open(path, {});
    const auto rows = volume_->map(handle);
    close(handle);
    for (const MapRow& row : *rows)
      if (file_offset >= row.file_offset && file_offset < row.file_offset + row.length)
        return row.device_offset + (file_offset - row.file_offset);
    ADD_FAILURE() << path << " has nothing at " << file_offset;
    return 0;
  }
  // Every first (second) place of everything that looks like a node, those in use among them.
  u32 rot_places(bool first) {
    u32 count = 0;
    for (u64 block = 0; block < device_.info().size_bytes / kBlockBytes; ++block) {
      std::array<std::byte, sizeof(engine::NodeHeader)> bytes;
      device_.peek(block * kBlockBytes, bytes);
      const auto header = load_disk<engine::NodeHeader>(bytes);
      if (std::memcmp(&header.magic, "LKND", 4) != 0 || (header.place == block) != first) continue;
      device_.rot(block * kBlockBytes + 100, 8, block);
      ++count;
    }
    return count;
  }
  crypto::KeyId id_;
};

TEST_F(Scrub, of_a_sound_volume_reads_everything_and_finds_nothing) {
  fill("/vault/file", 100);
  fill("/plain", 33);
  ASSERT_TRUE(volume_->sync());  // an fsync may leave the trees in memory
  const ScrubReport report = scrub();
  EXPECT_EQ(report.store.data_blocks, 133U);
  EXPECT_GE(report.store.nodes, 4U);
  EXPECT_GE(report.store.bytes_read, 133 * kBlockBytes + report.store.nodes * 2 * 16384);
  EXPECT_TRUE(report.store.findings.empty());
  EXPECT_TRUE(report.files.empty());
}

// Both runs meet every node of trees of several levels.
TEST_F(Scrub, writes_a_bad_place_of_a_node_again_from_its_twin) {
  fill_names(1500);
  for (const bool first : {true, false}) {
    reopen();
    add_key();
    ASSERT_GE(rot_places(first), 20U);
    const ScrubReport report = scrub();
    EXPECT_GE(report.store.nodes, 20U);
    EXPECT_EQ(report.store.mended, report.store.nodes);
    EXPECT_EQ(report.store.findings.size(), report.store.nodes);
    for (const engine::Finding& finding : report.store.findings)
      EXPECT_TRUE(finding.repairable) << finding.what << " " << finding.where;
    EXPECT_EQ(scrub().store.findings.size(), 0U);
    EXPECT_EQ(content("/vault/file 1499"), "text");
  }
}  // the fixture's check reads both places

TEST_F(Scrub, mends_nothing_on_a_volume_that_is_only_read) {
  fill("/vault/file", 10);
  options_.read_only = true;
  reopen();
  const u32 rotten = rot_places(false);
  const ScrubReport report = scrub();
  EXPECT_GE(rotten, report.store.nodes);
  EXPECT_EQ(report.store.mended, 0U);
  EXPECT_EQ(report.store.findings.size(), report.store.nodes);
  options_.read_only = false;
  reopen();
  EXPECT_EQ(scrub().store.mended, report.store.nodes);
}

TEST_F(Scrub, mends_superblock_copies_by_two_commits) {
  fill("/vault/file", 10);
  for (u32 place = 0; place < 4; ++place) {
    device_.rot(engine::superblock_place(place, device_.info().size_bytes) * kBlockBytes + 200, 8,
                place);
    const ScrubReport report = scrub();
    ASSERT_EQ(report.store.findings.size(), 1U) << place;
    EXPECT_TRUE(report.store.findings.front().repairable);
    EXPECT_EQ(report.store.mended, 1U);
    EXPECT_TRUE(scrub().store.findings.empty()) << place;
  }
}

TEST_F(Scrub, names_file_and_offsets_of_a_bad_block) {
  fill("/vault/file", 40);
  fill("/vault/other", 5);
  const u64 at = device_offset("/vault/file", 7 * kBlockBytes);
  device_.flip_bit(at + 17, 3);
  ScrubReport report = scrub();
  ASSERT_EQ(report.files.size(), 1U);
  EXPECT_EQ(report.files[0].path, "/vault/file");
  EXPECT_EQ(report.files[0].file_offset, 7 * kBlockBytes);
  EXPECT_EQ(report.files[0].device_offset, at);
  EXPECT_FALSE(report.files[0].unreadable);
  EXPECT_EQ(report.store.mended, 0U);

  remove(id_);
  report = scrub();  // locked: no key, the same answer under the name that ls shows
  ASSERT_EQ(report.files.size(), 1U);
  const auto entries = volume_->read_directory(*resolve(*volume_, "/vault"));
  ASSERT_TRUE(entries);
  EXPECT_TRUE(std::ranges::any_of(*entries, [&](const DirEntry& entry) {
    return "/vault/" + entry.name == report.files[0].path;
  })) << report.files[0].path;

  add_key();
  const HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->write(handle, 7 * kBlockBytes, bytes_of(std::string(kBlockBytes, 'x'))));
  close(handle);
  ASSERT_TRUE(volume_->sync());
  EXPECT_TRUE(scrub().files.empty());
}

TEST_F(Scrub, tells_what_cannot_be_read_block_by_block) {
  fill("/vault/file", 64);
  const u64 at = device_offset("/vault/file", 3 * kBlockBytes);
  device_.bad_range(at + 512, 512);
  const ScrubReport report = scrub();
  ASSERT_EQ(report.files.size(), 1U);
  EXPECT_TRUE(report.files[0].unreadable);
  EXPECT_EQ(report.files[0].file_offset, 3 * kBlockBytes);
  EXPECT_EQ(report.store.data_blocks, 64U);
  device_.clear_faults();
}

// EIO for that block alone, and where it is.
TEST_F(Scrub, a_read_stops_before_a_bad_block_and_goes_on_behind_it) {
  fill("/vault/file", 40);
  const u64 at = device_offset("/vault/file", 9 * kBlockBytes);
  for (const bool unreadable : {false, true}) {
    unreadable ? device_.bad_range(at, kBlockBytes) : device_.flip_bit(at + 5, 1);
    const HandleId handle = open("/vault/file");
    std::vector<std::byte> into(40 * kBlockBytes);
    EXPECT_EQ(volume_->read(handle, 0, into).value_or(0), 9 * kBlockBytes);
    EXPECT_EQ(volume_->read(handle, 100, into).value_or(0), 9 * kBlockBytes - 100);
    const auto bad = volume_->read(handle, 9 * kBlockBytes + 1, into);
    ASSERT_FALSE(bad);
    EXPECT_EQ(bad.error().code, unreadable ? Errc::io : Errc::damaged);
    EXPECT_EQ(posix_errno(bad.error()), EIO);
    EXPECT_EQ(bad.error().in_file, 9 * kBlockBytes);
    EXPECT_EQ(bad.error().at, at);
    ASSERT_EQ(volume_->read(handle, 10 * kBlockBytes, into).value_or(0), 30 * kBlockBytes);
    EXPECT_EQ(into[0], std::byte{'k'});
    // A write inside of the block needs what it holds; one of the whole block does not.
    EXPECT_EQ(posix_errno(volume_->write(handle, 9 * kBlockBytes + 8, bytes_of("y")).error()), EIO);
    close(handle);
  }
  device_.clear_faults();
  const HandleId handle = open("/vault/file");
  ASSERT_TRUE(volume_->write(handle, 9 * kBlockBytes, bytes_of(std::string(kBlockBytes, 'j'))));
  close(handle);
}

TEST_F(Scrub, stops_when_it_is_told_to) {
  fill("/vault/file", 4000);
  u64 last = 0;
  engine::ScrubOptions options;
  options.progress = [&](u64 done, u64 total) {
    EXPECT_GE(done, last);
    EXPECT_GE(total, 4000 * kBlockBytes);
    last = done;
    return done < 8 * kMiB;
  };
  const ScrubReport report = scrub(options);
  EXPECT_TRUE(report.store.stopped);
  EXPECT_LT(report.store.data_blocks, 3000U);
}

// Time passes only where the scrub waits for it.
class PausedClock final : public Env, public Scheduler {
 public:
  u64 monotonic_ns() override { return now_; }
  u64 realtime_ns() override { return now_; }
  void random(MutableBytes bytes) override { system_env().random(bytes); }
  bool wait_on(std::atomic<u32>&, u32, u64 timeout_ns) override {
    now_ += timeout_ns;
    return false;
  }
  void wake(std::atomic<u32>&, u32) override {}
  u64 start_thread(std::function<void()>) override { LK_CHECK_MSG(false, "no threads here"); }
  void join_thread(u64) override { LK_CHECK_MSG(false, "no threads here"); }
  u64 now() const { return now_; }

 private:
  u64 now_ = 1;
};

TEST_F(Scrub, keeps_its_rate) {
  fill("/vault/file", 2000);
  EXPECT_TRUE(volume_->close());
  PausedClock clock;
  auto opened = Volume::open(device_, options_, clock);
  ASSERT_TRUE(opened);
  volume_ = std::move(*opened);
  install_scheduler(&clock);
  const u64 before = clock.now();
  const ScrubReport report = scrub({.bytes_per_second = 4 * kMiB, .progress = {}});
  install_scheduler(nullptr);
  const double seconds = static_cast<double>(clock.now() - before) / 1e9;
  EXPECT_NEAR(static_cast<double>(report.store.bytes_read) / seconds, 4.0 * kMiB, 0.3 * kMiB);
  reopen();
}

TEST_F(Scrub, finds_nothing_under_writers) {
  options_.inline_writeback = false;
  options_.dirty_bytes_max = 4 * kMiB;
  reopen();
  add_key();
  fill_names(300);
  std::atomic<bool> stop{false};
  std::vector<std::thread> writers;
  for (int writer = 0; writer < 3; ++writer)
    writers.emplace_back([&, writer] {
      const std::string text(3 * kBlockBytes + 77, static_cast<char>('a' + writer));
      for (u32 round = 0; !stop; ++round) {
        const std::string path = "/vault/file " + std::to_string((round * 7 + writer) % 300);
        const HandleId handle = open(path);
        EXPECT_TRUE(volume_->write(handle, (round % 50) * kBlockBytes, bytes_of(text)));
        if (round % 4 == 0) {
          EXPECT_TRUE(volume_->fsync(handle));
        }
        if (round % 11 == 0) {
          EXPECT_TRUE(volume_->truncate(handle, 100));
        }
        close(handle);
      }
    });
  for (int i = 0; i < 12; ++i) {
    const ScrubReport report = scrub();
    for (const engine::Finding& finding : report.store.findings)
      ADD_FAILURE() << finding.what << " " << finding.where;
    EXPECT_EQ(report.store.bad_blocks_count, 0U);
    EXPECT_GT(report.store.data_blocks, 0U);
  }
  stop = true;
  for (std::thread& writer : writers) writer.join();
}

}  // namespace
}  // namespace latchkey::tests
