#pragma once
// What a schedule knows of its files, outside of the simulated machine: a model for each caller's
// own directory, and for what all callers share. It outlives the machine's crashes.
//
// Everything runs in one thread, a fiber at a time, so a note that follows a call is as good as one
// made with it; a crash is taken only when all fibers have ended.

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/plan.h"
#include "tests/sim/scheduler.h"
#include "tests/support/model.h"

namespace latchkey::tests {

// A subvolume that one caller has for itself. Only its fiber uses it while the machine runs.
struct Place {
  using File = std::shared_ptr<FileHistory>;

  std::string root;
  bool encrypted = true;
  bool read_only = false;
  bool may_vanish = false;  // nothing has made it durable yet
  Model model;
  // Files whose contents must be read before anything is acknowledged of them: a call on them
  // failed, or a removal of their key may have dropped what was dirty.
  std::set<File> unsure;
  std::set<File> nameless;    // open, without a name
  bool names_unsure = false;  // a call on names failed half way: nothing more is compared

  void all_unsure();
};

// What a caller works in: a subvolume that is always there, and snapshots and subvolumes that it
// makes and removes.
struct OwnFiles {
  bool encrypted = true;
  std::string others;  // the directory of all but the first place
  std::string prefix;  // of their names there
  u32 made = 0;
  std::vector<std::shared_ptr<Place>> places;
  // Made by a call that was cut off, or removed and nothing has made that durable: a crash
  // leaves such a place whole or not at all.
  std::vector<std::shared_ptr<Place>> maybe;

  Place& home() { return *places.front(); }
  void durable();  // all calls on places that have ended
};

// Blocks that all callers write as a whole, each time with another stamp, in files of their own.
// What a read or a crash may show of one: a version that was written and that no later write had
// taken the place of.
class SharedBlocks {
 public:
  static constexpr u32 kFiles = 2;
  static constexpr u32 kBlocks = 6;  // of each file
  static constexpr u64 kBlockBytes = 4096;
  static std::string path(u32 file) { return "/shared/" + std::to_string(file); }

  SharedBlocks();
  u64 next_event() { return ++events_; }

  // A write of one block: from before the call to its end. `done`: it was answered with success.
  u64 begin_write(u32 file, u32 block);
  void end_write(u32 file, u32 block, u64 stamp, bool done);
  static std::vector<std::byte> bytes_of(u64 stamp);
  // A flush of the file that began at event `begun` was acknowledged.
  void acknowledge(u32 file, u64 begun);
  // What was not acknowledged may be gone from here on.
  void may_be_lost();
  // What is wrong with a block that a read, begun at `begun`, gave; or with one that a crash left.
  std::optional<std::string> explain_read(u32 file, u32 block, u64 begun, Bytes bytes) const;
  std::optional<std::string> explain_crash(u32 file, u32 block, Bytes bytes) const;
  void adopt(u32 file, u32 block, Bytes bytes);

 private:
  struct Version {
    u64 stamp = 0;
    u64 begun = 0;
    u64 ended = ~u64{0};  // event; none: under way, or failed
    bool done = false;
    bool durable = false;
    bool may_be_lost = false;
  };
  using Versions = std::vector<Version>;
  static std::optional<u64> stamp_of(Bytes bytes);
  static std::optional<std::string> explain(const Versions& versions, Bytes bytes,
                                            const std::function<bool(const Version&)>& settled);

  u64 events_ = 0;
  u64 stamps_ = 0;
  std::vector<Versions> versions_;  // of file * kBlocks + block
};

// Names that all callers make, move and remove: how many there must be.
struct SharedNames {
  static constexpr const char* kPath = "/names";
  i64 expected = 0;
  bool unsure = false;  // a call on them failed half way
};

struct SimWorld {
  explicit SimWorld(const SimPlan& plan);

  std::vector<OwnFiles> own;  // by caller
  SharedBlocks blocks;
  SharedNames names;
  u32 removals_under_way = 0;    // that may drop what is dirty
  bool key_was_removed = false;  // in this life
  bool data_was_dropped = false;
  bool harmed = false;  // the device has lied: what it holds may be wrong from here on
  u64 calls = 0;
  std::map<SimOpKind, u64> done;       // calls that succeeded
  std::optional<std::string> failure;  // the first

  void fail(std::string what) {
    if (!failure) failure = std::move(what);
  }
  // A removal that may drop dirty data begins or has ended.
  void dirty_may_be_lost();
};

// The machine of one life as its callers see it.
struct SimMachine {
  const SimPlan& plan;
  u32 life = 0;
  SimWorld& world;
  FiberScheduler& scheduler;
  SimDevice& device;
  Files& files;

  void tell(const SimOp& op, const std::string& what) {
    if (plan.tell)
      plan.tell(std::to_string(scheduler.now_ns()) + " ns: op " + std::to_string(op.number) + " " +
                std::string(name_of(op.kind)) + " " + what);
  }
  bool over() const { return world.failure.has_value() || device.power_off(); }
  bool faulty() const {
    return world.harmed || (plan.promise() != SimPromise::survived && device.faults_met() != 0);
  }
  // The newest block of the fsync log or its data may be lied about (docs/fault_budget.md).
  bool log_may_be_torn() const { return plan.promise() == SimPromise::detected; }
};

// What a call's error means to the model.
enum class Verdict : u8 {
  done,
  refused,    // nothing has changed
  disturbed,  // the power went, or a fault was met: it may have happened or not
};
// Fails the world where the plan's faults do not allow that error.
Verdict judge(SimMachine& machine, const SimOp& op, const Error& error);
template <class T>
Verdict judge(SimMachine& machine, const SimOp& op, const Result<T>& result) {
  machine.scheduler.note(op.number * 64 + (result ? 0 : static_cast<u64>(result.error().code)));
  if (result) ++machine.world.done[op.kind];
  machine.tell(op, result ? "done"
                          : std::string(name_of(result.error().code)) + ": " +
                                std::string(result.error().what));
  return result ? Verdict::done : judge(machine, op, result.error());
}

}  // namespace latchkey::tests
