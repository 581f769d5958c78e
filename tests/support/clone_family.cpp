#include "tests/support/clone_family.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/checksum.h"
#include "base/disk.h"
#include "engine/extent_table.h"
#include "engine/io_buffer.h"

namespace latchkey::tests {

using namespace engine;  // NOLINT: the whole file is about it

namespace {

constexpr u8 kType = 1;
constexpr Key kLast{~u64{0}, 255, ~u64{0}};

// Block (0: none), tag, then filling by the tag.
std::vector<std::byte> encode(const FamilyRecord& record, u64 block, u32 bytes_max) {
  std::vector<std::byte> value(16 + record.tag % (bytes_max - 15));
  std::ranges::fill(value, static_cast<std::byte>(record.tag));
  store_disk(value, Le64(block));
  store_disk(MutableBytes(value).subspan(8), Le64(record.tag));
  return value;
}

void fill(MutableBytes block, u64 tag) {
  std::mt19937_64 random(tag);
  for (std::size_t i = 0; i < block.size(); i += 8) store_disk(block.subspan(i), Le64(random()));
}

}  // namespace

std::optional<BlockRun> family_runs_of(const Key& key, Bytes value) {
  if (key.type != kType || value.size() < 16) return std::nullopt;
  const u64 block = load_disk<Le64>(value);
  if (block == 0) return std::nullopt;
  return BlockRun{block, 1};
}

OpenOptions family_options() {
  OpenOptions options;
  options.runs_of = family_runs_of;
  return options;
}

TreeId CloneFamily::any_tree() {
  auto it = model_.begin();
  std::advance(it, random_() % model_.size());
  return it->first;
}

Result<void> CloneFamily::step() {
  const u64 what = random_() % 100;
  if (what < 6 && model_.size() + dropping_.size() < options_.trees_max) return clone(any_tree());
  if (what < 9 && model_.size() > 1) {
    TreeId tree = any_tree();
    if (tree == kFirstSubvolume) tree = model_.rbegin()->first;
    begin_drop(tree);
    return {};
  }
  if (what < 25 && !dropping_.empty()) {
    LK_TRY(const bool gone, drop_step(dropping_[random_() % dropping_.size()]));
    (void)gone;
    return {};
  }
  if (what < 40) return erase_spread(any_tree(), 6);
  return change(any_tree(), 1 + static_cast<u32>(random_() % options_.changes_max));
}

Result<void> CloneFamily::change(TreeId tree, u32 records) {
  for (u32 i = 0; i < records; ++i) {
    const u64 name = random_() % options_.names;
    if (random_() % 3 == 0)
      LK_TRYV(erase(tree, name));
    else
      LK_TRYV(put(tree, name, random_() % 3 != 0));
  }
  return {};
}

Result<void> CloneFamily::write_data(BlockRun run, u64 tag, u32& checksum) {
  const BorrowedIo io = store_->borrow_io();
  const MutableBytes block = io->buffer().first(kBlockBytes);
  fill(block, tag);
  checksum = crc32c(block);
  if (!options_.write_data) return {};
  return write_sync(*io, run.block * kBlockBytes, block);
}

Result<void> CloneFamily::put(TreeId tree, u64 name, bool data) {
  const FamilyRecord record{random_(), data};
  LK_TRY(Reservation space, store_->reserve({data ? 1U : 0U, 4, options_.value_bytes_max + 300U}));
  std::optional<BlockRun> run;
  u32 checksum = 0;
  if (data) {
    run = store_->allocate(space, 1);
    LK_TRYV(write_data(*run, record.tag, checksum));
  }
  auto transaction = store_->begin(std::move(space));
  if (!transaction) {
    if (run) store_->cancel(*run);
    return std::unexpected(transaction.error());
  }
  const std::vector<std::byte> context(options_.context_bytes, std::byte{1});
  if (run) LK_TRYV(transaction->insert_extent(*run, 0, context, std::span(&checksum, 1)));
  LK_TRYV(put(*transaction, tree, name, record, run));
  model_[tree][name] = record;
  return {};
}

Result<void> CloneFamily::put(Transaction& transaction, TreeId tree, u64 name,
                              const FamilyRecord& record, std::optional<BlockRun> run) {
  const Key key{name, kType, 0};
  LK_TRY(const auto old, transaction.get(tree, key));
  const auto value = encode(record, run ? run->block : 0, options_.value_bytes_max);
  LK_TRYV(transaction.put(tree, key, value));
  if (!old) return {};
  const auto before = family_runs_of(key, old->value);
  if (before) LK_TRYV(transaction.release_extent(*before));
  return {};
}

Result<void> CloneFamily::erase(TreeId tree, u64 name) {
  LK_TRY(Reservation space, store_->reserve({0, 2, 300}, true));
  LK_TRY(Transaction transaction, store_->begin(std::move(space)));
  LK_TRYV(erase(transaction, tree, name));
  model_[tree].erase(name);
  return {};
}

Result<void> CloneFamily::erase_spread(TreeId tree, u32 records) {
  LK_TRY(Reservation space, store_->reserve({0, 2 * records, records * 300U}, true));
  LK_TRY(Transaction transaction, store_->begin(std::move(space)));
  for (u32 i = 0; i < records; ++i) {
    const auto it = model_[tree].lower_bound(
        (random_() % options_.names + i * options_.names / records) % options_.names);
    if (it == model_[tree].end()) continue;
    LK_TRYV(erase(transaction, tree, it->first));
    model_[tree].erase(it);
  }
  return {};
}

Result<void> CloneFamily::erase(Transaction& transaction, TreeId tree, u64 name) {
  const Key key{name, kType, 0};
  LK_TRY(const auto old, transaction.get(tree, key));
  LK_TRY(const bool there, transaction.erase(tree, key));
  EXPECT_EQ(there, old.has_value());
  if (!old) return {};
  const auto before = family_runs_of(key, old->value);
  if (before) LK_TRYV(transaction.release_extent(*before));
  return {};
}

Result<void> CloneFamily::clone(TreeId from) {
  SpaceNeed need{0, 2, 256};
  need.clone = true;
  LK_TRY(Reservation space, store_->reserve(need));
  LK_TRY(Transaction transaction, store_->begin(std::move(space)));
  LK_TRYV(transaction.clone_tree(from, next_tree_));
  model_[next_tree_] = model_[from];
  ++next_tree_;
  return {};
}

void CloneFamily::begin_drop(TreeId tree) {
  dropping_.push_back(tree);
  model_.erase(tree);
}

Result<bool> CloneFamily::drop_step(TreeId tree) {
  LK_TRY(Reservation space, store_->reserve({}, true));
  LK_TRY(Transaction transaction, store_->begin(std::move(space)));
  LK_TRY(const bool gone, transaction.drop_tree_step(tree, options_.drop_nodes));
  if (gone) std::erase(dropping_, tree);
  return gone;
}

Result<void> CloneFamily::drop(TreeId tree) {
  model_.erase(tree);
  for (;;) {
    LK_TRY(const bool gone, drop_step(tree));
    if (gone) return {};
  }
}

Result<void> CloneFamily::empty() {
  while (!dropping_.empty()) LK_TRYV(drop(dropping_.back()));
  while (model_.size() > 1) LK_TRYV(drop(model_.rbegin()->first));
  while (!model_[kFirstSubvolume].empty())
    LK_TRYV(erase(kFirstSubvolume, model_[kFirstSubvolume].begin()->first));
  return {};
}

void read_family(Store& store, const std::vector<TreeId>& except, bool data, FamilyModel& model) {
  const View view = store.view();
  std::vector<TreeId> trees;
  ASSERT_TRUE(view.scan(kRootTree, {kFirstSubvolume, 0, 0}, kLast, [&](const Key& key, Bytes) {
    if (std::ranges::find(except, key.object) == except.end()) trees.push_back(key.object);
    return true;
  }));
  std::vector<std::pair<u64, u64>> blocks;  // and their tags
  for (const TreeId tree : trees) {
    FamilyTree& records = model[tree];
    const auto scanned = view.scan(tree, {}, kLast, [&](const Key& key, Bytes value) {
      const u64 block = load_disk<Le64>(value);
      const u64 tag = load_disk<Le64>(value.subspan(8));
      records[key.object] = {tag, block != 0};
      if (block != 0) blocks.emplace_back(block, tag);
      return true;
    });
    ASSERT_TRUE(scanned) << "tree " << tree << ": " << scanned.error().what;
  }
  if (!data) return;
  std::ranges::sort(blocks);
  blocks.erase(std::ranges::unique(blocks).begin(), blocks.end());
  auto expected = IoBuffer::create(kBlockBytes);
  const BorrowedIo io = store.borrow_io();
  const MutableBytes read = io->buffer().first(kBlockBytes);
  for (const auto& [block, tag] : blocks) {
    ASSERT_TRUE(read_sync(*io, block * kBlockBytes, read));
    fill(expected->bytes(), tag);
    ASSERT_TRUE(std::ranges::equal(read, expected->bytes())) << "block " << block;
  }
}

void expect_family_clean(Store& store, bool data) {
  CheckOptions options;
  options.data = data;
  const auto check = check_store(store, options);
  ASSERT_TRUE(check) << check.error().what;
  for (const Finding& finding : check->findings)
    ADD_FAILURE() << finding.where << ": " << finding.what;

  std::map<u64, u32> wanted, counted;
  const View view = store.view();
  ASSERT_TRUE(view.scan_distinct([&](TreeId, const Key& key, Bytes value) {
    if (const auto run = family_runs_of(key, value)) ++wanted[run->block];
    return true;
  }));
  ASSERT_TRUE(view.scan(kExtentTree, {}, kLast, [&](const Key& key, Bytes value) {
    if (const auto record = decode_extent(key, value); record)
      for (u64 block = record->run.block; block < record->run.end(); ++block)
        counted[block] = record->references;
    return true;
  }));
  EXPECT_TRUE(wanted == counted) << "extents do not have the references that the records give";
}

}  // namespace latchkey::tests
