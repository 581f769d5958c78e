#include "tests/support/image_mutator.h"

#include <algorithm>
#include <cstring>

#include "engine/free_space_format.h"
#include "engine/node.h"

namespace latchkey::tests {

using engine::InteriorEntry;
using engine::kBlockBytes;
using engine::LeafSlot;
using engine::NodeHeader;
using engine::NodePtr;
using engine::PointerDisk;

namespace {

// The node of one block that begins there, if it is well formed: to change it as the engine does.
NodePtr load_node(const StoreImage& image, u64 block) {
  const StoreImage::Block& bytes = image.blocks.at(block);
  const auto head = load_disk<NodeHeader>(bytes);
  NodePtr node = engine::Node::create(kBlockBytes);
  std::memcpy(node->bytes().data(), bytes.data(), bytes.size());
  const engine::Node::Expected expected{head.volume_id, head.tree, head.level, head.generation,
                                        head.place};
  return node->validate(expected) == nullptr ? node : nullptr;
}

void store_node(StoreImage& image, u64 block, const engine::Node& node) {
  std::memcpy(image.blocks[block].data(), node.bytes().data(), kBlockBytes);
}

// Where the image has pointers: superblocks, entries, tree records.
std::vector<std::byte*> pointers_of(StoreImage& image) {
  std::vector<std::byte*> found;
  for (const u64 block : image.superblocks())
    found.push_back(image.blocks[block].data() + offsetof(engine::SuperblockDisk, root));
  for (const u64 block : image.nodes())
    for (const StoreImage::PointerAt& at : StoreImage::pointers_in(image.blocks[block]))
      found.push_back(image.blocks[block].data() + at.offset);
  return found;
}

}  // namespace

void ImageMutator::mutate(StoreImage& image) {
  using Change = void (ImageMutator::*)(StoreImage&);
  static constexpr Change kChanges[] = {
      &ImageMutator::change_bytes,      &ImageMutator::change_field, &ImageMutator::change_field,
      &ImageMutator::change_superblock, &ImageMutator::move_pointer, &ImageMutator::change_value,
      &ImageMutator::change_value,      &ImageMutator::change_value, &ImageMutator::add_record,
      &ImageMutator::add_record,        &ImageMutator::drop_record,  &ImageMutator::resize_value,
      &ImageMutator::change_bitmap,     &ImageMutator::drop_block};
  for (u64 changes = 1 + below(3); changes != 0; --changes)
    (this->*kChanges[below(std::size(kChanges))])(image);
  repair_some(image);
}

void ImageMutator::cross(StoreImage& image, const StoreImage& other) {
  for (const auto& [number, block] : other.blocks)
    if (number < image.device_blocks && below(4) == 0) image.blocks[number] = block;
  repair_some(image);
}

void ImageMutator::repair_some(StoreImage& image) {
  if (const u64 how = below(16); how != 0) image.repair(how > 4);
}

u64 ImageMutator::interesting(const StoreImage& image) {
  switch (below(8)) {
    case 0:
      return below(4);
    case 1:
      return ~below(4);
    case 2:
      return (u64{1} << below(64)) - below(2);
    case 3:
      return image.device_blocks - 2 + below(4);
    case 4:
      return image.blocks.empty()
                 ? 0
                 : std::next(image.blocks.begin(), static_cast<i64>(below(image.blocks.size())))
                       ->first;
    case 5:
      return 254 + below(24);  // inode numbers of a small store
    case 6:
      return below(64) * kBlockBytes;
    default:
      return random_();
  }
}

// A field of 1, 2, 4 or 8 bytes, little endian: a telling value, or a little more or less.
void ImageMutator::set_field(MutableBytes at, std::size_t size, const StoreImage& image) {
  Le64 field;
  std::memcpy(&field, at.data(), size);
  const u64 value = below(3) == 0 ? field.get() - 4 + below(9) : interesting(image);
  field = value;
  std::memcpy(at.data(), &field, size);
}

void ImageMutator::change_bytes(StoreImage& image) {
  std::vector<u64> all = targets(image);
  std::ranges::copy(image.superblocks(), std::back_inserter(all));
  if (all.empty() || below(8) == 0) {
    for (const auto& [number, block] : image.blocks) all.push_back(number);
    if (all.empty()) return;
  }
  const MutableBytes block = image.blocks[one_of(all)];
  const std::size_t size = std::size_t{1} << below(7);
  // Half of the time in the front, where headers, slots and entries are.
  const std::size_t at = below(below(2) == 0 ? 256 : kBlockBytes - size);
  mutate_bytes_(block.subspan(at, size), random_());
}

void ImageMutator::change_field(StoreImage& image) {
  static constexpr std::array<u8, 5> kHead = {0, 4, 6, 8, 16};
  static constexpr std::array<u8, 5> kSlot = {0, 8, 9, 17, 19};
  static constexpr std::array<u8, 7> kEntry = {0, 8, 9, 17, 25, 33, 41};
  static constexpr std::size_t kSizes[] = {1, 2, 4, 8};
  const auto nodes = targets(image);
  if (nodes.empty()) return;
  const MutableBytes node = image.blocks[one_of(nodes)];
  const auto head = load_disk<NodeHeader>(node);
  std::size_t at = 0;
  if (head.count == 0 || below(4) == 0) {
    at = kHead[below(kHead.size())];
  } else if (head.level == 0) {
    at = sizeof head + below(head.count) * sizeof(LeafSlot) + kSlot[below(kSlot.size())];
  } else {
    at = sizeof head + below(head.count) * sizeof(InteriorEntry) + kEntry[below(kEntry.size())];
  }
  const std::size_t size = kSizes[below(4)];
  if (at + size <= node.size()) set_field(node.subspan(at), size, image);
}

void ImageMutator::change_superblock(StoreImage& image) {
  static constexpr std::array<u16, 18> kFields = {8,  12, 16, 40, 48,  52,  56,  60,  64,
                                                  72, 80, 88, 96, 104, 112, 152, 160, 168};
  const auto places = image.superblocks();
  if (places.empty()) return;
  if (below(16) == 0) {
    image.device_blocks = interesting(image) % StoreImage::kDeviceBlocksMax;
    return;
  }
  const u16 field = kFields[below(kFields.size())];
  const std::size_t size = below(2) == 0 ? 4 : 8;
  StoreImage::Block& first = image.blocks[one_of(places)];
  set_field(MutableBytes(first).subspan(field), size, image);
  // In the copies, too: another one would win else.
  if (below(4) != 0)
    for (const u64 place : places)
      std::memcpy(image.blocks[place].data() + field, first.data() + field, size);
}

void ImageMutator::move_pointer(StoreImage& image) {
  const auto pointers = pointers_of(image);
  if (pointers.size() < 2) return;
  std::memcpy(one_of(pointers), one_of(pointers), sizeof(PointerDisk));
}

void ImageMutator::change_value(StoreImage& image) {
  const auto nodes = targets(image);
  if (nodes.empty()) return;
  const u64 block = one_of(nodes);
  const NodePtr node = load_node(image, block);
  if (!node || node->level() != 0 || node->count() == 0) return;
  const Bytes value = node->value(static_cast<u32>(below(node->count())));
  if (value.empty()) return;
  const MutableBytes bytes = node->bytes().subspan(
      static_cast<std::size_t>(value.data() - node->bytes().data()), value.size());
  // Fields first: heads of values are the telling part.
  const std::size_t at = below(below(2) == 0 ? bytes.size() : std::min<u64>(bytes.size(), 32));
  const std::size_t left = bytes.size() - at;
  const std::size_t size = std::min(left, std::size_t{1} << below(4));
  if (below(2) == 0 && size != 0)
    set_field(bytes.subspan(at), size, image);
  else
    mutate_bytes_(bytes.subspan(at, left), random_());
  store_node(image, block, *node);
}

// Mostly what an opening reads; second places and older generations now and then.
std::vector<u64> ImageMutator::targets(const StoreImage& image) {
  if (below(8) != 0)
    if (auto live = image.live_nodes(); !live.empty()) return live;
  return image.nodes();
}

engine::Key ImageMutator::some_key(const StoreImage& image) {
  static constexpr std::array<u8, 11> kTypes = {0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 255};
  return {interesting(image), kTypes[below(kTypes.size())], interesting(image)};
}

// A record of another's value, or bytes by chance, under another's key or a new one.
void ImageMutator::add_record(StoreImage& image) {
  const auto nodes = targets(image);
  if (nodes.empty()) return;
  const u64 block = one_of(nodes);
  const NodePtr node = load_node(image, block);
  const NodePtr from = load_node(image, one_of(nodes));
  if (!node || node->level() != 0 || !from || from->level() != 0) return;
  engine::Key key = some_key(image);
  if (node->count() != 0 && below(4) != 0) {
    const engine::Key there = node->key(static_cast<u32>(below(node->count())));
    if (below(2) == 0) key.object = there.object;
    if (below(2) == 0) key.type = there.type;
    if (below(2) == 0) key.offset = there.offset;
  }
  std::vector<std::byte> value(below(64) == 0 ? below(4000) : below(64));
  if (from->count() != 0 && below(4) != 0) {
    const Bytes other = from->value(static_cast<u32>(below(from->count())));
    value.assign(other.begin(), other.end());
  } else if (!value.empty()) {
    mutate_bytes_(value, random_());
  }
  const u32 index = node->lower_bound(key);
  const bool there = index < node->count() && node->key(index) == key;
  if (there || !node->has_room(static_cast<u32>(value.size()))) return;
  node->insert(index, key, value);
  store_node(image, block, *node);
}

// A value that is longer or shorter than it says, or than it must be.
void ImageMutator::resize_value(StoreImage& image) {
  const auto nodes = targets(image);
  if (nodes.empty()) return;
  const u64 block = one_of(nodes);
  const NodePtr node = load_node(image, block);
  if (!node || node->level() != 0 || node->count() == 0) return;
  const u32 index = static_cast<u32>(below(node->count()));
  const engine::Key key = node->key(index);
  const Bytes old = node->value(index);
  std::vector<std::byte> value(old.begin(), old.end());
  value.resize(below(2) == 0 ? below(value.size() + 1) : value.size() + 1 + below(8));
  node->erase(index);
  if (node->has_room(static_cast<u32>(value.size()))) node->insert(index, key, value);
  store_node(image, block, *node);
}

void ImageMutator::drop_record(StoreImage& image) {
  const auto nodes = targets(image);
  if (nodes.empty()) return;
  const u64 block = one_of(nodes);
  const NodePtr node = load_node(image, block);
  if (!node || node->count() == 0) return;
  node->erase(static_cast<u32>(below(node->count())));
  store_node(image, block, *node);
}

void ImageMutator::change_bitmap(StoreImage& image) {
  const bool map = below(4) == 0;
  const auto blocks = image.blocks_with(
      std::as_bytes(std::span(map ? engine::kSlotMapMagic : engine::kBitmapMagic)));
  if (blocks.empty()) return;
  const MutableBytes block = image.blocks[one_of(blocks)];
  if (below(3) == 0) {
    set_field(block.subspan(8 + 4 * below(6)), 4, image);
  } else if (map) {
    std::byte& entry = block[engine::kBitmapHeaderBytes + below(4)];
    // The slot and how full it is, as if they were right; or any of it.
    entry ^= static_cast<std::byte>(below(2) == 0 ? 1 + below(15) : random_());
  } else {
    const std::size_t at = below(std::min<u64>(image.device_blocks, engine::kRegionBlocks) / 8 + 1);
    const std::size_t size =
        std::min<std::size_t>(1 + below(16), block.size() - engine::kBitmapHeaderBytes - at);
    const auto bits = static_cast<std::byte>(below(2) == 0 ? 255 * below(2) : random_());
    std::ranges::fill(block.subspan(engine::kBitmapHeaderBytes + at, size), bits);
  }
}

void ImageMutator::drop_block(StoreImage& image) {
  if (image.blocks.empty()) return;
  const auto it = std::next(image.blocks.begin(), static_cast<i64>(below(image.blocks.size())));
  image.blocks.erase(it);
}

}  // namespace latchkey::tests
