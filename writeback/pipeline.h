#pragma once
// The one way down, where key, plaintext and disk meet: take -> plan -> derive -> seal -> write ->
// insert.
//
// A flush runs in the thread that asks for it, with a lane borrowed from a bounded pool: a ring,
// its I/O buffer and one expanded key. While one half of the buffer is being written the other is
// sealed. Derivation and sealing happen under a KeyUse, so that a wipe waits for the batch in hand.
//
// Locks: Pipeline::mutex_ (a leaf). flush() is called with the file's flush lock held and no other.

#include <array>
#include <atomic>
#include <memory>

#include "base/mutex.h"
#include "base/secret.h"
#include "crypto/xts.h"
#include "writeback/plan.h"

namespace latchkey::writeback {

struct PipelineOptions {
  u32 lanes = 2;
  u32 queue_depth = 32;
  u32 extent_blocks_max = 32;
  bool clear_cipher = false;  // bench: derivation and cipher replaced by a copy
};

struct PipelineCounters {
  u64 extents = 0;
  u64 bytes = 0;
};

class Pipeline {
 public:
  // no_memory, unavailable, io. The store and env outlive it.
  static Result<std::unique_ptr<Pipeline>> create(engine::Store& store, Env& env,
                                                  const PipelineOptions& options);
  ~Pipeline();

  // Writes the file's dirty pages, and those dirtied meanwhile up to once. The first error ends it.
  // `transaction` is the last one that inserted something: wait_durable() it.
  Result<void> flush(DirtyFile& file, u64& transaction);
  PipelineCounters counters() const;

 private:
  struct Lane;
  struct Batch;
  Pipeline(engine::Store& store, Env& env, const PipelineOptions& options);
  Lane& take_lane();
  void return_lane(Lane& lane);
  Result<void> flush_on(Lane& lane, DirtyFile& file, u64& transaction);
  Result<void> start(Lane& lane, DirtyFile& file, Batch& batch);
  Result<void> seal(Lane& lane, DirtyFile& file, Batch& batch);
  Result<void> finish(Lane& lane, DirtyFile& file, Batch& batch, u64& transaction);
  Result<void> insert(DirtyFile& file, Batch& batch, u64& transaction);
  void give_up(DirtyFile& file, Batch& batch, const Result<void>& why);

  engine::Store& store_;
  Env& env_;
  const PipelineOptions options_;
  std::atomic<u64> extents_{0};
  std::atomic<u64> bytes_{0};
  std::vector<std::unique_ptr<Lane>> lanes_;
  Mutex mutex_;
  CondVar lane_free_;
  std::vector<Lane*> idle_ LK_GUARDED_BY(mutex_);
};

}  // namespace latchkey::writeback
