#pragma once
// What a schedule does, as a function of its seed: machine lives that end in crashes, callers with
// their operations, device faults, and how the scheduler chooses. Every part has a number and draws
// what it needs from a seed of its own, so that leaving others out does not change it: that is how
// a failure shrinks.

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "tests/sim/files.h"

namespace latchkey::tests {

enum class SimOpKind : u8 {
  create,
  write,
  append,
  read,
  truncate,
  fsync,
  sync,
  unlink,
  rename,
  mkdir,
  rmdir,
  list,
  open,
  close,
  add_key,
  remove_soft,  // or in another mode that loses nothing
  remove_hard,  // or in another mode that may lose data
  block_write,
  block_read,
  block_fsync,
  name_create,
  name_unlink,
  name_rename,
  wait,
  link,
  symlink,
  read_link,
  exchange,
  unnamed,       // a file without a name (O_TMPFILE)
  name_unnamed,  // which gets one
  subvolume,
  snapshot,
  drop_snapshot,  // or a subvolume
  finish_drops,
  scrub,
  punch,
  allocate,
  clone,
};
std::string_view name_of(SimOpKind kind);

struct SimOp {
  u32 number = 0;
  u32 life = 0;
  u32 caller = 0;
  SimOpKind kind = SimOpKind::wait;
  u64 seed = 0;
};

// Device faults (reliability's kinds 4 to 13; torn, dropped and reordered writes are every
// crash's).
enum class SimFaultKind : u8 {
  slow,
  never,  // an op does not complete before the power goes
  read_error,
  write_error,
  flush_error,
  device_full,
  lost_write,
  misplaced_write,
  misplaced_read,
  stale_read,
  rotten_bit,
  rotten_sector,
  rotten_block,
  rotten_mib,
};
std::string_view name_of(SimFaultKind kind);

// What must be true with a fault (docs/fault_budget.md).
enum class SimPromise : u8 {
  survived,  // nothing is lost and no call fails
  told,      // calls may fail; what was acknowledged is there
  detected,  // what was acknowledged may be gone, but nothing wrong is ever read
};
SimPromise promise_of(SimFaultKind kind);

struct SimFaultPlan {
  u32 number = 0;
  u32 life = 0;
  SimFaultKind kind = SimFaultKind::slow;
  u64 after = 0;  // ops of that kind
  bool sticky = false;
  bool at_opening = false;  // counts from before the store is opened, else from after
  u64 seed = 0;
};

enum class SimEnd : u8 { cut_by_changes, cut_by_time, abandon, close };

struct SimLife {
  SimEnd end = SimEnd::abandon;
  u64 cut = 0;            // changes of the device, or nanoseconds
  u64 recovery_cuts = 0;  // crashes inside of the next life's opening
  u64 seed = 0;
};

struct SimPlan {
  u64 seed = 0;
  u64 schedule = 0;  // seed of the scheduler's choices
  u32 callers = 1;
  bool nearly_full = false;  // the store has little space left
  FilesOptions files;
  u32 preempt_in_1024 = 0;
  bool by_priority = false;
  u64 slowest_ns = 0;  // of the device's ops
  std::vector<SimLife> lives;
  std::vector<SimOp> ops;  // by life, then in the order of their caller
  std::vector<SimFaultPlan> faults;
  std::optional<SimPromise> held_to;  // although its faults promise less: to see it fail
  std::function<void(const std::string& line)> tell;  // hears of each call; may be empty

  SimPromise promise() const;  // the weakest of its faults
  bool has_fault(SimFaultKind kind, u32 life) const;
};

struct PlanOptions {
  bool faults = true;
};
SimPlan make_plan(u64 seed, const PlanOptions& options = {});
// "2 lives, 3 callers: 0: c1 write, ...", for people.
std::string describe(const SimPlan& plan);

// Numbers as "0-4,7"; parse answers an empty list for "none" and stops the process otherwise when
// it cannot be read.
std::string numbers_to_text(const std::vector<u32>& numbers);
std::vector<u32> numbers_from_text(std::string_view text);
void keep_ops(SimPlan& plan, const std::vector<u32>& numbers);
void keep_faults(SimPlan& plan, const std::vector<u32>& numbers);

}  // namespace latchkey::tests
