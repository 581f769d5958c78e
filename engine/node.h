#pragma once
// One node of a tree, as raw as on disk and changed in place. A leaf has slots from the front and
// values packed against the end; an interior node has entries of key and child pointer. An interior
// node's first key says nothing: whatever is less than the second one is below the first entry. (If
// what was before it has gone, a second entry becomes the first, and smaller keys may follow.)
//
// Invariants: keys ascend, but for that one; values are contiguous from data_start() to the end, in
// any order. A Node that came through validate() cannot make these functions read outside of it.
//
// Not thread-safe: dirty nodes change under the forest lock held exclusively, others never change.

#include <memory>

#include "engine/format.h"
#include "engine/io_buffer.h"

namespace latchkey::engine {

// A subvolume's tree may share nodes that any other subvolume's wrote. That weakens nothing that
// the device could do: a read of another node, or of another age of this one, is told by the
// pointer's checksum of the whole node, by the generation and by the place, which are compared all
// the same; between subvolumes the tree's number only ever told of a wrong pointer with a right
// checksum, and such a pointer also is how a clone looks.
inline bool may_belong(TreeId written_by, TreeId tree) {
  return written_by == tree || (is_subvolume(written_by) && is_subvolume(tree));
}

class Node;
using NodePtr = std::shared_ptr<Node>;

class Node {
 public:
  // Zeroed; nullptr when there is no memory.
  static NodePtr create(u32 node_bytes);
  // An empty node of the running transaction.
  void init(const VolumeId& volume, TreeId tree, u8 level, u64 generation, u64 place);
  void copy_from(const Node& other);

  MutableBytes bytes() const { return buffer_.bytes(); }
  NodeHeader& header() const { return *reinterpret_cast<NodeHeader*>(bytes().data()); }
  u8 level() const { return header().level; }
  u32 count() const { return header().count; }
  u64 place() const { return header().place; }

  Key key(u32 index) const;
  // First index whose key is >= `wanted`; count() if there is none.
  u32 lower_bound(const Key& wanted) const;
  // Interior: the child that covers `wanted`.
  u32 child_index(const Key& wanted) const;

  Bytes value(u32 index) const;
  u32 free_bytes() const;
  u32 used_bytes() const;  // slots, entries and values
  bool has_room(u32 value_bytes) const { return free_bytes() >= sizeof(LeafSlot) + value_bytes; }
  void insert(u32 index, const Key& key, Bytes value);  // there is room
  bool replace(u32 index, Bytes value);                 // in its place; false: of another size
  void erase(u32 index);                                // leaf or interior

  Pointer child(u32 index) const;
  void set_child(u32 index, const Pointer& pointer);
  bool has_room_for_child() const;
  // Whether keys ascend with `key` there. What is not so came from a device: no change breaks it.
  bool is_place_of_child(u32 index, const Key& key) const;
  void insert_child(u32 index, const Key& key, const Pointer& pointer);  // it is; there is room

  // Moves the upper half, by bytes, to the empty `right`; both keep at least one item. `hint` is
  // where an insert will follow: at the very end nearly nothing is moved, so that ascending keys
  // fill nodes.
  void split_into(Node& right, u32 hint);
  // Appends everything of `right`; it fits, and follows (else nothing is done and false returned,
  // as above). `lower`: the key by which the parent led to it.
  bool append(const Node& right, const Key& lower);

  // What must hold of bytes read from a device before they are believed; nullptr if it does.
  struct Expected {
    VolumeId volume{};
    TreeId tree = 0;
    u8 level = 0;
    u64 generation = 0;
    u64 place = 0;
  };
  const char* validate(const Expected& expected);

 private:
  LeafSlot& slot(u32 index) const;
  InteriorEntry& entry(u32 index) const;
  u32 size() const { return static_cast<u32>(bytes().size()); }
  void set_count(u32 count) { header().count = static_cast<u16>(count); }
  void keep_first(u32 keep);
  const char* validate_leaf();
  const char* validate_interior() const;

  IoBuffer buffer_;
  u32 data_start_ = 0;  // leaf: first byte of the values
};

}  // namespace latchkey::engine
