// The volume's part of an offline check: maps against extent references, names against inodes,
// sizes against maps. The engine's part comes first.

#include <fmt/format.h>

#include <map>
#include <set>

#include "engine/extent_table.h"
#include "extent/context.h"
#include "extent/map.h"
#include "volume/format.h"
#include "volume/volume.h"

namespace latchkey::volume {

namespace {

class VolumeChecker {
 public:
  VolumeChecker(engine::Store& store, CheckFindings& result)
      : store_(store),
        result_(result),
        references_(store.facts().size_bytes / engine::kBlockBytes, 0) {}

  Result<void> run() {
    const engine::View view = store_.view();
    LK_TRYV(view.scan(engine::kFirstSubvolume, {}, {~u64{0}, 255, ~u64{0}},
                      [&](const engine::Key& key, Bytes value) {
                        record(key, value);
                        return true;
                      }));
    LK_TRYV(view.scan(engine::kExtentTree, {}, {~u64{0}, 255, ~u64{0}},
                      [&](const engine::Key& key, Bytes value) {
                        extent(key, value);
                        return true;
                      }));
    for (u64 block = 0; block < references_.size(); ++block)
      if (references_[block] != 0)
        found("a file refers to a block that no extent record holds",
              fmt::format("device offset {}", block * engine::kBlockBytes));
    check_names();
    return {};
  }

 private:
  struct Known {
    Attributes attributes;
    u32 back_items = 0;
    u32 entries = 0;
    bool orphan = false;
    u64 map_end = 0;
  };

  void found(std::string what, std::string where) {
    result_.findings.push_back({std::move(what), std::move(where), false});
  }
  static std::string inode_text(InodeNumber inode) { return fmt::format("inode {}", inode); }

  void record(const engine::Key& key, Bytes value) {
    if (key.object == kCounterObject && key.type == kCounterType) {
      if (value.size() == sizeof(Le64)) counter_ = load_disk<Le64>(value);
      return;
    }
    if (key.object == kOrphanObject && key.type == kOrphanType) {
      inodes_[key.offset].orphan = true;
      return;
    }
    switch (key.type) {
      case kInodeType:
        inode(key, value);
        return;
      case kBackType:
        ++inodes_[key.object].back_items;
        return;
      case kEntryType:
        entry(key, value);
        return;
      case kMapType:
        map(key, value);
        return;
      default:
        found("a record of an unknown type", inode_text(key.object));
    }
  }

  void inode(const engine::Key& key, Bytes value) {
    auto attributes = decode_inode(value);
    if (!attributes) return found(attributes.error().what, inode_text(key.object));
    items_.insert(key.object);
    inodes_[key.object].attributes = *attributes;
    ++result_.inodes;
    if (attributes->kind == FileKind::directory) ++result_.directories;
  }

  void entry(const engine::Key& key, Bytes value) {
    auto decoded = decode_entry(key, value);
    if (!decoded) return found(decoded.error().what, inode_text(key.object));
    if (entry_offset(decoded->stored) != (key.offset & ~(kEntrySlots - 1)))
      found("a directory entry lies at the wrong hash", inode_text(key.object));
    ++inodes_[decoded->inode].entries;
    parents_.insert(key.object);
  }

  void map(const engine::Key& key, Bytes value) {
    auto decoded = extent::decode_map(key.offset, value);
    if (!decoded) return found(decoded.error().what, inode_text(key.object));
    Known& known = inodes_[key.object];
    if (decoded->file_block * engine::kBlockBytes < known.map_end)
      found("two pieces of a file's map overlap", inode_text(key.object));
    known.map_end = decoded->file_end() * engine::kBlockBytes;
    for (u32 i = 0; i < decoded->blocks; ++i) {
      if (decoded->disk_block + i >= references_.size())
        return found("a file refers past the end of the store", inode_text(key.object));
      ++references_[decoded->disk_block + i];
    }
  }

  void extent(const engine::Key& key, Bytes value) {
    auto decoded = engine::decode_extent(key, value);
    if (!decoded) return;  // told by the engine's check
    const std::string where =
        fmt::format("device offset {}", decoded->run.block * engine::kBlockBytes);
    if (auto context = extent::decode_context(decoded->context); !context)
      found(context.error().what, where);
    for (u64 block = decoded->run.block; block < decoded->run.end(); ++block) {
      if (block >= references_.size()) return;
      if (references_[block] != decoded->references)
        found(fmt::format("a block has {} references and its record says {}", references_[block],
                          decoded->references),
              where);
      references_[block] = 0;
    }
  }

  void check_names() {
    for (const auto& [number, known] : inodes_) {
      if (!items_.contains(number)) {
        // An orphan whose item is already gone is harmless; a name that leads nowhere is not.
        found("a name, a map or an orphan record without an inode item", inode_text(number));
        continue;
      }
      if (number >= counter_) found("an inode number beyond the counter", inode_text(number));
      const u32 names_wanted = number == kRootInode || known.orphan ? 0 : known.attributes.links;
      if (known.entries != names_wanted)
        found(fmt::format("{} names lead to an inode with {} links", known.entries, names_wanted),
              inode_text(number));
      if (known.back_items != known.entries)
        found("back items and names do not agree", inode_text(number));
      const u64 end = (known.attributes.size + engine::kBlockBytes - 1) / engine::kBlockBytes *
                      engine::kBlockBytes;
      if (known.map_end > end) found("a file's map reaches beyond its size", inode_text(number));
    }
    for (const InodeNumber parent : parents_) {
      const auto it = inodes_.find(parent);
      if (it == inodes_.end() || it->second.attributes.kind != FileKind::directory)
        found("names in something that is not a directory", inode_text(parent));
    }
  }

  engine::Store& store_;
  CheckFindings& result_;
  std::vector<u32> references_;
  std::map<InodeNumber, Known> inodes_;
  std::set<InodeNumber> items_;
  std::set<InodeNumber> parents_;
  u64 counter_ = 0;
};

}  // namespace

Result<CheckFindings> check_volume(engine::Device& device, const engine::CheckOptions& options,
                                   Env& env) {
  engine::OpenOptions open_options;
  open_options.read_only = true;
  LK_TRY(auto store, engine::Store::open(device, open_options, env));
  LK_TRY(engine::CheckResult engine_result, engine::check_store(*store, options));
  CheckFindings result;
  result.findings = std::move(engine_result.findings);
  result.notes = std::move(engine_result.notes);
  result.nodes = engine_result.nodes;
  result.extents = engine_result.extents;
  result.data_blocks = engine_result.data_blocks;
  if (auto walked = VolumeChecker(*store, result).run(); !walked)
    result.findings.push_back({walked.error().what, "subvolume tree", false});
  return result;
}

}  // namespace latchkey::volume
