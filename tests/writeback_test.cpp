// Goal: what goes down is what the file held, under a nonce that is drawn for each try; files leave
// together and fail alone; nothing is entered into a map whose data did not land. Method: plans by
// hand (pure), then the pipeline over a store on a SimDevice with files that are vectors of pages.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "extent/context.h"
#include "extent/seal.h"
#include "tests/support/keyring_fixture.h"
#include "tests/support/sim_device.h"
#include "writeback/pipeline.h"

namespace latchkey::tests {
namespace {

using namespace writeback;  // NOLINT: the whole file is about it

constexpr u64 kPage = 4096;

// The system's time and chance, and a memory of every nonce drawn.
class RecordingEnv final : public Env {
 public:
  u64 monotonic_ns() override { return system_env().monotonic_ns(); }
  u64 realtime_ns() override { return system_env().realtime_ns(); }
  void random(MutableBytes bytes) override {
    system_env().random(bytes);
    crypto::Nonce nonce;
    if (bytes.size() % nonce.bytes.size() != 0) return;
    for (; !bytes.empty(); bytes = bytes.subspan(nonce.bytes.size())) {
      std::memcpy(nonce.bytes.data(), bytes.data(), nonce.bytes.size());
      drawn.push_back(nonce);
    }
  }
  std::vector<crypto::Nonce> drawn;
};

// --- plans -------------------------------------------------------------------------------------

std::vector<DirtyPage> pages_at(std::initializer_list<u64> indexes) {
  std::vector<DirtyPage> pages;
  for (const u64 index : indexes) pages.push_back({index, nullptr});
  return pages;
}

TEST(Plan, pages_that_are_not_neighbours_share_an_extent_and_the_map_gets_an_entry_each) {
  const auto batch = pages_at({3, 4, 9, 20, 21, 22});
  const std::vector<PageRange> parts{{0, 6}};
  const std::vector<engine::BlockRun> runs{{100, 6}};
  const auto extents = plan_extents(parts, runs, 32, system_env());
  ASSERT_EQ(extents.size(), 1U);
  EXPECT_EQ(extents[0].run, (engine::BlockRun{100, 6}));
  const auto entries = map_entries(batch, extents);
  const std::vector<extent::MapEntry> expected{{3, 100, 2}, {9, 102, 1}, {20, 103, 3}};
  EXPECT_EQ(entries, expected);
}

TEST(Plan, an_extent_ends_at_its_longest_at_a_run_and_at_a_file) {
  const std::vector<PageRange> parts{{0, 7}, {7, 3}, {10, 1}};
  const std::vector<engine::BlockRun> runs{{50, 5}, {90, 6}};
  RecordingEnv env;
  const auto extents = plan_extents(parts, runs, 4, env);
  std::vector<std::array<u64, 4>> shape;
  for (const PlannedExtent& e : extents)
    shape.push_back({e.run.block, e.run.count, e.first_page, e.part});
  const std::vector<std::array<u64, 4>> expected{
      {50, 4, 0, 0}, {54, 1, 4, 0}, {90, 2, 5, 0}, {92, 3, 7, 1}, {95, 1, 10, 2}};
  EXPECT_EQ(shape, expected);
  // One nonce each, none twice.
  std::set<crypto::Nonce> nonces;
  for (const PlannedExtent& e : extents) nonces.insert(e.nonce);
  EXPECT_EQ(nonces.size(), extents.size());
  EXPECT_EQ(env.drawn.size(), extents.size());
}

TEST(Plan, neighbouring_extents_leave_in_one_write_and_a_failed_file_is_left_out) {
  const std::vector<PageRange> parts{{0, 6}, {6, 2}, {8, 4}};
  const std::vector<engine::BlockRun> runs{{10, 12}};
  const auto extents = plan_extents(parts, runs, 4, system_env());
  const auto all = plan_writes(extents, 128, {false, false, false});
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0].pages.count, 12U);
  const auto without = plan_writes(extents, 128, {false, true, false});
  ASSERT_EQ(without.size(), 2U);
  EXPECT_EQ(without[0].pages.count, 6U);
  EXPECT_EQ(without[1].block, 18U);
  EXPECT_EQ(without[1].pages.first, 8U);
  const auto small = plan_writes(extents, 5, {false, false, false});
  ASSERT_EQ(small.size(), 3U);
  EXPECT_EQ(small[1].block, 15U);
  EXPECT_EQ(small[1].pages.first, 5U);
  EXPECT_EQ(small[2].pages.count, 2U);
}

