// The engine's part of an offline check: superblocks, nodes in both places, extent records,
// bitmaps.

#include <fmt/format.h>

#include <map>
#include <optional>
#include <vector>

#include "engine/check_state.h"
#include "engine/io_buffer.h"
#include "engine/store_state.h"

namespace latchkey::engine {

namespace {

class Checker {
 public:
  Checker(StoreState& state, const CheckOptions& options)
      : state_(state), options_(options), reachable_(state.fixed.size_bytes / kBlockBytes, false) {}

  Result<Checked> run() {
    LK_TRYV(check_superblocks());
    SharedLock lock(state_.forest_lock);
    LK_TRY(const Pointer root, state_.forest->root(kRootTree));
    walk(root, kRootTree, {});
    for (const auto& [tree, pointer] : trees_) walk(pointer, tree, {});
    check_references();
    check_promises();
    check_log();
    if (options_.data) check_data();
    check_bitmaps();
    return Checked{std::move(result_),
                   std::move(counts_wrong_),
                   extent_nodes_,
                   std::move(reachable_),
                   whole_,
                   sound_,
                   space_wrong_,
                   promised_,
                   promised_wrong_};
  }

 private:
  // What is damaged hides what it refers to.
  void lost(std::string what, std::string where) {
    whole_ = false;
    found(std::move(what), std::move(where));
  }
  void found_unsound(std::string what, std::string where) {
    sound_ = false;
    found(std::move(what), std::move(where));
  }
  void found_in_space(std::string what, std::string where) {
    space_wrong_ = true;
    found(std::move(what), std::move(where), true);
  }
  void found(std::string what, std::string where, bool repairable = false) {
    result_.findings.push_back({std::move(what), std::move(where), repairable});
  }

  Result<void> check_superblocks() {
    LK_TRY(const SuperblockScan scan, scan_superblocks(*state_.commit_io, state_.fixed.size_bytes));
    const auto newest = scan.newest(false);
    for (u32 place = 0; place < 4; ++place) {
      const u64 block = superblock_place(place, state_.fixed.size_bytes);
      reachable_[block] = true;
      const SuperblockCopy& copy = scan.copies[place];
      const bool other_set = newest && place % 2 != newest->generation % 2;
      // A store that was committed only once has one set.
      if (other_set && newest->generation <= 1) continue;
      if (copy.wrong != nullptr)
        result_.notes.push_back({fmt::format("a superblock copy {}", copy.wrong), at(block), true});
      else if (newest && copy.superblock->generation + 1 < newest->generation)
        result_.notes.push_back({"a superblock copy is older than its twin", at(block), true});
    }
    return {};
  }

  static std::string at(u64 block) { return fmt::format("device offset {}", block * kBlockBytes); }

  void claim(BlockRun run, const std::string& where) {
    for (u64 block = run.block; block < run.end(); ++block) {
      if (block >= reachable_.size()) {
        found_unsound("a block past the end of the store is referred to", where);
        return;
      }
      if (state_.space->is_reserved(block))
        found_unsound("a reserved block is referred to", where + ", " + at(block));
      else if (reachable_[block])
        found_unsound("a block is referred to twice", where + ", " + at(block));
      reachable_[block] = true;
    }
  }

  static std::string at(const Pointer& pointer, TreeId tree) {
    return fmt::format("tree {}, level {}, {}", tree, pointer.level, at(pointer.place[0]));
  }

  // Keys that may lie below an entry: look-ups find no others there.
  struct Range {
    Key first{};
    std::optional<Key> end;
  };
  static Range range_of(const Node& node, u32 index, const Range& range) {
    Range below = range;
    if (index != 0) below.first = node.key(index);
    if (index + 1 < node.count()) below.end = node.key(index + 1);
    return below;
  }
  static bool is_in(const Node& node, const Range& range) {
    if (node.count() == 0) return true;
    const bool leaf = node.level() == 0;
    const u32 first = leaf ? 0 : 1;  // the key of an entry that comes first says nothing
    if (first < node.count() && node.key(first) < range.first) return false;
    const u32 last = node.count() - 1;
    return last < first || !range.end || node.key(last) < *range.end;
  }

  // The least and the greatest key of the records below a node; nothing: there are none, or nobody
  // knows.
  using Bounds = std::optional<std::pair<Key, Key>>;
  static void widen(Bounds& bounds, const Bounds& by) {
    if (!by) return;
    if (!bounds) bounds = by;
    bounds->first = std::min(bounds->first, by->first);
    bounds->second = std::max(bounds->second, by->second);
  }

