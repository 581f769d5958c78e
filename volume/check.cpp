// The volume's part of an offline check, after the engine's: what the records of the subvolume say
// of each other. What the maps refer to is check_data's.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "base/checksum.h"
#include "engine/format.h"
#include "extent/map.h"
#include "volume/check_data.h"
#include "volume/check_subvolumes.h"
#include "volume/log_replay.h"
#include "volume/state.h"
#include "volume/xattr_records.h"

namespace latchkey::volume {

namespace {

// A name of an inode, as its directory has it or as its back item does.
struct Link {
  u64 parent = 0;
  u64 inode = 0;
  u64 name_hash = 0;
  u64 place = 0;  // of the entry
  FileKind kind = FileKind::regular;
  auto order() const { return std::tie(parent, inode, name_hash); }
};

u64 name_hash(std::string_view stored) { return hash64(std::as_bytes(std::span(stored)), 1); }

constexpr engine::Key kLastKey{~u64{0}, 255, ~u64{0}};

class VolumeChecker {
 public:
  VolumeChecker(engine::Store& store, CheckFindings& result) : store_(store), result_(result) {}

  Result<void> run() {
    const engine::View view = store_.view();
    SubvolumeChecker subvolumes(result_.findings);
    LK_TRYV(subvolumes.read(view));
    for (const engine::TreeId id : subvolumes.there()) LK_TRYV(run_subvolume(view, id, subvolumes));
    for (const engine::TreeId id : subvolumes.unknown()) {
      LK_TRY(const auto first, view.at_or_after(id, {}));
      if (first) LK_TRYV(run_subvolume(view, id, subvolumes));
    }
    subvolume_ = kRootInode.subvolume;
    subvolumes.check_names();
    LK_TRYV(view.scan(engine::kKeyTree, {}, kLastKey, [&](const engine::Key& key, Bytes) {
      found("a record of an unknown type in the tree of keys", key_text(key));
      return true;
    }));
    LK_TRYV(collect_pieces(view));
    check_log(view);
    return check_data(
        view, std::move(pieces_),
        [&](InodeId inode) -> std::optional<std::optional<crypto::KeyId>> {
          const auto it = policies_.find(inode);
          if (it == policies_.end()) return std::nullopt;
          return it->second;
        },
        result_.findings);
  }

 private:
  struct Known {
    std::optional<Attributes> item;
    bool item_malformed = false;
    bool orphan = false;
    bool has_entries = false;
    bool reached = false;
    u32 names = 0;
    u64 map_end = 0, data_end = 0;  // in blocks, with promises and without
    std::string target;             // of a symlink, as stored
    bool has_target = false;
  };

  Result<void> run_subvolume(const engine::View& view, engine::TreeId id,
                             SubvolumeChecker& subvolumes) {
    subvolume_ = id;
    subvolumes_ = &subvolumes;
    counter_.reset();
    inodes_.clear();
    names_.clear();
    backs_.clear();
    inode_count_ = 1;
    const std::size_t findings_before = result_.findings.size();
    const u64 inodes_before = result_.inodes;
    promised_ = 0;
    LK_TRYV(view.scan(id, {}, kLastKey, [&](const engine::Key& key, Bytes value) {
      record(key, value);
      return true;
    }));
    if (xattrs_of_ != 0) end_xattrs();
    if (!counter_) found("the counter of inode numbers is missing", "inode counter");
    LK_TRYV(check_promises(view, id));
    check_links();
    check_reachability();
    for (const auto& [number, known] : inodes_) {
      check_inode(number, known);
      if (!known.item || known.map_end == 0) continue;
      policies_[{id, number}] =
          known.item->encrypted ? std::optional(known.item->key_id) : std::nullopt;
    }
    // Where anything else is wrong this follows from it.
    const u64 inodes = result_.inodes - inodes_before;
    if (result_.findings.size() == findings_before && inode_count_ != inodes)
      found(fmt::format("{} inodes are counted, {} are there", inode_count_, inodes),
            "count of inodes");
    return {};
  }

