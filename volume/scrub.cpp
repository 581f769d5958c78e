// Scrub: the engine's, and then the names of the files that bad blocks belong to.

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "engine/scrub.h"
#include "extent/map.h"
#include "volume/state.h"

namespace latchkey::volume {

namespace {

constexpr u32 kRecordsAtOnce = 4096;  // looked at under one view: writers wait meanwhile
constexpr u32 kDepthMax = 4096;

// Which pieces of files refer to bad blocks, in one pass over a subvolume's maps.
class BadPieces {
 public:
  explicit BadPieces(const std::vector<engine::BadBlock>& blocks) : blocks_(blocks) {}

  Result<void> look(const engine::Store& store, engine::TreeId tree) {
    std::optional<engine::Key> from = engine::Key{};
    while (from) {
      LK_TRY(from, some(store.view(), tree, *from));
    }
    return {};
  }
  std::vector<ScrubFile> take() { return std::move(files_); }

 private:
  // The key to go on from, if there is more.
  Result<std::optional<engine::Key>> some(const engine::View& view, engine::TreeId tree,
                                          const engine::Key& from) {
    std::optional<engine::Key> next;
    u32 left = kRecordsAtOnce;
    std::vector<std::pair<InodeId, extent::MapEntry>> hit;
    LK_TRYV(
        view.scan(tree, from, {~u64{0}, 255, ~u64{0}}, [&](const engine::Key& key, Bytes value) {
          if (left-- == 0) {
            next = key;
            return false;
          }
          if (key.type != kMapType || key.object < kRootNumber) return true;
          const auto entry = extent::decode_map(key.offset, value);
          if (entry && !entry->promised && touches(*entry))
            hit.emplace_back(InodeId{tree, key.object}, *entry);
          return true;
        }));
    for (const auto& [inode, entry] : hit) add(view, inode, entry);
    return next;
  }

  auto first_in(const extent::MapEntry& entry) const {
    return std::ranges::lower_bound(blocks_, entry.disk_block, {}, &engine::BadBlock::block);
  }
  bool touches(const extent::MapEntry& entry) const {
    const auto it = first_in(entry);
    return it != blocks_.end() && it->block < entry.disk_block + entry.blocks;
  }

  void add(const engine::View& view, InodeId inode, const extent::MapEntry& entry) {
    for (auto it = first_in(entry);
         it != blocks_.end() && it->block < entry.disk_block + entry.blocks; ++it) {
      // What was freed and given to somebody else since is not bad any more.
      const auto record = view.extent_at(it->block, 1);
      if (!record || record->checksums.front() != it->checksum) continue;
      ScrubFile file;
      file.inode = inode;
      file.file_offset = (entry.file_block + (it->block - entry.disk_block)) * kPageBytes;
      file.device_offset = it->block * kPageBytes;
      file.unreadable = it->unreadable;
      files_.push_back(std::move(file));
    }
  }

  const std::vector<engine::BadBlock>& blocks_;
  std::vector<ScrubFile> files_;
};

// One of the inode's names; nothing: it has none.
Result<std::optional<NameOfInode>> name_of(const engine::View& view, InodeId inode) {
  std::optional<NameOfInode> name;
  LK_TRYV(view.scan(inode.subvolume, {inode.number, kBackType, 0},
                    {inode.number, kBackType, ~u64{0}}, [&](const engine::Key&, Bytes value) {
                      if (auto back = decode_back(value)) name = std::move(*back);
                      return !name;
                    }));
  return name;
}

}  // namespace

// One of its paths; what lies in a locked directory has its no-key name there.
Result<std::string> Volume::State::path_of(InodeId inode) {
  std::string path;
  for (u32 depth = 0; inode != kRootInode && depth < kDepthMax; ++depth) {
    const bool crosses = inode.number == kRootNumber;
    LK_TRY(const auto name, crosses ? Result<std::optional<NameOfInode>>(name_of_subvolume(inode))
                                    : name_of(store->view(), inode));
    if (!name) return fmt::format("(unlinked, {}){}", to_text(inode), path);
    inode.number = name->directory;
    LK_TRY(const Attributes directory, directory_attributes(inode));
    LK_TRYV(with_names(inode, directory, [&](const NameAccess& names) -> Result<void> {
      LK_TRY(const std::string shown, names.shown(name->stored));
      path.insert(0, shown).insert(0, 1, '/');
      return {};
    }));
  }
  return path.empty() ? "/" : path;
}

Result<ScrubReport> Volume::scrub(const engine::ScrubOptions& options) {
  State& state = *state_;
  ScrubReport report;
  LK_TRY(report.store, engine::scrub_store(*state.store, options));
  if (report.store.bad_blocks.empty()) return report;
  BadPieces pieces(report.store.bad_blocks);
  for (const engine::TreeId tree : state.all_subvolumes()) LK_TRYV(pieces.look(*state.store, tree));
  report.files = pieces.take();
  std::map<InodeId, std::string> paths;
  for (ScrubFile& file : report.files) {
    const auto [it, fresh] = paths.try_emplace(file.inode);
    if (fresh) {
      // A directory above may be lost itself.
      const auto path = state.path_of(file.inode);
      it->second = path ? *path : fmt::format("({})", to_text(file.inode));
    }
    file.path = it->second;
  }
  return report;
}

}  // namespace latchkey::volume