  // A node of subvolumes is walked once and its pointers are counted; each may lead there from an
  // entry of its own.
  Bounds walk(const Pointer& pointer, TreeId tree, const Range& range) {
    if (!is_subvolume(tree)) return walk_below(pointer, tree, range);
    const auto [it, fresh] = nodes_.try_emplace(pointer.place[0], Seen{pointer, tree, 0, {}});
    Seen& seen = it->second;
    ++seen.references;
    if (fresh) return seen.below = walk_below(pointer, tree, range);
    const Pointer& first = seen.pointer;
    if (first.place != pointer.place || first.generation != pointer.generation ||
        first.level != pointer.level || first.checksum != pointer.checksum)
      lost("two pointers to one tree node differ", at(pointer, tree));
    const Bounds& below = seen.below;
    if (below && (below->first < range.first || (range.end && !(below->second < *range.end))))
      lost("a tree node has keys that do not belong there", at(pointer, tree));
    return below;
  }

  Bounds walk_below(const Pointer& pointer, TreeId tree, const Range& range) {
    const std::string where = at(pointer, tree);
    // The next commits would make it one of the past, which nothing refuses.
    if (pointer.generation >= state_.running.load(std::memory_order_acquire))
      found_unsound("a tree node is from the future", where);
    NodePtr good;
    for (u32 place = 0; place < 2; ++place) {
      const char* wrong = nullptr;
      auto node = state_.cache->read_place(pointer, tree, place, wrong);
      if (!node) wrong = node.error().what;
      if (wrong != nullptr)
        found(fmt::format("{}, in its {} place", wrong, place == 0 ? "first" : "second"), where,
              true);
      else if (!good)
        good = *node;
    }
    ++result_.nodes;
    if (tree == kExtentTree) ++extent_nodes_;
    const bool seen = pointer.place[0] < reachable_.size() && reachable_[pointer.place[0]];
    for (const u64 place : pointer.place) claim({place, state_.node_blocks()}, where);
    if (!good) {
      lost("a tree node is lost: neither place verifies", where);
      return {};
    }
    if (seen) return {};  // claim() told; a tree of nodes that share children has no end
    if (!is_in(*good, range)) lost("a tree node has keys that do not belong there", where);
    Bounds below;
    if (good->level() == 0 && good->count() != 0)
      below = std::pair(good->key(0), good->key(good->count() - 1));
    for (u32 i = 0; i < good->count(); ++i) {
      if (good->level() > 0)
        widen(below, walk(good->child(i), tree, range_of(*good, i, range)));
      else if (tree == kRootTree)
        root_record(good->key(i), good->value(i), where);
      else if (tree == kExtentTree)
        extent_record(good->key(i), good->value(i), where);
    }
    return below;
  }

  void root_record(const Key& key, Bytes value, const std::string& where) {
    if (key.type != kTreeRecordType || value.size() != sizeof(TreeRecordDisk)) {
      lost("a record of the root tree is malformed", where);
      return;
    }
    const auto record = load_disk<TreeRecordDisk>(value);
    const Pointer pointer = from_disk(record.root);
    promised_ += record.promised_blocks;
    if (pointer.level > kLevelMax)
      lost("a tree is impossibly high", where);
    else
      trees_.emplace_back(key.object, pointer);
  }

  void node_record(const Key& key, Bytes value, const std::string& where) {
    const u64 count = value.size() == sizeof(NodeRecordDisk)
                          ? u64{load_disk<NodeRecordDisk>(value).references}
                          : u64{0};
    if (key.offset == 0 && count >= 2) {
      counts_[key.object] = count;
      return;
    }
    found("a count of references to a tree node is malformed", where);
    counts_wrong_.push_back({key, 0});
  }

  void extent_record(const Key& key, Bytes value, const std::string& where) {
    if (key.type == kNodeRecordType) return node_record(key, value, where);
    auto record = decode_extent(key, value);
    if (!record) {
      lost(record.error().what, where);
      return;
    }
    ++result_.extents;
    result_.data_blocks += record->run.count;
    claim(record->run, where);
    if (options_.data) extents_.push_back(std::move(*record));
  }

  // The counts against the pointers that were met, both ways.
  void check_references() {
    if (whole_ && result_.nodes != state_.forest->node_count())
      found(fmt::format("the superblock counts {} tree nodes, there are {}",
                        state_.forest->node_count(), result_.nodes),
            "superblock", true);
    if (extent_nodes_ != state_.forest->extent_node_count())
      found(fmt::format("the superblock counts {} nodes of the extent table, which has {}",
                        state_.forest->extent_node_count(), extent_nodes_),
            "superblock", whole_);
    for (const auto& [place, count] : counts_) {
      if (nodes_.contains(place)) continue;
      found("a count of references to a tree node that nothing leads to", at(place));
      counts_wrong_.push_back({{place, kNodeRecordType, 0}, 0});
    }
    bool shared = false;
    for (const auto& [place, seen] : nodes_) {
      shared = shared || seen.references > 1;
      const auto it = counts_.find(place);
      const u64 counted = it == counts_.end() ? 1 : it->second;
      if (counted == seen.references) continue;
      found(fmt::format("a tree node has {} references and its count says {}", seen.references,
                        counted),
            at(seen.pointer, seen.tree));
      counts_wrong_.push_back({{place, kNodeRecordType, 0}, seen.references});
    }
    // Whoever writes would take shared nodes for its own.
    if (shared && !state_.forest->sharing())
      found_unsound("trees share nodes and their records do not say so", "root tree");
  }

