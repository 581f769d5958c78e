#pragma once
// The one way down, where key, plaintext and disk meet: take -> plan -> derive -> seal -> write ->
// insert.
//
// A flush runs in the thread that asks for it, with a lane borrowed from a bounded pool: a ring,
// its I/O buffer and one expanded key. While one half of the buffer is being written the other is
// sealed. A batch takes pages of several files, so that many small files leave in one write.
// Derivation and sealing of a batch's files under one key happen under a KeyUse, so that a wipe
// waits for what is in hand.
//
// Where an fsync waits for one file and all that is dirty of it goes down at once, the block of the
// fsync log that tells of it goes down beside it (engine/log_turn.h), before the insert.
//
// Locks: Pipeline::mutex_ (a leaf). flush() is called with the files' flush locks held, and what
// keeps their leases from being taken.

#include <atomic>
#include <memory>

#include "base/mutex.h"
#include "base/secret.h"
#include "crypto/xts.h"
#include "writeback/plan.h"

namespace latchkey::writeback {

inline constexpr u32 kBatchPages = 512;  // sealed and written at a time: 2 MiB

struct PipelineOptions {
  u32 lanes = 2;  // flushes at a time; each has an I/O buffer of two batches
  bool register_buffers = true;
  u32 queue_depth = 32;
  u32 extent_blocks_max = 32;
  bool clear_cipher = false;  // bench: derivation and cipher replaced by a copy
};

struct PipelineCounters {
  u64 extents = 0;
  u64 bytes = 0;
  u64 derivations = 0;  // calls, each for the keys of up to eight extents
};

// One file of a flush, and what became of it.
struct FileFlush {
  DirtyFile* file = nullptr;
  bool synced = false;  // somebody waits for its fsync; of a file that is flushed alone
  Result<void> result;  // its first error ends its flush; other files go on
  u64 transaction = 0;  // the last one that inserted something of it: wait_durable() it
  u64 pages = 0;        // inserted
  bool gap = false;     // a batch did not land: those behind it are not inserted
};

class Pipeline {
 public:
  // no_memory, unavailable, io. The store and env outlive it.
  static Result<std::unique_ptr<Pipeline>> create(engine::Store& store, Env& env,
                                                  const PipelineOptions& options);
  ~Pipeline();

  // Writes the files' dirty pages, and those dirtied meanwhile up to once. Waits for a lane.
  void flush(std::span<FileFlush> files);
  PipelineCounters counters() const;

 private:
  struct Part;
  struct Batch;
  struct Lane;
  Pipeline(engine::Store& store, Env& env, const PipelineOptions& options);
  Lane& take_lane();
  void return_lane(Lane& lane);
  void flush_through(Lane& lane, std::span<FileFlush> files);
  void abandon(Lane& lane, std::span<FileFlush> files, const Error& why);
  static void fill(std::span<FileFlush> files, std::size_t& next, u64& from, Batch& batch);
  void start(Lane& lane, Batch& batch);
  bool allocate(Batch& batch);
  void give_back_blocks(Batch& batch);
  void seal(Lane& lane, Batch& batch);
  Result<void> seal_parts(Lane& lane, Batch& batch, std::span<const std::size_t> parts);
  void seal_extents(Lane& lane, Batch& batch, const keymgr::KeyUse& use,
                    std::span<const PlannedExtent* const> extents);
  static void seal_extent(Lane& lane, Batch& batch, const crypto::XtsKey& key,
                          const PlannedExtent& extent);
  void take_log_turn(Batch& batch);
  void write(Lane& lane, Batch& batch);
  static void await_writes(Lane& lane, Batch& batch);
  void finish(Lane& lane, Batch& batch);
  u64 end_log_turn(Lane& lane, Batch& batch);
  Result<void> insert(Batch& batch, std::size_t index, u64 logged);
  void give_up(Batch& batch, std::size_t index, const Error& why);

  engine::Store& store_;
  Env& env_;
  const PipelineOptions options_;
  std::atomic<u64> extents_{0};
  std::atomic<u64> bytes_{0};
  std::atomic<u64> derivations_{0};
  std::vector<std::unique_ptr<Lane>> lanes_;
  Mutex mutex_;
  CondVar lane_free_;
  std::vector<Lane*> idle_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::writeback