  // A piece in a shared leaf counts once, as its references do; those of a subvolume that is being
  // dropped count as long as they are there.
  Result<void> collect_pieces(const engine::View& view) {
    return view.scan_distinct([&](engine::TreeId tree, const engine::Key& key, Bytes value) {
      if (key.type != kMapType || key.object < kRootNumber) return true;
      const auto entry = extent::decode_map(key.offset, value);
      const u64 end = store_.facts().size_bytes / engine::kBlockBytes;
      if (!entry || entry->promised || entry->disk_block >= end) return true;
      const auto blocks = static_cast<u32>(std::min<u64>(entry->blocks, end - entry->disk_block));
      pieces_.push_back({entry->disk_block, entry->file_block, {tree, key.object}, blocks});
      return true;
    });
  }
  // What an open for writing would enter. Later records may change what earlier ones made.
  void check_log(const engine::View& view) {
    LogCheck log(view);
    for (const engine::LogRecord& record : store_.logged())
      if (const auto right = log.check(record); !right)
        found(right.error().what,
              fmt::format("fsync log, tree {}, inode {}", record.tree, record.object));
  }
  bool lies_inside(const extent::MapEntry& entry) const {
    const u64 blocks = store_.facts().size_bytes / engine::kBlockBytes;
    return entry.disk_block < blocks && entry.blocks <= blocks - entry.disk_block;
  }

  void found(std::string what, std::string where) {
    if (subvolume_ != kRootInode.subvolume)
      where = fmt::format("subvolume {}, {}", subvolume_, where);
    result_.findings.push_back({std::move(what), std::move(where), false});
  }
  static std::string text(u64 inode) { return fmt::format("inode {}", inode); }
  static std::string text(const Link& link) {
    return fmt::format("directory {}, entry {:#x}, inode {}", link.parent, link.place, link.inode);
  }
  static std::string key_text(const engine::Key& key) {
    return fmt::format("key ({}, {}, {})", key.object, key.type, key.offset);
  }

  // --- each record by itself --------------------------------------------------------------------

  void record(const engine::Key& key, Bytes value) {
    if (xattrs_of_ != 0 && (key.object != xattrs_of_ || key.type != kXattrType)) end_xattrs();
    if (key.object >= kRootNumber) {
      switch (key.type) {
        case kInodeType:
          return inode(key, value);
        case kBackType:
          return back(key, value);
        case kEntryType:
          return entry(key, value);
        case kMapType:
          return map(key, value);
        case kTargetType:
          return target(key, value);
        case kXattrType:
          return xattr(key, value);
        default:
          break;
      }
    } else if (key.object == kCounterObject && key.type == kCounterType && key.offset == 0) {
      if (value.size() != sizeof(Le64))
        return found("the counter of inode numbers is malformed", key_text(key));
      counter_ = load_disk<Le64>(value);
      return;
    } else if (key == inode_count_key()) {
      if (value.size() != sizeof(Le64))
        return found("the count of inodes is malformed", key_text(key));
      inode_count_ = load_disk<Le64>(value);
      return;
    } else if (key.object == kOrphanObject && key.type == kOrphanType) {
      if (!value.empty()) found("an orphan record is malformed", text(key.offset));
      inodes_[key.offset].orphan = true;
      return;
    }
    found("a record of an unknown type", key_text(key));
  }

  void inode(const engine::Key& key, Bytes value) {
    Known& known = inodes_[key.object];
    auto attributes = decode_inode(value);
    if (!attributes || key.offset != 0) {
      known.item_malformed = true;
      return found(attributes ? "an inode item lies at a wrong place" : attributes.error().what,
                   text(key.object));
    }
    ++result_.inodes;
    if (attributes->kind == FileKind::directory) ++result_.directories;
    known.item = *attributes;
  }

  void back(const engine::Key& key, Bytes value) {
    const auto name = decode_back(value);
    if (!name) return found(name.error().what, text(key.object));
    inodes_.try_emplace(key.object);
    if (back_offset(*name) != (key.offset & ~(kEntrySlots - 1)))
      found("a back item lies at the wrong hash",
            fmt::format("inode {}, directory {}", key.object, name->directory));
    backs_.push_back({name->directory, key.object, name_hash(name->stored)});
  }

  // The directory's own item has been seen: it comes before its entries.
  void entry(const engine::Key& key, Bytes value) {
    Known& directory = inodes_[key.object];
    directory.has_entries = true;
    auto decoded = decode_entry(subvolume_, key, value);
    if (!decoded)
      return found(decoded.error().what,
                   fmt::format("directory {}, entry {:#x}", key.object, key.offset));
    const Link link{key.object, decoded->inode.number, name_hash(decoded->stored), key.offset,
                    decoded->kind};
    if (entry_offset(decoded->stored) != (key.offset & ~(kEntrySlots - 1)))
      found("a directory entry lies at the wrong hash", text(link));
    if (directory.item && !could_be_stored(decoded->stored, directory.item->encrypted))
      found("a directory entry has an impossible name", text(link));
    if (decoded->kind == FileKind::subvolume)
      return subvolumes_->name({subvolume_, key.object}, decoded->stored, decoded->inode.subvolume);
    ++inodes_[decoded->inode.number].names;
    names_.push_back(link);
  }

