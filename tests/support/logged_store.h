#pragma once
// A store on a simulated device whose objects have one record and one block each, entered as the
// fsync log carries it, or otherwise.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <ranges>
#include <vector>

#include "base/checksum.h"
#include "engine/fsync_log.h"
#include "engine/io_buffer.h"
#include "engine/store.h"
#include "tests/support/sim_device.h"

namespace latchkey::tests {

using namespace engine;  // NOLINT: the whole file is about it

inline constexpr u64 kSize = 16 * kMiB;

inline constexpr u64 kNames = 10;

inline void fill(MutableBytes block, u64 tag) {
  std::mt19937_64 random(tag);
  for (std::size_t i = 0; i < block.size(); i += 8) store_disk(block.subspan(i), Le64(random()));
}

inline Result<std::optional<BlockRun>> named(const View& view, u64 name) {
  LK_TRY(auto record, view.get(kFirstSubvolume, {name, 1, 0}));
  if (!record) return std::optional<BlockRun>{};
  return std::optional(BlockRun{load_disk<Le64>(record->value), 1});
}

// An object's record says where its block lies, and its tag.
inline Result<void> enter(Transaction& transaction, u64 name, Bytes value,
                          const ExtentRecord& extent) {
  LK_TRY(const auto old, named(transaction, name));
  LK_TRYV(transaction.put(kFirstSubvolume, {name, 1, 0}, value));
  LK_TRYV(transaction.insert_extent(extent.run, 0, extent.context, extent.checksums));
  if (old) LK_TRYV(transaction.release_extent(*old));
  return {};
}

inline Result<void> replay(Transaction& transaction, const LogRecord& record) {
  LK_TRY(const auto old, named(transaction, record.object));
  if (!old) return fail(Errc::malformed, "an object that is not in the tree was logged");
  return enter(transaction, record.object, record.note, record.extents.at(0));
}

inline OpenOptions with_replay() {
  OpenOptions options;
  options.replay = replay;
  options.runs_of = [](const Key& key, Bytes value) -> std::optional<BlockRun> {
    if (key.type != 1) return std::nullopt;
    return BlockRun{load_disk<Le64>(value), 1};
  };
  return options;
}

// `declared`: as an insert, which a log may carry.
inline Result<void> write(Store& store, Io& io, u64 name, u64 tag, bool declared) {
  LK_TRY(Reservation space, store.reserve({1, 3, 128}));
  const BlockRun run = store.allocate(space, 1);
  fill(io.buffer(), tag);
  LK_TRYV(write_sync(io, run.block * kBlockBytes, io.buffer()));
  const std::array<Le64, 2> value{run.block, tag};
  const Bytes bytes = std::as_bytes(std::span(value));
  LK_TRY(Transaction transaction, store.begin(std::move(space)));
  if (declared) transaction.declare_insert(kFirstSubvolume, name, {bytes.begin(), bytes.end()}, 1);
  return enter(transaction, name, bytes, {run, 1, 0, {}, {crc32c(io.buffer())}});
}

using Model = std::map<u64, u64>;  // tags by name

inline void read_store(SimDevice& device, Store& store, Model& model) {
  std::map<u64, std::pair<u64, u64>> found;
  ASSERT_TRUE(
      store.view().scan(kFirstSubvolume, {}, {~u64{0}, 255, 0}, [&](const Key& key, Bytes value) {
        found[key.object] = {load_disk<Le64>(value), load_disk<Le64>(value.subspan(8))};
        return true;
      }));
  auto page = IoBuffer::create(kBlockBytes);
  auto expected = IoBuffer::create(kBlockBytes);
  auto io = device.make_io({});
  for (const auto& [name, where] : found) {
    ASSERT_TRUE(read_sync(**io, where.first * kBlockBytes, page->bytes()));
    fill(expected->bytes(), where.second);
    ASSERT_TRUE(std::ranges::equal(page->bytes(), expected->bytes())) << "data of " << name;
    model[name] = where.second;
  }
}

class LoggedStore : public ::testing::Test {
 protected:
  void SetUp() override {
    FormatOptions format;
    format.node_bytes = 4096;
    ASSERT_TRUE(Store::format(device_, format));
    open();
    for (u64 name = 0; name < kNames; ++name) ASSERT_TRUE(put(name, name, false));
    ASSERT_TRUE(store_->commit());
  }
  void open(const OpenOptions& options = with_replay()) {
    store_.reset();
    auto opened = Store::open(device_, options, system_env());
    ASSERT_TRUE(opened) << opened.error().what;
    store_ = std::move(*opened);
    auto io = device_.make_io({.buffer_bytes = kBlockBytes});
    io_ = std::move(*io);
  }
  Result<void> put(u64 name, u64 tag, bool declared = true) {
    return write(*store_, *io_, name, tag, declared);
  }
  Result<void> sync(u64 name) { return store_->sync_object(kFirstSubvolume, name); }
  void crash(u64 seed) {
    store_.reset();
    io_.reset();
    device_.crash(seed);
  }
  u64 tag(u64 name) {
    Model model;
    read_store(device_, *store_, model);
    return model.contains(name) ? model[name] : ~u64{0};
  }
  void expect_logged(const std::function<void()>& steps, bool logged) {
    const u64 commits = store_->commits(), blocks = store_->log_blocks();
    steps();
    EXPECT_EQ(store_->commits() - commits, logged ? 0U : 1U);
    EXPECT_EQ(store_->log_blocks() - blocks, logged ? 1U : 0U);
  }
  // Of the log's blocks on the device.
  std::vector<u64> find_places() {
    OpenOptions options;
    options.read_only = true;
    auto opened = Store::open(device_, options, system_env());
    std::vector<u64> places;
    std::map<u64, u64> by_sequence;
    const u64 generation = (*opened)->facts().generation;
    for (u64 block = 0; block < kSize / kBlockBytes; ++block) {
      std::vector<std::byte> bytes(kBlockBytes);
      device_.peek(block * kBlockBytes, bytes);
      const auto head = load_disk<LogBlockDisk>(bytes);
      if (head.magic == kLogMagic && head.generation == generation)
        by_sequence[head.sequence] = block;
    }
    std::ranges::copy(std::views::values(by_sequence), std::back_inserter(places));
    return places;
  }
  void expect_clean() {
    auto result = check_store(*store_, {.data = true, .progress = {}});
    ASSERT_TRUE(result);
    for (const Finding& finding : result->findings)
      ADD_FAILURE() << finding.where << ": " << finding.what;
  }

  SimDevice device_{SimConfig{.size_bytes = kSize}};
  std::unique_ptr<Io> io_;
  std::unique_ptr<Store> store_;
};

}  // namespace latchkey::tests