// --- the pipeline ------------------------------------------------------------------------------

using Content = std::map<u64, std::vector<std::byte>>;  // page index -> 4096 bytes

class FakeFile final : public DirtyFile {
 public:
  FakeFile(engine::Store& store, const keymgr::Lease* lease, const crypto::KeyId& id)
      : store_(store), lease_(lease), id_(id) {}

  void dirty(u64 index) {
    std::vector<std::byte> page(kPage);
    for (u64 i = 0; i < kPage; ++i) page[i] = static_cast<std::byte>(index * 31 + i * 7 + i / 256);
    auto reserved = store_.reserve({1, 4, 220});
    ASSERT_TRUE(reserved);
    if (!dirty_.contains(index)) space_.merge(std::move(*reserved));
    dirty_[index] = std::move(page);
  }

  const keymgr::Lease* lease() const override { return lease_; }
  crypto::KeyId key_id() const override { return id_; }
  std::vector<DirtyPage> take(u64 from, u32 pages_max, engine::Reservation& space) override {
    std::vector<DirtyPage> taken;
    for (auto it = dirty_.lower_bound(from); it != dirty_.end() && taken.size() < pages_max;) {
      taken.push_back({it->first, it->second.data()});
      flying_.insert(dirty_.extract(it++));
    }
    space.merge(take_share(space_, taken.size()));
    return taken;
  }
  void sealed(std::span<const DirtyPage> pages) override { sealed_count += pages.size(); }
  std::optional<engine::LogRecord> log_record(const engine::Store&,
                                              std::span<const extent::MapEntry>) const override {
    if (!logged) return {};
    return engine::LogRecord{engine::kFirstSubvolume, 1, {}, {}};
  }
  Result<void> insert(engine::Transaction&, std::span<const extent::MapEntry> fresh) override {
    if (refuse_insert) return fail(Errc::damaged, "the test's map cannot be read");
    for (const extent::MapEntry& entry : fresh)
      for (u32 i = 0; i < entry.blocks; ++i) map[entry.file_block + i] = entry.disk_block + i;
    return {};
  }
  void finished(std::span<const DirtyPage> pages, const Result<void>& result,
                engine::Reservation&& space) override {
    for (const DirtyPage& page : pages) {
      auto node = flying_.extract(page.index);
      ASSERT_FALSE(node.empty());
      if (result)
        landed.insert(std::move(node));
      else
        dirty_.insert(std::move(node));
    }
    if (!result) space_.merge(std::move(space));
  }

  u64 dirty_pages() const { return dirty_.size(); }
  u64 reserved() const { return space_.data_blocks(); }
  bool refuse_insert = false;
  bool logged = false;  // what it enters can be
  u64 sealed_count = 0;
  Content landed;
  std::map<u64, u64> map;  // page index -> disk block

 private:
  engine::Store& store_;
  const keymgr::Lease* lease_;
  const crypto::KeyId id_;
  Content dirty_, flying_;
  engine::Reservation space_;
};

