#pragma once
// Nodes in memory by their first place. Clean ones are an LRU within a bound; dirty ones and those
// that a commit is writing stay. Reading one from the device verifies it, from its second place if
// need be.
//
// Thread-safe. Lock: NodeCache::mutex_, below the forest lock; no I/O under it.

#include <atomic>
#include <functional>
#include <list>
#include <unordered_map>

#include "base/mutex.h"
#include "engine/io.h"
#include "engine/node.h"

namespace latchkey::engine {

class NodeCache {
 public:
  using ReadNode = std::function<Result<void>(u64 block, MutableBytes into)>;
  struct Options {
    VolumeId volume{};
    u32 node_bytes = 0;
    u64 cache_bytes = 0;
  };
  NodeCache(const Options& options, ReadNode read);

  // damaged: neither place verifies; io: neither can be read.
  Result<NodePtr> get(const Pointer& pointer, TreeId tree);
  // One place, past the cache: for check. nullptr in `wrong` when it verifies.
  Result<NodePtr> read_place(const Pointer& pointer, TreeId tree, u32 place,
                             const char*& wrong) const;

  void insert_dirty(const NodePtr& node);  // stays until make_clean() or drop()
  void make_clean(u64 place);
  void drop(u64 place);
  // Reads that found a bad first or second place: what check and status tell.
  u64 mended() const { return mended_.load(std::memory_order_relaxed); }

 private:
  struct Entry {
    NodePtr node;
    bool pinned = false;
    std::list<u64>::iterator position;  // in lru_ unless pinned
  };
  // An older node may have had the place; a hostile image may name one node in two ways.
  static bool is(const Node& node, const Pointer& pointer, TreeId tree);
  NodePtr find(const Pointer& pointer, TreeId tree) LK_EXCLUDES(mutex_);
  void shrink() LK_REQUIRES(mutex_);

  const Options options_;
  const ReadNode read_;
  std::atomic<u64> mended_{0};
  Mutex mutex_;
  std::unordered_map<u64, Entry> entries_ LK_GUARDED_BY(mutex_);
  std::list<u64> lru_ LK_GUARDED_BY(mutex_);  // front: used last
};

}  // namespace latchkey::engine
