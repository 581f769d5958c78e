#pragma once
// Runs a sequence of operations once, records what it writes, and looks at every state that a crash
// may have left of it, at any instant: does it open, is it clean, does it hold what the model
// allows; and the same of crashes inside the recovery of such a state, and of what is written after
// it.
//
// A state that gives its reader nothing but what another state gave is not opened again
// (read_tree.h). Everything follows from the sequence and the seed. Not thread-safe.

#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "tests/support/crash_states.h"
#include "tests/support/ledger.h"
#include "tests/support/point_operations.h"
#include "tests/support/read_tree.h"

namespace latchkey::tests {

inline constexpr u64 kPointDeviceBytes = 16 * kMiB;

using PointSequence = std::vector<const PointOperation*>;
std::string to_text(const PointSequence& sequence);

struct PointTotals {
  u64 sequences = 0;
  u64 states = 0;           // instants and fates of writes
  u64 images = 0;           // of them different, within a sequence
  u64 opened = 0;           // of them different to who reads them
  u64 recovery_states = 0;  // crashes during or after a recovery, in the three counts above, too
  std::vector<std::string> findings;
  PointTotals& operator+=(const PointTotals& other);
};

struct PointOptions {
  u64 seed = 1;
  StateBudget budget = {};
  u32 recoveries = ~u32{0};  // of how many opened states the recovery is crashed, too
  StateBudget recovery_budget = {.subsets_up_to = 8, .random_subsets = 64};
  std::size_t findings_max = 20;
};

// Whether the model foresees that no operation is refused but for want of the key.
bool is_worthwhile(const PointSequence& sequence);

// The image that sequences begin with, closed; the same for all seeds.
const SimImage& point_image();

// How all of them open their volumes.
volume::VolumeOptions point_volume_options();

// Looks at an image as it lies: checks it with all data, shows it to the ledger, opens and reads
// it, and writes to it. What is wrong, or nothing.
std::string inspect_point_image(const SimImage& image, NonceLedger& ledger, FoundTree& found);

class CrashPoints {
 public:
  explicit CrashPoints(const PointOptions& options) : options_(options) {}

  // On a simulated device: one thread, an order of completions by the seed.
  PointTotals run(const PointSequence& sequence);
  // On a file at `path`, which is made anew, through io_uring; writeback with threads of its own if
  // `workers`. Errc::unavailable where the kernel refuses io_uring.
  Result<PointTotals> run_on_file(const PointSequence& sequence, const std::string& path,
                                  bool workers);
  // What some other device has recorded of one; `moments`: the model at each mark of the log.
  PointTotals look_at(const DeviceLog& log, const SimImage& start,
                      const std::vector<PointModel>& moments);

 private:
  // What came out of one image.
  struct Outcome {
    std::string broken;  // what is wrong whatever the model says
    FoundTree found;
    SimImage image;  // and what its recovery, and a write after it, did
    DeviceLog recovery;
  };
  using Tree = ReadTree<Outcome>;
  using OutcomePtr = Tree::OutcomePtr;
  struct History;
  struct State;

  void look_at_epoch(const Epoch& epoch, const StateBudget& budget, History& history);
  OutcomePtr outcome_of(const State& state, Tree::Walk& walk, History& history);
  std::shared_ptr<Outcome> inspect(const SimImage& image, History& history, DeviceLog& reads);
  void crash_recovery(const OutcomePtr& outcome, History& history);
  PointTotals record(engine::Device& below, const PointSequence& sequence,
                     const volume::VolumeOptions& volume_options);
  void report(const State& state, const std::string& what, History& history);

  PointOptions options_;
};

// Runs a sequence on a volume on `device` that is open; marks its moments. The models of the
// moments, or what went wrong. `model`: of what the volume holds.
struct PointRun {
  std::vector<PointModel> moments;
  std::vector<std::string> wrong;
};
PointRun run_sequence(volume::Volume& volume, const crypto::KeyId& key, RecordingDevice& device,
                      const PointSequence& sequence, bool compare_live);

}  // namespace latchkey::tests
