#include "tests/support/store_image.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/free_space_format.h"
#include "engine/slot_map.h"
#include "engine/superblock.h"

namespace latchkey::tests {

using engine::kBlockBytes;

namespace {

constexpr std::size_t kGapMin = 16;  // so many zeros end a piece

struct PieceHead {
  Le32 block;
  Le16 offset;
  Le16 size;
};

void append(std::vector<std::byte>& out, Bytes bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

template <class T>
void append_disk(std::vector<std::byte>& out, const T& value) {
  append(out, std::as_bytes(std::span(&value, 1)));
}

// First position at or after `at` whose byte is (not) zero.
std::size_t find_byte(Bytes bytes, std::size_t at, bool zero) {
  while (at < bytes.size() && (bytes[at] == std::byte{0}) != zero) ++at;
  return at;
}

void append_pieces(std::vector<std::byte>& out, u64 block, Bytes bytes) {
  for (std::size_t at = find_byte(bytes, 0, false); at < bytes.size();) {
    std::size_t end = at;
    std::size_t next = at;
    do {
      end = find_byte(bytes, next, true);
      next = find_byte(bytes, end, false);
    } while (next < bytes.size() && next - end < kGapMin);
    append_disk(
        out, PieceHead{static_cast<u32>(block), static_cast<u16>(at), static_cast<u16>(end - at)});
    append(out, bytes.subspan(at, end - at));
    at = next;
  }
}

bool plausible_node(u32 bytes) {
  return std::has_single_bit(bytes) && bytes >= engine::kNodeBytesMin &&
         bytes <= engine::kNodeBytesMax;
}

}  // namespace

StoreImage StoreImage::decode(Bytes bytes) {
  StoreImage image;
  if (bytes.size() < sizeof(Le32)) return image;
  image.device_blocks = std::min<u64>(load_disk<Le32>(bytes), kDeviceBlocksMax);
  bytes = bytes.subspan(sizeof(Le32));
  while (bytes.size() > sizeof(PieceHead)) {
    const auto head = load_disk<PieceHead>(bytes);
    bytes = bytes.subspan(sizeof head);
    const std::size_t size = std::min<std::size_t>(head.size, bytes.size());
    const std::size_t room = head.offset < kBlockBytes ? kBlockBytes - head.offset : 0;
    if (head.block < image.device_blocks && room != 0)
      std::memcpy(image.blocks[head.block].data() + head.offset, bytes.data(),
                  std::min(size, room));
    bytes = bytes.subspan(size);
  }
  return image;
}

std::vector<std::byte> StoreImage::encode() const {
  std::vector<std::byte> out;
  append_disk(out, Le32(static_cast<u32>(device_blocks)));
  for (const auto& [number, block] : blocks) append_pieces(out, number, block);
  return out;
}

StoreImage StoreImage::from_sim(const SimImage& image, u64 device_bytes) {
  StoreImage store;
  store.device_blocks = device_bytes / kBlockBytes;
  for (u64 block = 0; block < store.device_blocks; ++block)
    if (const SimPagePtr page = image.page(block)) store.blocks[block] = *page;
  return store;
}

SimImage StoreImage::to_sim() const {
  SimImage image;
  for (const auto& [number, block] : blocks) image.set_page(number, make_sim_page(block));
  return image;
}

std::vector<u64> StoreImage::blocks_with(Bytes magic) const {
  std::vector<u64> found;
  for (const auto& [number, block] : blocks)
    if (std::memcmp(block.data(), magic.data(), magic.size()) == 0) found.push_back(number);
  return found;
}

std::vector<u64> StoreImage::nodes() const {
  const Le32 magic(engine::kNodeMagic);
  return blocks_with(std::as_bytes(std::span(&magic, 1)));
}

std::vector<u64> StoreImage::superblocks() const {
  return blocks_with(std::as_bytes(std::span(engine::kSuperblockMagic)));
}

std::vector<u64> StoreImage::live_nodes() const {
  std::vector<u64> found;
  u64 newest = 0;
  u32 node_bytes = 0;
  std::vector<u64> next;
  for (const u64 block : superblocks()) {
    const auto disk = load_disk<engine::SuperblockDisk>(blocks.at(block));
    if (disk.generation < newest) continue;
    newest = disk.generation;
    node_bytes = disk.node_bytes;
    next = {disk.root.place[0]};
  }
  if (!plausible_node(node_bytes)) return {};
  std::set<u64> seen;
  while (!next.empty()) {
    const u64 place = next.back();
    next.pop_back();
    if (!blocks.contains(place) || !seen.insert(place).second) continue;
    found.push_back(place);
    const std::vector<std::byte> node = load(place, node_bytes);
    for (const PointerAt& at : pointers_in(node))
      next.push_back(load_disk<engine::PointerDisk>(Bytes(node).subspan(at.offset)).place[0]);
  }
  return found;
}

std::vector<StoreImage::PointerAt> StoreImage::pointers_in(Bytes node) {
  std::vector<PointerAt> found;
  const auto head = load_disk<engine::NodeHeader>(node);
  const std::size_t item =
      head.level == 0 ? sizeof(engine::LeafSlot) : sizeof(engine::InteriorEntry);
  const std::size_t count = std::min<std::size_t>(head.count, (node.size() - sizeof head) / item);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = sizeof head + i * item;
    if (head.level != 0) {
      found.push_back({at + offsetof(engine::InteriorEntry, child), head.tree});
      continue;
    }
    const auto slot = load_disk<engine::LeafSlot>(node.subspan(at));
    if (head.tree == engine::kRootTree && slot.key.type == engine::kTreeRecordType &&
        slot.size == sizeof(engine::TreeRecordDisk) &&
        slot.data_offset + std::size_t{slot.size} <= node.size())
      found.push_back({slot.data_offset + offsetof(engine::TreeRecordDisk, root), slot.key.object});
  }
  return found;
}

std::vector<std::byte> StoreImage::load(u64 block, u64 size) const {
  std::vector<std::byte> bytes(size);
  for (u64 at = 0; at < size; at += kBlockBytes)
    if (const auto it = blocks.find(block + at / kBlockBytes); it != blocks.end())
      std::memcpy(bytes.data() + at, it->second.data(), kBlockBytes);
  return bytes;
}

void StoreImage::store(u64 block, Bytes bytes) {
  for (u64 at = 0; at < bytes.size(); at += kBlockBytes)
    if (block + at / kBlockBytes < device_blocks)
      std::memcpy(blocks[block + at / kBlockBytes].data(), bytes.data() + at, kBlockBytes);
}

void StoreImage::repair(bool headers) {
  repair_space(headers);
  for (const u64 block : superblocks()) {
    Repair repair;
    repair.headers = headers;
    repair_superblock(block, repair);
  }
}

void StoreImage::repair_space(bool headers) {
  for (const u64 number : blocks_with(std::as_bytes(std::span(engine::kBitmapMagic)))) {
    Block& block = blocks[number];
    auto head = load_disk<engine::BitmapSlotDisk>(block);
    if (headers) {
      const u64 first = u64{head.region} * engine::kRegionBlocks;
      const u64 end = std::min<u64>(engine::kRegionBlocks, std::max(device_blocks, first) - first);
      u32 used = 0;
      for (u64 i = 0; i < end; ++i)
        used += std::to_integer<u32>(block[engine::kBitmapHeaderBytes + i / 8] >> (i % 8)) & 1U;
      head.used_count = used;
      store_disk(block, head);
    }
    head.checksum = engine::block_checksum(block, offsetof(engine::BitmapSlotDisk, checksum));
    store_disk(block, head);
  }
  for (const u64 number : blocks_with(std::as_bytes(std::span(engine::kSlotMapMagic)))) {
    Block& block = blocks[number];
    auto head = load_disk<engine::SlotMapDisk>(block);
    repair_entries(block, head);
    head.checksum = engine::block_checksum(block, offsetof(engine::SlotMapDisk, checksum));
    store_disk(block, head);
  }
}

engine::SpaceLayout StoreImage::space_layout() const {
  std::vector<engine::BlockRun> places = {{0, 16}};
  for (u32 place = 0; place < 4; ++place)
    places.push_back({engine::superblock_place(place, device_blocks * engine::kBlockBytes), 1});
  return {device_blocks, places};
}

// Of a generation's map, first copy.
Checksum StoreImage::map_checksum(u64 generation) const {
  if (generation == 0 || is_too_small()) return {};
  const engine::SpaceLayout layout = space_layout();
  std::vector<Checksum> sums(layout.map_blocks());
  for (u32 i = 0; i < sums.size(); ++i)
    if (const auto map = blocks.find(layout.map_block(0, generation, i)); map != blocks.end())
      sums[i] = load_disk<engine::SlotMapDisk>(map->second).checksum;
  return engine::map_checksum_of(sums);
}

// What the map says of the slots that it names.
void StoreImage::repair_entries(Block& map, const engine::SlotMapDisk& head) {
  if (is_too_small()) return;
  const engine::SpaceLayout layout = space_layout();
  for (u64 i = 0; i < engine::kMapRegions; ++i) {
    const u64 region = u64{head.index} * engine::kMapRegions + i;
    const MutableBytes at = MutableBytes(map).subspan(engine::kBitmapHeaderBytes + 4 * i, 4);
    const u32 entry = load_disk<Le32>(at);
    if (region >= layout.regions() || (entry & 3U) >= engine::kSlotsPerRegion) return;
    const auto slot = blocks.find(layout.slot_block(static_cast<u32>(region), entry & 3U));
    if (slot == blocks.end()) continue;
    const u32 check = engine::slot_check(load_disk<engine::BitmapSlotDisk>(slot->second).checksum);
    store_disk(at, Le32((entry & 15U) | check << 4));
  }
}

void StoreImage::repair_superblock(u64 block, Repair& repair) {
  auto disk = load_disk<engine::SuperblockDisk>(blocks[block]);
  repair.volume = disk.volume_id;
  repair.node_bytes = disk.node_bytes;
  if (plausible_node(repair.node_bytes)) repair_pointer(disk.root, engine::kRootTree, repair);
  disk.map_checksum = map_checksum(disk.generation);
  disk.map_checksum_before = map_checksum(disk.generation - 1);
  store_disk(blocks[block], disk);
  disk.checksum = engine::block_checksum(blocks[block], offsetof(engine::SuperblockDisk, checksum));
  store_disk(blocks[block], disk);
}

void StoreImage::repair_pointer(engine::PointerDisk& pointer, engine::TreeId tree, Repair& repair) {
  const u64 place = pointer.place[0];
  if (!blocks.contains(place)) return;
  std::vector<std::byte> node = load(place, repair.node_bytes);
  if (repair.seen.insert(place).second) {
    if (repair.headers) {
      auto head = load_disk<engine::NodeHeader>(node);
      head.magic = engine::kNodeMagic;
      head.level = pointer.level;
      head.generation = pointer.generation;
      head.tree = tree;
      head.place = place;
      head.volume_id = repair.volume;
      store_disk(node, head);
    }
    repair_children(node, repair);
    store(place, node);
    store(pointer.place[1], node);
  }
  pointer.checksum = checksum128(node);
}

void StoreImage::repair_children(MutableBytes node, Repair& repair) {
  for (const PointerAt& at : pointers_in(node)) {
    auto pointer = load_disk<engine::PointerDisk>(node.subspan(at.offset));
    repair_pointer(pointer, at.tree, repair);
    store_disk(node.subspan(at.offset), pointer);
  }
}

}  // namespace latchkey::tests
