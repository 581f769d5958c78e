#include "engine/superblock.h"

#include <algorithm>
#include <cstring>

#include "engine/io_buffer.h"

namespace latchkey::engine {

namespace {

constexpr u64 kFirstPlace = 64 * kKiB;
constexpr u64 kSetDistance = kMiB;
constexpr u64 kGenerationMax = u64{1} << 56;  // a commit a microsecond for two thousand years

Checksum checksum_of(const SuperblockDisk& disk) {
  SuperblockDisk copy = disk;
  copy.checksum = {};
  return checksum128(std::as_bytes(std::span(&copy, 1)));
}

const char* implausible(const SuperblockDisk& disk) {
  const u32 node = disk.node_bytes;
  if (disk.block_bytes != kBlockBytes) return "the block size is not 4096";
  if (node < kNodeBytesMin || node > kNodeBytesMax || (node & (node - 1)) != 0)
    return "the node size is impossible";
  if (disk.extent_blocks_max == 0 || disk.extent_blocks_max > kExtentBlocksMax)
    return "the extent size is impossible";
  if (disk.size_bytes < kDeviceBytesMin) return "the size is impossible";
  if (disk.generation == 0 || disk.generation > kGenerationMax)
    return "the generation is impossible";
  if (disk.promised_blocks > disk.size_bytes / kBlockBytes) return "promises more than it has";
  return nullptr;
}

Superblock decode(const SuperblockDisk& disk) {
  Superblock superblock;
  superblock.generation = disk.generation;
  superblock.volume_id = disk.volume_id;
  superblock.size_bytes = disk.size_bytes;
  superblock.node_bytes = disk.node_bytes;
  superblock.extent_blocks_max = disk.extent_blocks_max;
  superblock.tree_count = disk.tree_count;
  superblock.features_compat = disk.features_compat;
  superblock.features_ro_compat = disk.features_ro_compat;
  superblock.features_incompat = disk.features_incompat;
  superblock.root = from_disk(disk.root);
  superblock.used_blocks = disk.used_blocks;
  superblock.node_count = disk.node_count;
  superblock.extent_node_count = disk.extent_node_count;
  superblock.promised_blocks = disk.promised_blocks;
  superblock.map_checksum = disk.map_checksum;
  superblock.map_checksum_before = disk.map_checksum_before;
  superblock.log_head = {disk.log_head.place[0], disk.log_head.place[1]};
  const auto end = std::find(disk.label.begin(), disk.label.end(), '\0');
  superblock.label.assign(disk.label.begin(), end);
  return superblock;
}

}  // namespace

u64 superblock_place(u32 place, u64 device_bytes) {
  const u64 distance = kFirstPlace + (place % 2) * kSetDistance;
  const u64 end = device_bytes / kBlockBytes * kBlockBytes;
  return (place < 2 ? distance : end - distance) / kBlockBytes;
}

SuperblockDisk encode_superblock(const Superblock& superblock, u32 place) {
  SuperblockDisk disk{};
  disk.magic = kSuperblockMagic;
  disk.format_version = kFormatVersion;
  disk.place_number = static_cast<u8>(place);
  disk.generation = superblock.generation;
  disk.volume_id = superblock.volume_id;
  disk.size_bytes = superblock.size_bytes;
  disk.block_bytes = u32{kBlockBytes};
  disk.node_bytes = superblock.node_bytes;
  disk.extent_blocks_max = superblock.extent_blocks_max;
  disk.tree_count = superblock.tree_count;
  disk.features_compat = superblock.features_compat;
  disk.features_ro_compat = superblock.features_ro_compat;
  disk.features_incompat = superblock.features_incompat;
  disk.root = to_disk(superblock.root);
  disk.used_blocks = superblock.used_blocks;
  disk.node_count = superblock.node_count;
  disk.extent_node_count = superblock.extent_node_count;
  disk.promised_blocks = superblock.promised_blocks;
  disk.map_checksum = superblock.map_checksum;
  disk.map_checksum_before = superblock.map_checksum_before;
  disk.log_head = {{superblock.log_head[0], superblock.log_head[1]}, {}};
  std::copy_n(superblock.label.begin(), std::min(superblock.label.size(), disk.label.size() - 1),
              disk.label.begin());
  disk.checksum = checksum_of(disk);
  return disk;
}

std::optional<Superblock> SuperblockScan::newest(bool previous) const {
  std::optional<Superblock> best;
  for (const SuperblockCopy& copy : copies)
    if (copy.superblock && (!best || copy.superblock->generation > best->generation))
      best = copy.superblock;
  if (!previous || !best) return best;
  // A commit that wrote one copy of its set left an older one in the other place: what that leads
  // to has been reused.
  for (const SuperblockCopy& copy : copies)
    if (copy.superblock && copy.superblock->generation + 1 == best->generation)
      return copy.superblock;
  return std::nullopt;
}

std::array<const SuperblockCopy*, 2> SuperblockScan::others_of(const Superblock& newest) const {
  const u32 set = 1 - static_cast<u32>(newest.generation % 2);
  return {&copies[set], &copies[set + 2]};
}

bool SuperblockScan::stepped_back() const {
  const auto best = newest(false);
  if (!best) return false;
  const auto [a, b] = others_of(*best);
  const bool never_written = best->generation == 1 && a->blank && b->blank;
  return a->wrong != nullptr && b->wrong != nullptr && !never_written;
}

std::vector<SuperblockScan::Rewrite> SuperblockScan::to_write_anew() const {
  std::vector<Rewrite> rewrites;
  const auto best = newest(false);
  if (!best) return rewrites;
  for (u32 place = 0; place < copies.size(); ++place) {
    const SuperblockCopy& copy = copies[place];
    const SuperblockCopy& twin = copies[place ^ 2];
    const bool of_newest = place % 2 == best->generation % 2;
    const bool there = copy.superblock && copy.superblock->generation == best->generation;
    if (copy.unreadable && twin.superblock)
      rewrites.push_back({place, *twin.superblock});
    else if (of_newest && !there && !copy.unreadable)
      rewrites.push_back({place, *best});
  }
  return rewrites;
}

bool SuperblockScan::newest_may_be_unread() const {
  const auto best = newest(false);
  if (!best) return false;
  const auto [a, b] = others_of(*best);
  return !a->superblock && !b->superblock && (a->unreadable || b->unreadable);
}

namespace {

// A place as one read shows it.
struct Look {
  SuperblockCopy copy;
  std::optional<Error> refused;
  bool magic = false;
  bool version_wrong = false;
  u64 feature_wrong = 0;  // the generation, with an unknown feature
};

Look look_at(u32 place, Bytes page) {
  Look look;
  SuperblockCopy& copy = look.copy;
  const auto disk = load_disk<SuperblockDisk>(page);
  if (disk.magic != kSuperblockMagic) {
    copy.wrong = "has no magic number";
    copy.blank = std::ranges::all_of(page, [](std::byte b) { return b == std::byte{0}; });
    return look;
  }
  look.magic = true;
  if (disk.checksum != checksum_of(disk)) {
    copy.wrong = "does not match its checksum";
  } else if (disk.format_version != kFormatVersion) {
    copy.wrong = "is of a version that is not known here";
    look.version_wrong = true;
  } else if (disk.place_number != place) {
    copy.wrong = "belongs to another place";
  } else if ((disk.features_incompat & ~kFeaturesIncompat) != 0) {
    copy.wrong = "has a feature that is not known here";
    look.feature_wrong = disk.generation;
  } else if (const char* wrong = implausible(disk); wrong != nullptr) {
    copy.wrong = wrong;
  } else {
    copy.superblock = decode(disk);
  }
  return look;
}

// What does not verify, or was refused, is read once more: a read may be wrong, too, and what it
// hides may be the newest generation.
Look look_twice(Io& io, u32 place, u64 device_bytes, MutableBytes page) {
  Look look;
  for (int i = 0; i < 2 && !look.copy.superblock; ++i) {
    if (auto read = read_sync(io, superblock_place(place, device_bytes) * kBlockBytes, page);
        read) {
      look = look_at(place, page);
    } else {
      look = {};
      look.refused = read.error();
      look.copy.wrong = "cannot be read";
      look.copy.unreadable = true;
    }
  }
  return look;
}

}  // namespace

Result<SuperblockScan> scan_superblocks(Io& io, u64 device_bytes) {
  LK_TRY(IoBuffer page, IoBuffer::create(kBlockBytes));
  SuperblockScan scan;
  std::optional<Error> unreadable;
  bool magic_seen = false;
  bool version_wrong = false;
  u64 feature_wrong = 0;  // the newest of those
  for (u32 place = 0; place < 4; ++place) {
    Look look = look_twice(io, place, device_bytes, page.bytes());
    if (look.refused) unreadable = look.refused;
    magic_seen |= look.magic;
    version_wrong |= look.version_wrong;
    feature_wrong = std::max(feature_wrong, look.feature_wrong);
    scan.copies[place] = std::move(look.copy);
  }
  const auto best = scan.newest(false);
  if (version_wrong)
    return fail(Errc::format_version, "the store's format version is not known here");
  if (feature_wrong != 0 && (!best || feature_wrong >= best->generation))
    return fail(Errc::format_version, "the store uses a feature that is not known here");
  if (best) return scan;
  if (magic_seen) return fail(Errc::damaged, "no copy of the superblock verifies");
  if (unreadable) return std::unexpected(*unreadable);
  return fail(Errc::wrong_device, "not a latchkey store");
}

Result<void> write_superblock(Io& io, const Superblock& superblock, u32 place) {
  LK_TRY(IoBuffer page, IoBuffer::create(kBlockBytes));
  store_disk(page.bytes(), encode_superblock(superblock, place));
  return write_sync(io, superblock_place(place, superblock.size_bytes) * kBlockBytes, page.bytes());
}

Result<void> write_superblocks(Io& io, const Superblock& superblock) {
  const u32 set = static_cast<u32>(superblock.generation % 2);
  for (const u32 place : {set, set + 2}) LK_TRYV(write_superblock(io, superblock, place));
  return {};
}

}  // namespace latchkey::engine
