#pragma once
// What is behind Store: the forest and its lock, free space and its lock, commits, rings.
//
// Lock order: commit_mutex is never held while another is taken but for a moment; forest ->
// space_mutex; forest -> NodeCache's. Nobody waits under forest but for node reads.

#include <atomic>
#include <set>

#include "engine/extent_table.h"
#include "engine/forest.h"
#include "engine/fsync_log.h"
#include "engine/read_around.h"
#include "engine/ring_pool.h"
#include "engine/store.h"
#include "engine/superblock.h"

namespace latchkey::engine {

// What the bounds of shared trees are made of.
struct ForestSize {
  u64 nodes = 0;
  u64 extent_nodes = 0;
  u64 shared_trees = 0;
  u32 height = 0;  // of the highest subvolume tree
};

struct StoreState {
  StoreState(Device& device_in, const OpenOptions& options_in, Env& env_in);

  Device& device;
  const OpenOptions options;
  Env& env;
  Superblock superblock LK_GUARDED_BY(commit_mutex);  // newest durable
  StoreFacts fixed;                                   // what never changes; generation is not used
  bool read_only = false;

  RingPool rings;                 // lent to readers and writers of data
  RingPool small_rings;           // to readers of little
  RingPool node_rings;            // for one read at a time, so never waited for by their holders
  std::unique_ptr<Io> commit_io;  // of the thread that commits
  std::unique_ptr<ReadAround> read_around;

  mutable SharedMutex forest_lock;
  std::unique_ptr<NodeCache> cache;
  std::unique_ptr<Forest> forest;  // see forest.h for its locking
  std::atomic<u64> running{0};     // copy of forest->running(), for those without the lock

  mutable Mutex space_mutex LK_AFTER(forest_lock);
  std::unique_ptr<FreeSpace> space;  // under space_mutex
  std::unique_ptr<NodePool> pool;    // under space_mutex
  u64 data_reserved LK_GUARDED_BY(space_mutex) = 0;
  u64 tree_reserved LK_GUARDED_BY(space_mutex) = 0;
  u64 leaves_reserved LK_GUARDED_BY(space_mutex) = 0;
  u64 clones_reserved LK_GUARDED_BY(space_mutex) = 0;
  u64 promised LK_GUARDED_BY(space_mutex) = 0;  // blocks of all trees' promises
  u64 drawn LK_GUARDED_BY(space_mutex) = 0;     // of those, in DrawnPromises
  u64 dirty_nodes_max = 0;  // of one transaction; begin() commits beyond half of it
  std::multiset<u64> pins LK_GUARDED_BY(space_mutex);

  Mutex commit_mutex;
  CondVar commit_done;
  // Somebody writes a generation or a block of the log; has commit_io then.
  bool committing LK_GUARDED_BY(commit_mutex) = false;
  u64 durable LK_GUARDED_BY(commit_mutex) = 0;
  std::optional<Error> failed LK_GUARDED_BY(commit_mutex);
  std::atomic<bool> has_failed{false};
  std::atomic<u64> commits{0};
  std::atomic<u64> node_count{0};         // copies, for the reserve
  std::atomic<u64> features_incompat{0};  // of the running transaction; changed under forest_lock
  ForestSize forest_size LK_GUARDED_BY(space_mutex);
  // Of the thread that commits.
  bool discarding = false;  // wanted, and the device has not refused yet
  std::atomic<u64> blocks_discarded{0};

  LogChanges log_changes;
  LogPlaces log;
  LogFound log_found;  // at the open, until it is entered
  std::atomic<u64> log_blocks{0};

  u32 node_blocks() const { return fixed.node_bytes / u32{kBlockBytes}; }
  Result<void> read_blocks(u64 block, MutableBytes into);

  void set_failure(const Error& error) LK_EXCLUDES(commit_mutex);
  std::optional<Error> failure() LK_EXCLUDES(commit_mutex);
  // `force`: also when nothing changed. Waits for the commit under way, then commits what runs.
  Result<void> commit_through(u64 transaction, bool force) LK_EXCLUDES(commit_mutex);
  void end_commit(const Result<void>& written) LK_REQUIRES(commit_mutex);
  Result<void> write_generation(bool force);
  Result<void> write_frozen(const Forest::Frozen& frozen,
                            const std::vector<FreeSpace::SlotWrite>& slots, const Superblock& next);
  void unpin() LK_EXCLUDES(space_mutex, commit_mutex);

  // engine/fsync_log_write.cpp
  Result<void> find_log();
  Result<void> claim_log() LK_REQUIRES(space_mutex);
  Result<void> sync_object(ObjectId id) LK_EXCLUDES(commit_mutex);
  Result<void> write_log(ObjectId id);
  u64 make_log_block(const LogChanges::Body& body) LK_EXCLUDES(commit_mutex);
  void log_block_written() LK_EXCLUDES(space_mutex);
  bool log_has_room() const;
  void find_log_places() LK_REQUIRES(space_mutex);
  std::array<u64, 2> next_log_head() LK_REQUIRES(space_mutex);
  void begin_log();
  void discard_pinned(u64 through) LK_EXCLUDES(space_mutex, commit_mutex);
  u64 fixed_reserve() const;
  Error why_full(u64 blocks) LK_EXCLUDES(space_mutex);

  // Space for trees that share nodes: engine/shared_space.cpp. All answers are in blocks, and 0 as
  // long as no two trees share. note_forest() is called with the forest lock.
  void note_forest() LK_EXCLUDES(space_mutex);
  u64 shared_trees() const LK_REQUIRES(space_mutex);
  u64 shared_copies(u64 leaves) const LK_REQUIRES(space_mutex);
  u64 shared_growth(u64 leaves) const LK_REQUIRES(space_mutex);
  u64 shared_floor() const LK_REQUIRES(space_mutex);
  u64 shared_reserve() const LK_REQUIRES(space_mutex);
  bool may_begin(u64 leaves, u64 tree_blocks) LK_EXCLUDES(space_mutex);
  // `drawing`: of the data blocks, those that come out of promises.
  bool has_space(u64 data_blocks, u64 drawing, u64 tree_blocks, u64 floor, bool use_reserve)
      LK_REQUIRES(space_mutex);
  // Free blocks that are kept for what was reserved and promised.
  u64 data_kept() const LK_REQUIRES(space_mutex);
};

}  // namespace latchkey::engine
