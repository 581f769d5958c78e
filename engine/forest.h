#pragma once
// The forest of the running transaction: roots, look-ups, and changes by copy on write.
//
// A node whose pointer has the running generation is dirty and changes in place; any other is
// copied to two new places first, and its old places are freed (E1). Checksums of dirty nodes are
// filled by finalize(), bottom up, when a commit freezes them.
//
// Subvolume trees share nodes by the rules of Rodeh, "B-trees, Shadowing, and Clones" (ACM TOS
// 2008): a node counts the pointers that lead to it; whoever changes a tree makes the nodes on its
// way private from the root down. A private copy takes over one reference to the node it was copied
// from and gives one more to each child, of a leaf to each run of data that its records refer to.
// So a node below a shared one is shared as well, though its own count may be 1: only the count
// that it has once all above it is private says whether it may be changed or freed. Such a node is
// not changed even if it is dirty.
//
// Locking: the owner's forest lock, shared for look-ups, exclusive for the rest.

#include <functional>
#include <map>
#include <optional>
#include <unordered_map>
#include <unordered_set>

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
    RunsOf runs_of = {};
  };
  // `space_mutex` guards `space` and `pool`; taken below the forest lock.
  Forest(const Options& options, NodeCache& cache, FreeSpace& space, NodePool& pool,
         Mutex& space_mutex);

  // The root tree of a recovered store; the running generation is the one after.
  void recover(const Pointer& root, u64 generation, u64 node_count, u64 extent_node_count);
  // Finds out whether trees of the recovered store share nodes. Where the root tree is damaged they
  // may.
  void find_shared_trees();
  // An empty root tree in generation `generation`.
  Result<void> format(u64 generation);

  u64 running() const { return running_; }
  u64 node_count() const { return node_count_; }
  u64 extent_node_count() const { return extent_node_count_; }
  void set_node_counts(u64 count, u64 of_extents) {  // by a repair
    node_count_ = count;
    extent_node_count_ = of_extents;
  }
  u64 shared_trees() const { return shared_trees_; }
  u32 height() const { return height_; }  // levels above the leaves, of any subvolume tree so far
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
  Result<u64> promised_blocks(TreeId tree) const;
  Result<void> set_promised_blocks(TreeId tree, u64 blocks);
  Result<void> put(TreeId tree, const Key& key, Bytes value);
  Result<bool> erase(TreeId tree, const Key& key);
  // See Transaction. What nothing refers to any more is appended to `freed`.
  Result<void> clone_tree(TreeId from, TreeId to);
  Result<bool> drop_tree_step(TreeId tree, u32 nodes_max, std::vector<BlockRun>& freed);

  // Trees that share nodes exist: changes need more space.
  bool sharing() const { return shared_trees_ >= 2; }
  // How many pointers lead to the node at this first place.
  Result<u64> references(u64 place) const;
  using VisitOf = std::function<bool(TreeId, const Key&, Bytes)>;
  // Records of all subvolume trees, those in a shared leaf once, with one of the trees that have
  // it; in no order. Until visit returns false.
  Result<void> scan_distinct(const VisitOf& visit) const;

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
  Result<void> free_node(const Pointer& pointer, TreeId tree);

  // The rules of sharing; all above `pointer` is private to `tree`.
  Result<bool> is_shared(const Pointer& pointer, TreeId tree);
  Result<void> add_reference(const Pointer& pointer);
  Result<void> drop_reference(const Pointer& pointer);
  Result<void> put_references(const Pointer& pointer, u64 references);
  std::vector<BlockRun> runs_in(const Node& leaf) const;
  Result<void> share_content(const Node& node);  // one more node has what it has
  struct Drop {
    u64 nodes_left = 0;
    u64 dirty_nodes_max = 0;  // of the transaction
    std::vector<BlockRun>& freed;
  };
  Result<bool> drop_below(Pointer& pointer, TreeId tree, Drop& drop);
  Result<void> drop_leaf(const Node& leaf, Drop& drop);
  Result<bool> scan_distinct_below(const Pointer& pointer, TreeId tree,
                                   std::unordered_set<u64>& seen, const VisitOf& visit) const;

  Result<std::optional<Split>> put_into(Pointer& pointer, TreeId tree, const Key& key, Bytes value);
  Result<std::optional<Split>> put_leaf(Node& leaf, TreeId tree, const Key& key, Bytes value);
  Result<std::optional<Split>> add_child(Node& node, TreeId tree, u32 index, const Split& child);
  Result<bool> erase_from(Pointer& pointer, TreeId tree, const Key& key);
  Result<void> tidy_child(Node& node, TreeId tree, u32 index);
  Result<void> try_merge(Node& node, TreeId tree, u32 left);
  Result<void> grow_root(Pointer& root, TreeId tree, const Split& split);
  struct Finalized {
    std::vector<Frozen::Write>& writes;
    std::unordered_map<u64, Checksum> shared;  // by first place, of nodes that may be met again
  };
  void finalize(Pointer& pointer, TreeId tree, Finalized& done);
  Result<TreeRecordDisk> record_in_tree(TreeId tree) const;
  Result<void> put_tree_record(TreeId tree, const TreeRecordDisk& record);
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
  u64 extent_node_count_ = 0;  // of those, in the extent table
  u32 height_ = 0;
  u64 dirty_nodes_ = 0;
  u64 shared_trees_ = 0;               // with kTreeShares; below two, no node has two references
  std::unordered_set<u64> own_nodes_;  // dirty ones that are known to have one reference
};

}  // namespace latchkey::engine