  void check_promises() {
    Lock lock(state_.space_mutex);
    if (promised_ == state_.promised) return;
    promised_wrong_ = promised_ <= reachable_.size();
    found(fmt::format("the superblock counts {} promised blocks, the trees {}", state_.promised,
                      promised_),
          "superblock", promised_wrong_);
  }

  // What waits to be entered by the next open for writing: in use by nothing yet.
  void check_log() {
    const LogFound& log = state_.log_found;
    const auto must_be_free = [this](BlockRun run) {
      for (u64 block = run.block; block < run.end(); ++block)
        if (block >= reachable_.size() || reachable_[block] || state_.space->is_reserved(block))
          found("the fsync log refers to a block that is in use", at(block));
    };
    for (const u64 place : log.places) must_be_free({place, 1});
    for (const LogRecord& record : log.records)
      for (const ExtentRecord& extent : record.extents) must_be_free(extent.run);
    if (!log.records.empty())
      result_.notes.push_back({fmt::format("{} synced changes are in the fsync log, and will be in "
                                           "the tree after the next open for writing",
                                           log.records.size()),
                               "fsync log", false});
    if (state_.fixed.log_damaged)
      found("the fsync log is damaged: what was synced after it is lost",
            fmt::format("fsync log, {}", at(log.next[0])), true);
  }

  void check_data() {
    auto buffer = IoBuffer::create(u64{kRecordBlocksMax} * kBlockBytes);
    if (!buffer) return found("no memory to read data", "data");
    u64 done = 0;
    for (const ExtentRecord& record : extents_) {
      const MutableBytes bytes = buffer->bytes().first(record.run.count * kBlockBytes);
      auto read = state_.read_blocks(record.run.block, bytes);
      if (!read) found("data cannot be read", at(record.run.block));
      for (u32 i = 0; read && i < record.run.count; ++i)
        if (crc32c(bytes.subspan(i * kBlockBytes, kBlockBytes)) != record.checksums[i])
          found("a data block does not match its checksum", at(record.run.block + i));
      done += record.run.count;
      if (options_.progress) options_.progress(done, result_.data_blocks);
    }
  }

  void check_bitmaps() {
    Lock lock(state_.space_mutex);
    FreeSpace& space = *state_.space;
    u64 used = 0;
    for (u64 block = 0; block < space.blocks_total(); ++block) {
      auto is_used = space.is_used(block);
      if (!is_used) {  // damage() has it
        block += kRegionBlocks - block % kRegionBlocks - 1;
        continue;
      }
      const bool wanted = space.is_reserved(block) || reachable_[block];
      used += *is_used ? 1 : 0;
      if (*is_used && !wanted)
        found_in_space("a block is marked used but nothing refers to it", at(block));
      if (!*is_used && wanted) found_in_space("a block in use is marked free", at(block));
    }
    for (const FreeSpace::Damage& damage : space.damage())
      found_in_space(damage.error.what, at(damage.error.at / kBlockBytes));
    if (space.damage().empty() && used != space.blocks_used())
      found_in_space(fmt::format("the superblock counts {} used blocks, the bitmaps {}",
                                 space.blocks_used(), used),
                     "superblock");
  }

  StoreState& state_;
  const CheckOptions& options_;
  std::vector<bool> reachable_;
  std::vector<std::pair<TreeId, Pointer>> trees_;
  std::vector<ExtentRecord> extents_;
  struct Seen {
    Pointer pointer;
    TreeId tree = 0;
    u64 references = 0;
    Bounds below;
  };
  u64 extent_nodes_ = 0;
  std::vector<NodeCount> counts_wrong_;
  std::map<u64, Seen> nodes_;  // of subvolumes, by first place
  std::map<u64, u64> counts_;  // that the records say, by first place
  u64 promised_ = 0;           // as the trees count
  bool promised_wrong_ = false;
  CheckResult result_;
  bool whole_ = true;
  bool sound_ = true;
  bool space_wrong_ = false;
};

}  // namespace

Result<Checked> check_state(StoreState& state, const CheckOptions& options) {
  return Checker(state, options).run();
}

Result<CheckResult> check_store(Store& store, const CheckOptions& options) {
  LK_TRY(Checked checked, check_state(*store.state_, options));
  return std::move(checked.result);
}

}  // namespace latchkey::engine
