// Goal: what is open can be opened again by its handle, name or no name, through the door of its
// key; a listing goes on from any place; how many blocks a file has is counted once for each state
// of its map and is right; an open that fails keeps no removal waiting. Method: a volume on a
// SimDevice; what a call counted is compared with the rows of the file's map.

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <new>
#include <random>
#include <thread>

#include "tests/support/volume_fixture.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it
using keymgr::RemovalMode;

constexpr u64 kPage = 4096;
constexpr OpenFlags kWrite{.write = true};

class VolumeOpen : public VolumeTest {
 protected:
  void SetUp() override {
    options_.inline_writeback = true;
    options_.commit_interval_ms = 0;
    VolumeTest::SetUp();
  }
};

TEST_F(VolumeOpen, by_a_handle_works_without_a_name_and_ends_with_the_last_one) {
  put("/file", "text");
  const HandleId first = open("/file", kWrite);
  const InodeId inode = volume_->stat(first)->inode;
  ASSERT_TRUE(volume_->unlink(kRootInode, "file"));
  EXPECT_EQ(code_of(volume_->open(kUser, inode, kWrite, "")), Errc::not_found);
  const auto again = volume_->open_again({1000, 100, 7}, first, kWrite, "again");
  ASSERT_TRUE(again);
  close(first);
  EXPECT_EQ(content(*again), "text");
  append(*again, ", more");
  const auto read_only = volume_->open_again(kUser, *again, {}, "");
  ASSERT_TRUE(read_only);
  EXPECT_EQ(content(*read_only), "text, more");
  EXPECT_EQ(code_of(volume_->append(*read_only, bytes_of("x"))), Errc::bad_handle);
  EXPECT_EQ(code_of(volume_->open_again(kUser, *again, {.create = true}, "")), Errc::invalid);
  EXPECT_EQ(code_of(volume_->open_again(kUser, first, {}, "")), Errc::bad_handle) << "it is closed";
  const u64 inodes = volume_->space()->inodes;
  close(*again);
  EXPECT_EQ(volume_->space()->inodes, inodes);
  close(*read_only);
  EXPECT_EQ(volume_->space()->inodes, inodes - 1) << "the last one reaps it";
}

TEST_F(VolumeOpen, by_a_handle_passes_the_door_of_its_key) {
  const crypto::KeyId id = vault();
  put("/vault/file", "text");
  const HandleId first = open("/vault/file", kWrite);
  ASSERT_TRUE(volume_->unlink(*resolve(*volume_, "/vault"), "file"));
  remove(id, RemovalMode::soft);
  EXPECT_EQ(code_of(volume_->open_again(kUser, first, {}, "")), Errc::no_key);
  EXPECT_EQ(content(first), "text");
  add_key();
  const auto again = volume_->open_again(kUser, first, {}, "");
  ASSERT_TRUE(again);
  EXPECT_EQ(volume_->key_status(kUser, id).holders.size(), 2U);
  close(first);
  close(*again);
}

TEST_F(VolumeOpen, by_a_handle_works_for_a_removed_directory) {
  const auto directory = make_directory(*volume_, kUser, "/sub");
  ASSERT_TRUE(directory);
  EXPECT_EQ(*volume_->parent(*directory), kRootInode);
  EXPECT_EQ(*volume_->parent(kRootInode), kRootInode);
  const auto first = volume_->open_directory(kUser, *directory, "");
  ASSERT_TRUE(first);
  ASSERT_TRUE(volume_->rmdir(kRootInode, "sub"));
  const auto again = volume_->open_again(kUser, *first, {}, "");
  ASSERT_TRUE(again);
  close(*first);
  EXPECT_TRUE(volume_->read_directory(*again)->empty());
  EXPECT_EQ(code_of(volume_->parent(*directory)), Errc::not_found);
  close(*again);
}

TEST_F(VolumeOpen, a_listing_in_pieces_is_the_whole_one) {
  vault();
  for (const char* path : {"/", "/vault"}) {
    const std::string folder = path == std::string("/") ? "/" : "/vault/";
    for (u32 i = 0; i < 200; ++i) put(folder + "n" + std::to_string(i), "");
    const auto handle = volume_->open_directory(kUser, *resolve(*volume_, path), "");
    ASSERT_TRUE(handle);
    const auto whole = volume_->read_directory(*handle);
    ASSERT_TRUE(whole);
    for (const u64 count : {1, 7, 500}) {
      std::vector<std::string> names;
      for (u64 from = 0;;) {
        const auto piece = volume_->read_directory(*handle, from, count);
        ASSERT_TRUE(piece);
        EXPECT_LE(piece->size(), count);
        for (const DirEntry& entry : *piece) names.push_back(entry.name);
        if (piece->empty()) break;
        from = piece->back().place + 1;
      }
      ASSERT_EQ(names.size(), whole->size());
      for (u64 i = 0; i < names.size(); ++i) EXPECT_EQ(names[i], (*whole)[i].name);
    }
    close(*handle);
  }
}

// --- how many blocks a file has ------------------------------------------------------------------

class VolumeBlocks : public VolumeOpen {
 protected:
  // As the map says, which flushes the file.
  u64 blocks_by_map(HandleId handle) {
    u64 blocks = 0;
    const auto rows = volume_->map(handle);
    EXPECT_TRUE(rows);
    for (const MapRow& row : *rows) blocks += row.length / kPage;
    return blocks;
  }
};

