#include "engine/node.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "base/check.h"

namespace latchkey::engine {
namespace {

constexpr u32 kSlotsMax = kNodeBytesMax / sizeof(LeafSlot);

}  // namespace

NodePtr Node::create(u32 node_bytes) {
  auto buffer = IoBuffer::create(node_bytes);
  if (!buffer) return nullptr;
  auto node = std::make_shared<Node>();
  node->buffer_ = std::move(*buffer);
  node->data_start_ = node_bytes;
  return node;
}

void Node::init(const VolumeId& volume, TreeId tree, u8 level, u64 generation, u64 place) {
  std::memset(bytes().data(), 0, bytes().size());
  NodeHeader& head = header();
  head.magic = kNodeMagic;
  head.level = level;
  head.generation = generation;
  head.tree = tree;
  head.place = place;
  head.volume_id = volume;
  data_start_ = size();
}

void Node::copy_from(const Node& other) {
  std::memcpy(bytes().data(), other.bytes().data(), bytes().size());
  data_start_ = other.data_start_;
}

LeafSlot& Node::slot(u32 index) const {
  return reinterpret_cast<LeafSlot*>(bytes().data() + sizeof(NodeHeader))[index];
}

InteriorEntry& Node::entry(u32 index) const {
  return reinterpret_cast<InteriorEntry*>(bytes().data() + sizeof(NodeHeader))[index];
}

Key Node::key(u32 index) const {
  return from_disk(level() == 0 ? slot(index).key : entry(index).key);
}

u32 Node::lower_bound(const Key& wanted) const {
  u32 low = 0;
  u32 high = count();
  while (low < high) {
    const u32 middle = (low + high) / 2;
    if (key(middle) < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

u32 Node::child_index(const Key& wanted) const {
  u32 low = 1;
  u32 high = count();
  while (low < high) {
    const u32 middle = (low + high) / 2;
    if (wanted < key(middle))
      high = middle;
    else
      low = middle + 1;
  }
  return low - 1;
}

Bytes Node::value(u32 index) const {
  const LeafSlot& at = slot(index);
  if (at.size == 0) return {};
  return Bytes(bytes()).subspan(at.data_offset, at.size);
}

u32 Node::free_bytes() const {
  const u32 item = level() == 0 ? sizeof(LeafSlot) : sizeof(InteriorEntry);
  return data_start_ - static_cast<u32>(sizeof(NodeHeader)) - count() * item;
}

u32 Node::used_bytes() const {
  return size() - static_cast<u32>(sizeof(NodeHeader)) - free_bytes();
}

void Node::insert(u32 index, const Key& key, Bytes value) {
  LK_CHECK(level() == 0 && index <= count() && has_room(static_cast<u32>(value.size())));
  LK_CHECK(index == 0 || this->key(index - 1) < key);
  LK_CHECK(index == count() || key < this->key(index));
  std::memmove(&slot(index + 1), &slot(index), (count() - index) * sizeof(LeafSlot));
  set_count(count() + 1);
  data_start_ -= static_cast<u32>(value.size());
  LeafSlot& fresh = slot(index);
  fresh.key = to_disk(key);
  fresh.size = static_cast<u16>(value.size());
  fresh.data_offset = value.empty() ? u16{0} : static_cast<u16>(data_start_);
  if (!value.empty()) std::memcpy(bytes().data() + data_start_, value.data(), value.size());
}

bool Node::replace(u32 index, Bytes value) {
  LK_CHECK(level() == 0 && index < count());
  if (slot(index).size != value.size()) return false;
  if (!value.empty())
    std::memcpy(bytes().data() + slot(index).data_offset, value.data(), value.size());
  return true;
}

void Node::erase(u32 index) {
  LK_CHECK(index < count());
  if (level() != 0) {
    std::memmove(&entry(index), &entry(index + 1), (count() - index - 1) * sizeof(InteriorEntry));
    set_count(count() - 1);
    return;
  }
  const u32 hole = slot(index).data_offset;
  const u32 hole_bytes = slot(index).size;
  std::memmove(&slot(index), &slot(index + 1), (count() - index - 1) * sizeof(LeafSlot));
  set_count(count() - 1);
  if (hole_bytes == 0) return;
  std::byte* page = bytes().data();
  std::memmove(page + data_start_ + hole_bytes, page + data_start_, hole - data_start_);
  data_start_ += hole_bytes;
  for (u32 i = 0; i < count(); ++i)
    if (slot(i).size != 0 && slot(i).data_offset < hole)
      slot(i).data_offset = static_cast<u16>(slot(i).data_offset + hole_bytes);
}

Pointer Node::child(u32 index) const { return from_disk(entry(index).child); }
void Node::set_child(u32 index, const Pointer& pointer) { entry(index).child = to_disk(pointer); }
bool Node::has_room_for_child() const { return free_bytes() >= sizeof(InteriorEntry); }

bool Node::is_place_of_child(u32 index, const Key& key) const {
  return (index <= 1 || this->key(index - 1) < key) &&
         (index == 0 || index == count() || key < this->key(index));
}

void Node::insert_child(u32 index, const Key& key, const Pointer& pointer) {
  LK_CHECK(level() != 0 && index <= count() && has_room_for_child());
  LK_CHECK(is_place_of_child(index, key));
  std::memmove(&entry(index + 1), &entry(index), (count() - index) * sizeof(InteriorEntry));
  set_count(count() + 1);
  entry(index) = {to_disk(key), to_disk(pointer)};
}

// What stays is packed against the end again, from the last value on: each moves up, over what has
// been moved or has gone.
void Node::keep_first(u32 keep) {
  set_count(keep);
  if (level() != 0) return;
  std::array<u16, kSlotsMax> order{};
  u32 values = 0;
  for (u32 i = 0; i < keep; ++i)
    if (slot(i).size != 0) order[values++] = static_cast<u16>(i);
  std::ranges::sort(std::span(order).first(values), std::greater{},
                    [this](u16 i) { return u16{slot(i).data_offset}; });
  data_start_ = size();
  for (const u16 i : std::span(order).first(values)) {
    LeafSlot& at = slot(i);
    data_start_ -= at.size;
    std::memmove(bytes().data() + data_start_, bytes().data() + at.data_offset, at.size);
    at.data_offset = static_cast<u16>(data_start_);
  }
}

void Node::split_into(Node& right, u32 hint) {
  LK_CHECK(count() >= 2);
  u32 keep = count() - 1;
  if (hint < count()) {
    const u32 half = used_bytes() / 2;
    u32 bytes_left = 0;
    keep = 0;
    while (keep + 1 < count() && bytes_left < half) {
      bytes_left += level() == 0 ? static_cast<u32>(sizeof(LeafSlot)) + slot(keep).size
                                 : static_cast<u32>(sizeof(InteriorEntry));
      ++keep;
    }
    keep = std::max(keep, 1U);
  }
  for (u32 i = keep; i < count(); ++i) {
    if (level() == 0)
      right.insert(right.count(), key(i), value(i));
    else
      right.insert_child(right.count(), key(i), child(i));
  }
  keep_first(keep);
}

bool Node::append(const Node& right, const Key& lower) {
  const bool leaf = level() == 0;
  if (count() > (leaf ? 0 : 1) && !(key(count() - 1) < lower)) return false;
  if (leaf && right.count() > 0 && right.key(0) < lower) return false;
  if (!leaf && right.count() > 1 && !(lower < right.key(1))) return false;
  for (u32 i = 0; i < right.count(); ++i) {
    if (level() == 0)
      insert(count(), right.key(i), right.value(i));
    else
      insert_child(count(), i == 0 ? lower : right.key(i), right.child(i));
  }
  return true;
}

const char* Node::validate(const Expected& expected) {
  const NodeHeader& head = header();
  if (head.magic != kNodeMagic) return "a tree node has a wrong magic number";
  if (head.volume_id != expected.volume) return "a tree node belongs to another store";
  if (!may_belong(head.tree, expected.tree)) return "a tree node belongs to another tree";
  if (head.level != expected.level) return "a tree node has a wrong level";
  if (head.generation != expected.generation) return "a tree node has a wrong generation";
  if (head.place != expected.place) return "a tree node is not in its place";
  const char* wrong = head.level == 0 ? validate_leaf() : validate_interior();
  if (wrong != nullptr) return wrong;
  for (u32 i = head.level == 0 ? 1 : 2; i < count(); ++i)
    if (!(key(i - 1) < key(i))) return "a tree node's keys are out of order";
  return nullptr;
}

const char* Node::validate_leaf() {
  const u32 slots_end = static_cast<u32>(sizeof(NodeHeader)) + count() * u32{sizeof(LeafSlot)};
  if (slots_end > size()) return "a leaf has too many slots";
  u32 sum = 0;
  u32 lowest = size();
  for (u32 i = 0; i < count(); ++i) {
    const u32 value_bytes = slot(i).size;
    if (value_bytes == 0) continue;
    if (value_bytes > record_bytes_max(size())) return "a value is longer than any may be";
    const u32 offset = slot(i).data_offset;
    if (offset < slots_end || offset + value_bytes > size()) return "a value lies outside its leaf";
    sum += value_bytes;
    lowest = std::min(lowest, offset);
  }
  // Contiguous and of the right sum; that no two overlap follows once each byte is counted once.
  if (sum != size() - lowest) return "a leaf's values are not packed";
  std::vector<bool> covered(size(), false);
  for (u32 i = 0; i < count(); ++i) {
    for (u32 at = 0; at < slot(i).size; ++at) {
      const u32 byte = slot(i).data_offset + at;
      if (covered[byte]) return "a leaf's values overlap";
      covered[byte] = true;
    }
  }
  data_start_ = lowest;
  return nullptr;
}

const char* Node::validate_interior() const {
  if (count() == 0) return "an interior node is empty";
  if (sizeof(NodeHeader) + count() * sizeof(InteriorEntry) > size())
    return "an interior node has too many entries";
  for (u32 i = 0; i < count(); ++i) {
    const Pointer pointer = child(i);
    if (pointer.level + 1 != level()) return "a child pointer has a wrong level";
    if (pointer.generation > header().generation) return "a child is younger than its parent";
  }
  return nullptr;
}

}  // namespace latchkey::engine