  void map(const engine::Key& key, Bytes value) {
    const std::string where = fmt::format("inode {}, file offset {}", key.object, key.offset);
    Known& known = inodes_[key.object];
    auto decoded = extent::decode_map(key.offset, value);
    if (!decoded) return found(decoded.error().what, where);
    if (decoded->file_block < known.map_end) found("two pieces of a file's map overlap", where);
    known.map_end = std::max(known.map_end, decoded->file_end());
    if (decoded->promised) {  // may lie behind the end of the file
      promised_ += blocks_held(*decoded, subvolume_);
      return;
    }
    known.data_end = std::max(known.data_end, decoded->file_end());
    if (!lies_inside(*decoded)) found("a file refers past the end of the store", where);
  }

  void target(const engine::Key& key, Bytes value) {
    Known& known = inodes_[key.object];
    known.has_target = true;
    // Each piece begins where the one before it ended; a gap shows in the size.
    if (key.offset != known.target.size() || key.offset % kTargetPieceBytes != 0 || value.empty())
      return found("a piece of a symlink's target lies at a wrong place", key_text(key));
    known.target.append(reinterpret_cast<const char*>(value.data()), value.size());
  }

  // The inode's own item has been seen. Whole attributes are looked at as they come.
  void xattr(const engine::Key& key, Bytes value) {
    inodes_.try_emplace(key.object);
    xattrs_of_ = key.object;
    if (const auto added = xattrs_.add(key, value); !added)
      found(added.error().what, text(key.object));
    check_xattrs();
  }

  void end_xattrs() {
    if (const auto ended = xattrs_.end(); !ended) found(ended.error().what, text(xattrs_of_));
    check_xattrs();
    xattrs_of_ = 0;
    xattr_names_.clear();
  }

  void check_xattrs() {
    const Known& owner = inodes_[xattrs_of_];
    for (const Xattr& xattr : xattrs_.take()) {
      const std::string where = text(xattrs_of_);
      if (!check_xattr_name(xattr.name)) found("an attribute has an impossible name", where);
      if (xattr_offset(xattr.name) != xattr.offset / kXattrHashStep * kXattrHashStep)
        found("an attribute lies at the wrong hash", where);
      if (owner.item && is_user_xattr(xattr.name) && owner.item->kind != FileKind::regular &&
          owner.item->kind != FileKind::directory)
        found("an inode that can have no user attributes has one", where);
      if (owner.item && !is_stored_as_it_may_be(xattr, *owner.item, clear_attributes_))
        found("an attribute is not encrypted as its inode is", where);
      if (!xattr_names_.insert(xattr.name).second) found("an inode has an attribute twice", where);
    }
  }

  // --- records against each other ---------------------------------------------------------------

  Result<void> check_promises(const engine::View& view, engine::TreeId tree) {
    LK_TRY(const auto record, view.get(engine::kRootTree, {tree, engine::kTreeRecordType, 0}));
    if (!record || record->value.size() != sizeof(engine::TreeRecordDisk)) return {};  // told
    const u64 counted = load_disk<engine::TreeRecordDisk>(record->value).promised_blocks;
    if (counted != promised_)
      found(
          fmt::format("a tree counts {} promised blocks, and its maps hold {}", counted, promised_),
          fmt::format("tree {}", tree));
    return {};
  }

  void check_links() {
    std::ranges::sort(names_, {}, &Link::order);
    std::ranges::sort(backs_, {}, &Link::order);
    std::vector<Link> odd;
    std::ranges::set_difference(names_, backs_, std::back_inserter(odd), {}, &Link::order,
                                &Link::order);
    for (const Link& link : odd) found("a name without a back item", text(link));
    odd.clear();
    std::ranges::set_difference(backs_, names_, std::back_inserter(odd), {}, &Link::order,
                                &Link::order);
    for (const Link& link : odd)
      found("a back item without a name",
            fmt::format("inode {}, directory {}", link.inode, link.parent));
    for (const Link& link : names_) check_policy(link);

    std::vector<Link> by_name = names_;
    const auto name = [](const Link& link) { return std::tie(link.parent, link.name_hash); };
    std::ranges::sort(by_name, {}, name);
    for (std::size_t i = 1; i < by_name.size(); ++i)
      if (name(by_name[i]) == name(by_name[i - 1]))
        found("a directory has one name twice", text(by_name[i]));
  }