class WritebackTest : public KeyringTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(engine::Store::format(device_, engine::FormatOptions{}));
    auto store = engine::Store::open(device_, {}, env_);
    ASSERT_TRUE(store);
    store_ = std::move(*store);
    make_pipeline({});
    add(kA);
    ASSERT_EQ(lease(lease_), kOk);
    env_.drawn.clear();
  }
  void TearDown() override {
    ring_.release(lease_);
    pipeline_.reset();
    if (store_ != nullptr) {
      EXPECT_TRUE(store_->close());
    }
  }
  void make_pipeline(PipelineOptions options) {
    options.lanes = 1;
    auto made = Pipeline::create(*store_, env_, options);
    ASSERT_TRUE(made);
    pipeline_ = std::move(*made);
  }
  FakeFile sealed_file() { return {*store_, &lease_, id_}; }
  Result<void> flush(FakeFile& file, bool synced = false) {
    FileFlush one;
    one.file = &file;
    one.synced = synced;
    pipeline_->flush({&one, 1});
    return one.result;
  }
  std::vector<std::byte> on_device(u64 block) {
    std::vector<std::byte> bytes(kPage);
    device_.peek(block * engine::kBlockBytes, bytes);
    return bytes;
  }
  // Every page that landed, read back by hand: record, checksum, key from the record's context.
  void expect_readable(const FakeFile& file) {
    for (const auto& [index, plaintext] : file.landed) {
      ASSERT_TRUE(file.map.contains(index));
      const u64 block = file.map.at(index);
      const auto record = store_->view().extent_at(block, 1);
      ASSERT_TRUE(record);
      auto bytes = on_device(block);
      EXPECT_EQ(extent::first_mismatch(bytes, record->checksums), -1);
      const auto context = extent::decode_context(record->context);
      ASSERT_TRUE(context);
      ASSERT_EQ(context->has_value(), file.lease() != nullptr);
      if (*context) {
        EXPECT_EQ((*context)->key_id, file.key_id());
        EXPECT_NE(bytes, plaintext);
        auto key = Secret<crypto::XtsKey>::create();
        auto use = keymgr::KeyUse::begin(*file.lease());
        ASSERT_TRUE(key && use);
        use->extent_key((*context)->nonce, **key);
        extent::open_blocks(**key, record->first_unit, bytes, bytes);
      }
      EXPECT_EQ(bytes, plaintext) << "page " << index;
    }
  }
  std::set<crypto::Nonce> nonces_of(const FakeFile& file) {
    std::set<crypto::Nonce> nonces;
    for (const auto& [index, block] : file.map)
      nonces.insert((*extent::decode_context(store_->view().extent_at(block, 1)->context))->nonce);
    return nonces;
  }

  RecordingEnv env_;
  SimDevice device_{SimConfig{.size_bytes = 64 * kMiB, .shuffle = false}};
  std::unique_ptr<engine::Store> store_;
  std::unique_ptr<Pipeline> pipeline_;
  keymgr::Lease lease_;
};

TEST_F(WritebackTest, what_lands_is_what_the_file_held) {
  FakeFile file = sealed_file();
  for (u64 i = 0; i < 1300; ++i) file.dirty(i * 3 % 2000);  // several batches, with gaps
  ASSERT_TRUE(flush(file));
  EXPECT_EQ(file.dirty_pages(), 0U);
  EXPECT_EQ(file.landed.size(), 1300U);
  EXPECT_EQ(file.sealed_count, 1300U);
  expect_readable(file);
  EXPECT_EQ(store_->space().blocks_reserved, 0U);
}

TEST_F(WritebackTest, small_ranges_of_one_file_are_packed_under_one_key) {
  FakeFile file = sealed_file();
  for (const u64 index : {0, 7, 50, 51, 900}) file.dirty(static_cast<u64>(index));
  ASSERT_TRUE(flush(file));
  EXPECT_EQ(nonces_of(file).size(), 1U);
  EXPECT_EQ(pipeline_->counters().extents, 1U);
  expect_readable(file);
}

TEST_F(WritebackTest, files_leave_in_one_write_each_under_a_nonce_of_its_own) {
  std::vector<FakeFile> files;
  for (int i = 0; i < 20; ++i) files.push_back(sealed_file());
  files.emplace_back(*store_, nullptr, crypto::KeyId{});  // a clear one between them
  std::vector<FileFlush> flushes(files.size());
  for (std::size_t i = 0; i < files.size(); ++i) {
    files[i].dirty(0);
    files[i].dirty(1);
    flushes[i].file = &files[i];
  }
  const u64 writes = device_.counters().writes;
  pipeline_->flush(flushes);
  EXPECT_EQ(device_.counters().writes, writes + 1);
  std::set<crypto::Nonce> nonces;
  for (std::size_t i = 0; i < files.size(); ++i) {
    EXPECT_TRUE(flushes[i].result);
    expect_readable(files[i]);
    if (i < 20) nonces.merge(nonces_of(files[i]));
  }
  EXPECT_EQ(nonces.size(), 20U);
}

// Twenty files of one extent each, under two keys by turns and with clear files between them: ten
// keys of a kind are two calls.
TEST_F(WritebackTest, keys_are_derived_eight_at_a_time_across_files) {
  const auto other = ring_.add(kA, in_arena(raw_key(2)));
  ASSERT_TRUE(other);
  std::array<keymgr::Lease, 2> leases;
  ASSERT_TRUE(ring_.lease(*other, 2, leases[0]));
  ASSERT_TRUE(ring_.lease(*other, 3, leases[1]));  // a lease of each file's own, of the same key
  std::vector<FakeFile> files;
  for (std::size_t i = 0; i < 10; ++i) {
    files.push_back(sealed_file());
    files.emplace_back(*store_, &leases[i % 2], *other);
    files.emplace_back(*store_, nullptr, crypto::KeyId{});
  }
  std::vector<FileFlush> flushes(files.size());
  for (std::size_t i = 0; i < files.size(); ++i) {
    files[i].dirty(i);
    flushes[i].file = &files[i];
  }
  pipeline_->flush(flushes);
  EXPECT_EQ(pipeline_->counters().derivations, 4U);
  EXPECT_EQ(pipeline_->counters().extents, 30U);
  for (const FakeFile& file : files) {
    EXPECT_EQ(file.sealed_count, 1U);
    expect_readable(file);
  }
  for (keymgr::Lease& lease : leases) ring_.release(lease);
}

