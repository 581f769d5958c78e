// Goal: an inode lives as long as a name or a handle leads to it, and no longer, whatever crashes
// and whoever races. Method: a life of links that is cut at every single write; threads that name
// and unname one file. Every test ends with the offline check.

#include <atomic>
#include <functional>
#include <thread>

#include "tests/support/links_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

// A life of links, in steps; each is whole or absent after a crash, in their order, and what was
// synced is there.
class CutLinks : public VolumeLinks {
 protected:
  using Step = std::function<bool()>;
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeLinks::SetUp();
    put("/a", "a");
    put("/open", std::string(300000, 'o'));
    put("/old", "old");
    directory("/sub");
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    start_ = device_.durable();
  }

  std::string describe() {
    std::vector<std::string> rows;
    for (const std::string_view parent : {"/", "/sub/"}) {
      const auto names = volume_->read_directory(inode(parent));
      EXPECT_TRUE(names);
      for (const DirEntry& entry : *names) {
        const auto stat = volume_->stat(entry.inode);
        EXPECT_TRUE(stat) << entry.name;
        rows.push_back(std::string(parent) + entry.name + ":" +
                       std::to_string(static_cast<int>(entry.kind)) + ":" +
                       std::to_string(stat->links) + ":" + std::to_string(stat->size));
      }
    }
    std::ranges::sort(rows);
    std::string all;
    for (const std::string& row : rows) all += row + " ";
    return all;
  }

  std::vector<Step> steps() {
    const auto sync = [this] { return volume_->sync().has_value(); };
    const auto unlink = [this](const char* name) {
      return [this, name] { return volume_->unlink(kRootInode, name).has_value(); };
    };
    return {
        [this] { return link_in_root("/a", "b") == Errc{}; },
        [this] { return link(inode("/a"), inode("/sub"), "c") == Errc{}; },
        sync,
        unlink("a"),
        [this] {
          return volume_->symlink(kUser, kRootInode, "s", std::string(3000, 's')).has_value();
        },
        sync,
        [this] {
          return volume_->make_node(kUser, kRootInode, "p", {.kind = FileKind::fifo}).has_value();
        },
        [this] {
          auto opened = volume_->open_unnamed(kUser, kRootInode, {.write = true}, 0600, "");
          if (!opened) return false;
          unnamed_ = *opened;
          return volume_->write(unnamed_, 0, bytes_of(std::string(20000, 't'))) &&
                 volume_->fsync(unnamed_);
        },
        [this] { return volume_->link(unnamed_, kRootInode, "t").has_value(); },
        [this] { return volume_->link(unnamed_, inode("/sub"), "t").has_value(); },
        sync,
        [this] { return volume_->rename(kRootInode, "old", kRootInode, "t").has_value(); },
        [this] {
          const auto opened = open_path(*volume_, kUser, "/open", {});
          if (opened) held_ = *opened;
          return opened && volume_->unlink(kRootInode, "open");
        },
        sync,
        [this] { return volume_->close_handle(held_).has_value(); },
        [this] {
          return volume_->open_unnamed(kUser, kRootInode, {.write = true}, 0600, "").has_value();
        },
        sync,
        unlink("s"),
        [this] { return volume_->unlink(inode("/sub"), "c").has_value(); },
        unlink("b"),
        sync,
    };
  }
  static bool is_sync(std::size_t step) {
    return step == 2 || step == 5 || step == 7 || step == 10 || step == 13 || step == 16 ||
           step == 20;
  }

  SimImage start_;
  HandleId unnamed_{}, held_{};
};

TEST_F(CutLinks, at_any_write_leave_every_step_whole_or_absent) {
  open_again();
  std::vector<std::string> moments{describe()};
  for (const Step& step : steps()) {
    ASSERT_TRUE(step()) << "step " << moments.size() - 1;
    moments.push_back(describe());
  }
  volume_.reset();
  u64 cuts = 0;
  for (bool whole = false; !whole; ++cuts) {
    ASSERT_LT(cuts, 2000U);
    SCOPED_TRACE(testing::Message() << "cut after " << cuts << " writes");
    device_.restore(start_);
    open_again();
    device_.cut_after(cuts);
    std::size_t done = 0, durable = 0;
    const std::vector<Step> all = steps();
    while (done < all.size() && all[done]()) {
      if (is_sync(done++)) durable = done;
    }
    whole = done == all.size();
    ASSERT_TRUE(whole || device_.power_off()) << "step " << done << " failed by itself";
    crash(cuts);
    const std::string now = describe();
    const std::size_t last = std::min(done + 1, moments.size() - 1);
    ASSERT_NE(std::find(moments.begin() + static_cast<long>(durable),
                        moments.begin() + static_cast<long>(last) + 1, now),
              moments.begin() + static_cast<long>(last) + 1)
        << now << "\nafter step " << done << ", durable " << durable << ": " << moments[durable];
    ASSERT_TRUE(volume_->close());
    volume_.reset();
    expect_clean();  // and no orphan is left: they were reaped
    if (HasFailure()) return;
  }
  EXPECT_GT(cuts, 60U);
}

using RacedLinks = VolumeLinks;

TEST_F(RacedLinks, threads_that_link_and_unlink_one_file_count_right) {
  put("/a", "text");
  const InodeId file = inode("/a");
  const std::array<InodeId, 3> parents{directory("/p"), directory("/q"), kRootInode};
  std::atomic<u64> linked{0};
  std::vector<std::thread> threads;
  for (std::size_t number = 0; number < parents.size(); ++number)
    threads.emplace_back([&, number] {
      const InodeId parent = parents[number], next = parents[(number + 1) % parents.size()];
      for (int round = 0; round < 100; ++round) {
        if (link(file, parent, "x") == Errc{}) ++linked;
        (void)volume_->rename(parent, "x", next, "y");
        (void)volume_->unlink(parent, "y");
        const auto handle = volume_->open_unnamed(kUser, parent, {.write = true}, 0600, "");
        ASSERT_TRUE(handle);
        (void)volume_->link(*handle, next, "z");
        EXPECT_TRUE(volume_->close_handle(*handle));
        (void)volume_->unlink(parent, "z");
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(linked, 0U);
  u32 names = 0;
  for (const InodeId parent : parents)
    for (const DirEntry& entry : entries(parent)) names += entry.inode == file;
  EXPECT_EQ(links("/a"), names);
  EXPECT_EQ(content("/a"), "text");
}

}  // namespace
}  // namespace latchkey::tests