  // What lies in an encrypted directory is encrypted under the same key, but for special files; a
  // plain directory may hold anything.
  void check_policy(const Link& link) {
    const Known &parent = inodes_[link.parent], &child = inodes_[link.inode];
    if (!child.item) return;
    if (child.item->kind != link.kind)
      found("a directory entry and its inode disagree about the kind", text(link));
    if (parent.item && !has_policy_of(*child.item, *parent.item))
      found("an inode does not have the policy of its directory", text(link));
  }

  void check_reachability() {
    std::vector<u64> left{kRootNumber};
    while (!left.empty()) {
      const u64 number = left.back();
      left.pop_back();
      Known& known = inodes_[number];
      if (std::exchange(known.reached, true)) continue;
      for (const Link& link : std::ranges::equal_range(names_, number, {}, &Link::parent))
        left.push_back(link.inode);
    }
  }

  void check_inode(u64 number, const Known& known) {
    const std::string where = text(number);
    if (!known.item) {
      if (number == kRootNumber)
        found("there is no root directory", where);
      else if (!known.item_malformed)
        found("records of an inode without an inode item", where);
      return;
    }
    const Attributes& item = *known.item;
    const bool directory = item.kind == FileKind::directory;
    const bool root = number == kRootNumber;
    if (counter_ && number >= *counter_) found("an inode number beyond the counter", where);
    if (root && !directory) found("the root is not a directory", where);
    if (directory && item.links > 1) found("a directory has several links", where);
    if (item.links > kLinksMax) found("an inode has more links than it may", where);
    if (known.orphan && (item.links != 0 || root))
      found(fmt::format("an orphan record for an inode with {} links", item.links), where);
    else if (!known.orphan && item.links == 0)
      found("an inode without links and without an orphan record", where);
    const u32 names_wanted = root || known.orphan ? 0 : item.links;
    if (known.names != names_wanted)
      found(fmt::format("{} names lead to an inode with {} links", known.names, item.links), where);
    if (known.names != 0 && !known.reached)
      found("an inode that cannot be reached from the root directory", where);
    if (known.has_entries && !directory) found("names in something that is not a directory", where);
    if (directory && (item.size != 0 || known.map_end != 0)) found("a directory has data", where);
    check_target(item, known, where);
    if (item.kind != FileKind::regular) {
      if (!directory && known.map_end != 0) found("an inode that is not a file has a map", where);
      return;
    }
    const u64 end = (item.size + engine::kBlockBytes - 1) / engine::kBlockBytes;
    if (known.data_end > end) found("a file's map reaches beyond its size", where);
  }

  void check_target(const Attributes& item, const Known& known, const std::string& where) {
    if (item.kind != FileKind::symlink) {
      if (known.has_target) found("an inode that is not a symlink has a target", where);
      return;
    }
    if (known.target.empty() || known.target.size() != item.size)
      return found("a symlink whose target is not whole", where);
    const bool malformed = item.encrypted ? sealed_target(known.target).empty()
                                          : known.target.find('\0') != std::string::npos;
    if (malformed) found("a symlink whose target is malformed", where);
  }

  engine::Store& store_;
  const bool clear_attributes_ = store_.has_feature(engine::kFeatureClearAttributes);
  CheckFindings& result_;
  engine::TreeId subvolume_ = kRootInode.subvolume;  // that is looked at
  SubvolumeChecker* subvolumes_ = nullptr;
  std::optional<u64> counter_;
  u64 inode_count_ = 1;  // where nobody counted yet: the root directory
  XattrReader xattrs_{false};
  u64 xattrs_of_ = 0;  // the inode whose attributes come now; 0: none
  std::set<std::string> xattr_names_;
  std::map<u64, Known> inodes_;
  std::vector<Link> names_, backs_;
  std::vector<MapPiece> pieces_;
  std::map<InodeId, std::optional<crypto::KeyId>> policies_;  // of all subvolumes' files
  u64 promised_ = 0;                                          // blocks, by maps
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
  result.stepped_back = store->facts().stepped_back;
  if (auto walked = VolumeChecker(*store, result).run(); !walked)
    result.findings.push_back({walked.error().what, "subvolume tree", false});
  return result;
}

}  // namespace latchkey::volume