// What an fsync waits for, all in one batch: then data, block and one flush come before the insert.
TEST_F(WritebackTest, one_batch_of_a_file_whose_fsync_waits_is_logged_beside_its_data) {
  const auto count = [&](u64 pages, bool logged, bool synced) {
    FakeFile file = sealed_file();
    file.logged = logged;
    for (u64 i = 0; i < pages; ++i) file.dirty(i);
    const u64 flushes = device_.counters().flushes, blocks = store_->log_blocks();
    EXPECT_TRUE(flush(file, synced));
    expect_readable(file);
    EXPECT_EQ(device_.counters().flushes - flushes, store_->log_blocks() - blocks);
    return store_->log_blocks() - blocks;
  };
  EXPECT_EQ(count(3, true, true), 1U);
  EXPECT_EQ(count(3, true, false), 0U);
  EXPECT_EQ(count(3, false, true), 0U);
  EXPECT_EQ(count(kBatchPages - 1, true, true), 1U);
  EXPECT_EQ(count(kBatchPages, true, true), 0U);
  EXPECT_EQ(count(kBatchPages + 1, true, true), 0U);
}

TEST_F(WritebackTest, insert_that_fails_behind_its_log_stops_the_store) {
  {
    FakeFile file = sealed_file();
    file.logged = file.refuse_insert = true;
    file.dirty(1);
    ASSERT_FALSE(flush(file, true));
    EXPECT_EQ(file.dirty_pages(), 1U);
  }
  const auto why = store_->failure();
  ASSERT_TRUE(why);
  EXPECT_EQ(why->code, Errc::damaged);
  pipeline_.reset();
  EXPECT_FALSE(store_->close());
  store_.reset();
}

TEST_F(WritebackTest, a_retry_has_new_nonces_and_gives_the_old_blocks_back) {
  FakeFile file = sealed_file();
  for (u64 i = 0; i < 40; ++i) file.dirty(i);
  const engine::SpaceFacts before = store_->space();
  std::set<crypto::Nonce> seen;
  for (int attempt = 0; attempt < 3; ++attempt) {
    device_.inject({.kind = engine::OpKind::write, .os_errno = 5});
    env_.drawn.clear();
    const auto failed = flush(file);
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code, Errc::io);
    EXPECT_EQ(file.dirty_pages(), 40U);
    EXPECT_EQ(file.reserved(), 40U);
    EXPECT_EQ(store_->space().blocks_reserved, before.blocks_reserved);
    EXPECT_EQ(store_->space().blocks_used, before.blocks_used);
    EXPECT_EQ(env_.drawn.size(), 2U);
    for (const crypto::Nonce& nonce : env_.drawn) EXPECT_TRUE(seen.insert(nonce).second);
  }
  EXPECT_TRUE(file.map.empty());
  device_.clear_faults();
  ASSERT_TRUE(flush(file));
  for (const crypto::Nonce& nonce : nonces_of(file)) EXPECT_FALSE(seen.contains(nonce));
  expect_readable(file);
}

TEST_F(WritebackTest, nothing_of_a_file_is_entered_after_a_batch_that_did_not_land) {
  FakeFile file = sealed_file();
  for (u64 i = 0; i < 1500; ++i) file.dirty(i);
  device_.inject({.kind = engine::OpKind::write, .os_errno = 5});  // one write of the first batch
  ASSERT_FALSE(flush(file));
  EXPECT_TRUE(file.map.empty());
  EXPECT_EQ(file.dirty_pages(), 1500U);
  EXPECT_EQ(file.reserved(), 1500U);
  device_.clear_faults();
  ASSERT_TRUE(flush(file));
  expect_readable(file);
}