TEST_F(VolumeBlocks, are_counted_once_until_the_map_changes) {
  const HandleId handle = open("/file");
  const InodeId inode = volume_->stat(handle)->inode;
  const u64 before = volume_->facts().maps_counted;
  for (u64 page = 0; page < 64; page += 2)
    ASSERT_TRUE(volume_->write(handle, page * kPage, bytes_of("x")));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(volume_->stat(inode)->blocks, 0U) << "not down yet";
  EXPECT_EQ(volume_->facts().maps_counted, before);
  ASSERT_TRUE(volume_->sync());
  for (int i = 0; i < 10; ++i) EXPECT_EQ(volume_->stat(handle)->blocks, 32U);
  EXPECT_EQ(volume_->facts().maps_counted, before + 1);
  close(handle);
  EXPECT_EQ(volume_->stat(inode)->blocks, 32U);
  EXPECT_EQ(volume_->stat(kRootInode)->blocks, 0U);
  EXPECT_EQ(volume_->facts().maps_counted, before + 1) << "nobody has it open";
}

TEST_F(VolumeBlocks, are_those_of_the_map_after_every_kind_of_change) {
  const HandleId file = open("/file"), other = open("/other");
  std::mt19937_64 random(5);
  u64 promised = 0;
  for (int turn = 0; turn < 300; ++turn) {
    SCOPED_TRACE(turn);
    const u64 page = random() % 32, count = 1 + random() % 8;
    switch (random() % 6) {
      case 0:
      case 1:
        ASSERT_TRUE(volume_->write(file, page * kPage, bytes_of(std::string(count * kPage, 'w'))));
        break;
      case 2:
        ASSERT_TRUE(volume_->truncate(file, page * kPage + random() % 2 * 100));
        break;
      case 3:
        ASSERT_TRUE(volume_->punch(file, page * kPage, count * kPage));
        break;
      case 4:
        ASSERT_TRUE(volume_->write(other, 0, bytes_of(std::string(count * kPage, 'o'))));
        ASSERT_TRUE(volume_->clone_range(other, 0, file, page * kPage, kPage));
        break;
      case 5:
        ASSERT_TRUE(volume_->sync());
        break;
    }
    (void)volume_->stat(file);  // remembered, perhaps
    ASSERT_TRUE(volume_->sync());
    EXPECT_EQ(volume_->stat(file)->blocks, blocks_by_map(file));
  }
  promised = volume_->stat(file)->blocks;
  ASSERT_TRUE(volume_->allocate(file, 100 * kPage, 10 * kPage));
  EXPECT_EQ(volume_->stat(file)->blocks, promised + 10);
  close(file);
  close(other);
}

TEST_F(VolumeBlocks, are_right_when_somebody_asks_all_the_time) {
  const HandleId handle = open("/file");
  std::atomic<bool> stop{false};
  std::thread asks([&] {
    while (!stop) EXPECT_TRUE(volume_->stat(handle));
  });
  for (u64 turn = 1; turn <= 200; ++turn) {
    ASSERT_TRUE(volume_->write(handle, 2 * turn * kPage, bytes_of("x")));
    ASSERT_TRUE(volume_->sync());
    ASSERT_EQ(volume_->stat(handle)->blocks, turn);
  }
  stop = true;
  asks.join();
  close(handle);
}

// --- an open that fails --------------------------------------------------------------------------

class HookEnv final : public Env {
 public:
  u64 monotonic_ns() override { return system_env().monotonic_ns(); }
  u64 realtime_ns() override {
    if (at_time) at_time();
    return system_env().realtime_ns();
  }
  void random(MutableBytes bytes) override { system_env().random(bytes); }
  std::function<void()> at_time;
};

TEST_F(VolumeOpen, that_fails_lets_a_removal_go_on_that_waits_for_its_handle) {
  ASSERT_TRUE(volume_->close());
  volume_.reset();
  HookEnv env;
  auto opened = Volume::open(device_, options_, env);
  ASSERT_TRUE(opened);
  volume_ = std::move(*opened);
  const crypto::KeyId id = vault();
  put("/vault/file", "text");
  ASSERT_TRUE(volume_->set_mode(*resolve(*volume_, "/vault/file"), 04755));
  std::future<bool> removed;
  std::atomic<int> times{0};
  env.at_time = [&] {
    // The handle's own time, then that of the bits that a truncate takes away.
    if (++times != 2) return;
    EXPECT_EQ(volume_->key_status(kUser, id).holders.size(), 1U);
    removed = std::async(std::launch::async, [&] {
      return volume_->remove_key(kUser, id, {.mode = RemovalMode::safe, .wait = true}).has_value();
    });
    EXPECT_EQ(removed.wait_for(std::chrono::milliseconds(100)), std::future_status::timeout);
    throw std::bad_alloc();
  };
  EXPECT_EQ(code_of(open_path(*volume_, kUser, "/vault/file", {.write = true, .truncate = true})),
            Errc::no_memory);
  ASSERT_TRUE(removed.valid());
  EXPECT_EQ(removed.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  if (volume_->key_status(kUser, id).state == keymgr::KeyState::present)
    close(open("/vault/file", {}));  // or it waits for ever
  EXPECT_TRUE(removed.get());
  EXPECT_TRUE(volume_->close());
  volume_.reset();
  expect_clean();
}

}  // namespace
}  // namespace latchkey::tests
