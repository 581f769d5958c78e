// Goal: a store that is 80 % full and used for long stays usable: no write that fits is refused,
// space that is given up comes back, files stay in few pieces, and what is free hangs together.
// Method: days of small random changes to a few hundred files on a SimDevice; each day's figures
// are printed, with the bytes that the device was given for each byte that was written. Seven days
// here; LATCHKEY_CASES gives another number.

#include <fmt/format.h>

#include <cmath>
#include <random>

#include "tests/support/seed.h"
#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using volume::HandleId;

constexpr u64 kPage = 4096;
constexpr u64 kChangesADay = 250;
constexpr u64 kFilePages = 1024;  // none is longer

class Churn : public VolumeTest {
 protected:
  struct Day {
    u64 files = 0, pieces = 0, extents = 0, pages = 0;
    engine::FreeRuns free;
    double used = 0;
    double amplification = 0;
  };

  std::string path(u64 file) { return "/vault/" + std::to_string(file); }

  // Mostly small, a few large: the sizes of a user's files.
  u64 some_pages() {
    std::lognormal_distribution<double> pages(2.3, 1.5);
    return std::clamp<u64>(static_cast<u64>(pages(random_)), 1, kFilePages);
  }
  double used() {
    const engine::SpaceFacts space = volume_->facts().space;
    return 1.0 -
           static_cast<double>(space.blocks_available) / static_cast<double>(space.blocks_total);
  }
  void write(HandleId handle, u64 page, u64 pages) {
    const std::string bytes(pages * kPage, static_cast<char>('a' + random_() % 26));
    const auto wrote = volume_->write(handle, page * kPage, bytes_of(bytes));
    ASSERT_TRUE(wrote) << wrote.error().what << " at " << used();
    written_ += bytes.size();
  }

  void make_file() {
    const HandleId handle = open(path(next_));
    const u64 pages = some_pages();
    write(handle, 0, pages);
    close(handle);
    files_[next_++] = pages;
  }
  void remove_file() {
    const auto file = some_file();
    ASSERT_TRUE(volume_->unlink(vault_, std::to_string(file->first)));
    files_.erase(file);
  }
  std::map<u64, u64>::iterator some_file() {
    auto it = files_.lower_bound(random_() % next_);
    return it == files_.end() ? files_.begin() : it;
  }

  void change() {
    const u64 dice = random_() % 10;
    if (files_.empty() || used() < 0.81) return make_file();
    if (used() > 0.85) return remove_file();
    if (dice < 2) {
      remove_file();
      return make_file();
    }
    const auto file = some_file();
    const HandleId handle = open(path(file->first), {.write = true});
    u64& pages = file->second;
    if (dice < 6) {  // a database, an image: anywhere
      for (int i = 0; i < 4; ++i) {
        const u64 page = random_() % pages;
        write(handle, page, std::min<u64>(1 + random_() % 4, pages - page));
      }
    } else if (dice < 9) {  // a log
      const u64 more = std::min<u64>(1 + random_() % 8, kFilePages - pages);
      if (more != 0) write(handle, pages, more);
      pages += more;
    } else {
      pages = std::max<u64>(1, pages / 2);
      ASSERT_TRUE(volume_->truncate(handle, pages * kPage));
    }
    if (random_() % 4 == 0) {
      EXPECT_TRUE(volume_->fsync(handle));
    }
    close(handle);
  }

  Day look() {
    Day day;
    for (const auto& [file, pages] : files_) {
      const HandleId handle = open(path(file), {});
      const auto rows = volume_->map(handle);
      EXPECT_TRUE(rows);
      close(handle);
      u64 end = 0;
      for (const volume::MapRow& row : *rows) {
        ++day.extents;
        if (row.device_offset != end) ++day.pieces;
        end = row.device_offset + row.length;
        day.pages += row.length / kPage;
      }
    }
    day.files = files_.size();
    day.free = volume_->free_runs();
    day.used = used();
    const u64 device = device_.counters().bytes_written;
    day.amplification =
        static_cast<double>(device - device_before_) / static_cast<double>(written_);
    device_before_ = device;
    written_ = 0;
    return day;
  }

  std::mt19937_64 random_{seed_base() + 1};
  volume::InodeId vault_;
  std::map<u64, u64> files_;  // pages of each
  u64 next_ = 0;
  u64 written_ = 0;        // bytes of this day
  u64 device_before_ = 0;  // bytes that the device had been given when it began
};

TEST_F(Churn, a_week_at_eighty_percent) {
  vault();
  vault_ = *resolve(*volume_, "/vault");
  Day day;
  for (u64 number = 0; number <= cases(7); ++number) {
    do {  // what is dirty counts as more than it will take
      for (u64 i = 0; i < kChangesADay || used() < 0.81; ++i) {
        change();
        if (HasFatalFailure()) return;
      }
      ASSERT_TRUE(volume_->sync());
    } while (used() < 0.79);
    day = look();
    const auto mean = [](u64 sum, u64 count) {
      return static_cast<double>(sum) / static_cast<double>(std::max<u64>(1, count));
    };
    fmt::print(
        "day {}: {:.0f} % used, {} files, {:.1f} extents a file in {:.1f} pieces of {:.1f} blocks; "
        "{} free runs of {:.1f} blocks, the longest {}; {:.2f} bytes written a byte\n",
        number, day.used * 100, day.files, mean(day.extents, day.files),
        mean(day.pieces, day.files), mean(day.pages, day.pieces), day.free.runs,
        mean(day.free.blocks, day.free.runs), day.free.longest, day.amplification);
  }
  EXPECT_GT(day.pages, 4 * day.pieces);
  EXPECT_LT(day.amplification, 6.0);
  EXPECT_GT(day.free.blocks, 4 * day.free.runs);
  EXPECT_GE(day.free.longest, 32U);
  u64 by_length = 0;
  for (const u64 runs : day.free.by_length) by_length += runs;
  EXPECT_EQ(by_length, day.free.runs);
  // Everything comes back.
  while (!files_.empty()) {
    remove_file();
    if (HasFatalFailure()) return;
  }
  ASSERT_TRUE(volume_->sync());
  ASSERT_TRUE(volume_->sync());
  EXPECT_LT(used(), 0.1);
}

}  // namespace
}  // namespace latchkey::tests