TEST_F(WritebackTest, a_map_that_cannot_be_changed_leaves_no_extent_behind) {
  FakeFile file = sealed_file();
  FakeFile other = sealed_file();
  file.dirty(0);
  other.dirty(0);
  file.refuse_insert = true;
  const u64 used = store_->space().blocks_used;
  std::vector<FileFlush> flushes(2);
  flushes[0].file = &file;
  flushes[1].file = &other;
  pipeline_->flush(flushes);
  ASSERT_FALSE(flushes[0].result);
  EXPECT_EQ(flushes[0].result.error().code, Errc::damaged);
  EXPECT_EQ(file.dirty_pages(), 1U);
  EXPECT_TRUE(flushes[1].result);
  EXPECT_EQ(store_->space().blocks_used, used + 1);
  expect_readable(other);
}

TEST_F(WritebackTest, a_key_that_is_gone_stops_its_files_and_no_others) {
  FakeFile file = sealed_file();
  FakeFile clear(*store_, nullptr, crypto::KeyId{});
  for (u64 i = 0; i < 10; ++i) {
    file.dirty(i);
    clear.dirty(i);
  }
  remove(kA, false, keymgr::RemovalMode::hard);
  std::vector<FileFlush> flushes(2);
  flushes[0].file = &file;
  flushes[1].file = &clear;
  pipeline_->flush(flushes);
  ASSERT_FALSE(flushes[0].result);
  EXPECT_EQ(flushes[0].result.error().code, Errc::no_key);
  EXPECT_EQ(file.dirty_pages(), 10U);
  EXPECT_EQ(file.sealed_count, 10U);  // open to writers again
  EXPECT_TRUE(flushes[1].result);
  expect_readable(clear);
}

TEST_F(WritebackTest, clear_mode_is_the_same_path_without_the_cipher) {
  make_pipeline({.clear_cipher = true});
  FakeFile file = sealed_file();
  for (u64 i = 0; i < 40; ++i) file.dirty(i);
  ASSERT_TRUE(flush(file));
  EXPECT_EQ(env_.drawn.size(), 2U);  // nonces are drawn
  EXPECT_EQ(nonces_of(file).size(), 2U);
  for (const auto& [index, plaintext] : file.landed)
    EXPECT_EQ(on_device(file.map.at(index)), plaintext);
}

TEST_F(WritebackTest, extent_keys_do_not_outlive_the_batch) {
  FakeFile file = sealed_file();
  for (u64 i = 0; i < 40; ++i) file.dirty(i);
  ASSERT_TRUE(flush(file));
  for (const crypto::Nonce& nonce : nonces_of(file)) {
    const ScheduleNeedles needles = schedule_of(raw_, nonce);
    EXPECT_FALSE(arena_holds(needles.encrypt));
    EXPECT_FALSE(arena_holds(needles.tweak));
  }
}

// The good file is sealed first, so its key is the one that the failing one finds in the lane.
TEST_F(WritebackTest, an_extent_key_does_not_outlive_a_batch_whose_last_file_fails) {
  const auto other = ring_.add(kA, in_arena(raw_key(2)));
  ASSERT_TRUE(other);
  keymgr::Lease cut_off;
  ASSERT_TRUE(ring_.lease(*other, 2, cut_off));
  FakeFile good = sealed_file();
  FakeFile bad(*store_, &cut_off, *other);
  good.dirty(0);
  bad.dirty(0);
  auto start = ring_.begin_removal(*other, kA, false, keymgr::RemovalMode::hard);
  ASSERT_TRUE(start && start->removal && start->removal->commit());
  std::vector<FileFlush> flushes(2);
  flushes[0].file = &good;
  flushes[1].file = &bad;
  pipeline_->flush(flushes);
  EXPECT_TRUE(flushes[0].result);
  ASSERT_FALSE(flushes[1].result);
  EXPECT_EQ(flushes[1].result.error().code, Errc::no_key);

  const crypto::Nonce nonce = *nonces_of(good).begin();
  const ScheduleNeedles needles = schedule_of(raw_, nonce);
  EXPECT_FALSE(arena_holds(needles.encrypt));
  EXPECT_FALSE(arena_holds(needles.tweak));
  auto key = Secret<crypto::XtsKey>::create();
  ASSERT_TRUE(key);
  keymgr::KeyUse::begin(lease_)->extent_key(nonce, **key);
  EXPECT_TRUE(arena_holds(needles.encrypt));  // the scan does see it where it is
  key->reset();
  EXPECT_FALSE(arena_holds(needles.encrypt));
  ring_.release(cut_off);
}

}  // namespace
}  // namespace latchkey::tests
