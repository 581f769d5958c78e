#pragma once
// The forest of the running transaction: roots, look-ups, and changes by copy on write.
//
// A node whose pointer has the running generation is dirty and changes in place; any other is
// copied to two new places first, and its old places are freed (E1). Checksums of dirty nodes are
// filled by finalize(), bottom up, when a commit freezes them.
//
// Locking: the owner's forest lock, shared for look-ups, exclusive for the rest.

#include <functional>
#include <map>
#include <optional>

#include "base/mutex.h"
#include "engine/free_space.h"
#include "engine/node_cache.h"
#include "engine/node_pool.h"

namespace latchkey::engine {

class Forest {
 public:
  struct Options {
    VolumeId volume{};
    u32 node_bytes = 0;
  };
  // `space_mutex` guards `space` and `pool`; taken below the forest lock.
  Forest(const Options& options, NodeCache& cache, FreeSpace& space, NodePool& pool,
         Mutex& space_mutex);

  // The root tree of a recovered store; the running generation is the one after.
  void recover(const Pointer& root, u64 generation, u64 node_count);
  // An empty root tree in generation `generation`.
  Result<void> format(u64 generation);

  u64 running() const { return running_; }
  u64 node_count() const { return node_count_; }
  u64 dirty_nodes() const { return dirty_nodes_; }
  // Not the same as dirty nodes: an erase may leave a root that is clean.
  bool changed() const { return dirty_nodes_ != 0 || !changed_roots_.empty(); }

  // Look-ups. not_found: there is no such tree.
  Result<Pointer> root(TreeId tree) const;
  using Visit = std::function<bool(const Key&, Bytes)>;
  // Records from `first` on, in order, until visit returns false or `last` is passed.
  Result<void> scan(TreeId tree, const Key& first, const Key& last, const Visit& visit) const;
  // The last record at or before `key`.
  Result<void> visit_before(TreeId tree, const Key& key, const Visit& visit) const;

  // Changes.
  Result<void> create_tree(TreeId tree);
  Result<void> put(TreeId tree, const Key& key, Bytes value);
  Result<bool> erase(TreeId tree, const Key& key);

  // Writes the changed roots into the root tree, fills every checksum, and begins generation
  // running() + 1. `nodes` are what a commit of the frozen generation must write.
  struct Frozen {
    Pointer root;
    u64 generation = 0;
    struct Write {
      NodePtr node;
      std::array<u64, 2> place;
    };
    std::vector<Write> nodes;
  };
  Result<Frozen> freeze();

 private:
  struct Split {
    Key key;  // of the new right sibling
    Pointer pointer;
  };
  Result<bool> scan_node(const Pointer& pointer, TreeId tree, const Key& first, const Key& last,
                         const Visit& visit) const;
  Result<bool> before_node(const Pointer& pointer, TreeId tree, const Key& key,
                           const Visit& visit) const;
  Result<NodePtr> make_node(TreeId tree, u8 level, Pointer& pointer);
  Result<NodePtr> make_writable(Pointer& pointer, TreeId tree);
  Result<void> free_node(const Pointer& pointer);
  Result<std::optional<Split>> put_into(Pointer& pointer, TreeId tree, const Key& key, Bytes value);
  Result<std::optional<Split>> put_leaf(Node& leaf, TreeId tree, const Key& key, Bytes value);
  Result<std::optional<Split>> add_child(Node& node, TreeId tree, u32 index, const Split& child);
  Result<bool> erase_from(Pointer& pointer, TreeId tree, const Key& key);
  Result<void> tidy_child(Node& node, TreeId tree, u32 index);
  Result<void> try_merge(Node& node, TreeId tree, u32 left);
  Result<void> grow_root(Pointer& root, TreeId tree, const Split& split);
  void finalize(Pointer& pointer, TreeId tree, std::vector<Frozen::Write>& writes);
  Result<Pointer> root_in_tree(TreeId tree) const;
  u32 node_blocks() const { return options_.node_bytes / u32{kBlockBytes}; }

  const Options options_;
  NodeCache& cache_;
  FreeSpace& space_;
  NodePool& pool_;
  Mutex& space_mutex_;
  Pointer root_tree_;
  std::map<TreeId, Pointer> changed_roots_;  // of this generation; the rest is in the root tree
  u64 running_ = 0;
  u64 node_count_ = 0;
  u64 dirty_nodes_ = 0;
};

}  // namespace latchkey::engine
