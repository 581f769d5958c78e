#pragma once
// SimDevice: the Io contract in memory, with faults by seed.
//
// Fault budget: what a crash or a failure may do, and what it may not
//   - A crash drops, keeps or tears (in 512-byte sectors) each unflushed write on its own, in any
//     combination. An unflushed discard is dropped, kept, or cut short.
//   - Flushed writes survive whole: those whose done() ran before a flush was submitted that
//     answered 0. A write that was merely in flight when the flush was submitted is unflushed.
//   - Ops complete in any order, and only some at each tick(), though at least `wait_min`.
//   - A write submitted before the power went may have reached the medium, although it answers
//   -EIO.
//   - A write that is made to fail leaves old, new or torn contents. A flush that is made to fail
//     loses each write it should have covered with a chance of one in three, as the kernel's page
//     cache does: it still reads back, and no later flush saves it.
//   - Bits rot only where flip_bit() or rot() says so, EIO on read only where bad_range() does.
//   - Only where inject() says so: a write that is acknowledged and lost or lands elsewhere, a read
//     of another place or of an older state, an op that takes its time (SimMishap).
//   - Never otherwise: a flushed write lost, a write at a wrong place, a stale read.
//
// With a clock each op takes time by seed: it takes effect and completes at the first tick() after
// its moment. Without one an op may complete at any tick().
//
// All of it follows from the seeds: one thread, same calls, same results. Thread-safe; with several
// threads the order of their ticks counts too. Lock: mu_ is a leaf; no done() runs under it.

#include <atomic>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "engine/io.h"
#include "tests/support/random.h"
#include "tests/support/sim_image.h"

namespace latchkey::tests {

// The time that a device lives in; the simulator's scheduler is one.
class SimClock {
 public:
  virtual ~SimClock() = default;
  virtual u64 now_ns() = 0;
  // Until `ns`, or until `word` is changed from `seen` and woken.
  virtual void sleep(std::atomic<u32>& word, u32 seen, u64 ns) = 0;
};

// How long ops take: at least, and at most of 63 in 64; the others take up to ten times as long.
struct SimLatency {
  u64 least_ns = 5'000;
  u64 most_ns = 100'000;
  u64 flush_ns = 400'000;  // more, for a flush
};

struct SimConfig {
  u64 size_bytes = 64 * kMiB;
  u64 seed = 1;
  bool shuffle = true;  // false: every tick completes all ops, in the order of submission
  bool read_only = false;
  bool discard = true;
  bool garbage_after_discard = false;  // what was discarded reads as random bytes, not as zeros
  bool trace = false;
  SimClock* clock = nullptr;  // outlives the device
  SimLatency latency = {};
};

// What happens to an op that a fault meets.
enum class SimMishap : u8 {
  fails,      // with os_errno
  lost,       // write: acknowledged, the medium keeps what it had
  misplaced,  // write: acknowledged, lands elsewhere; read: the bytes of another place
  stale,      // read: what was durable before the last flush
  slow,       // takes slow_ns more; needs a clock
};

// From the `after`-th op of `kind` on that comes after inject() (0: the very next), once or for
// good.
struct SimFault {
  engine::OpKind kind = engine::OpKind::write;
  u64 after = 0;
  i32 os_errno = 5;  // EIO
  bool sticky = false;
  SimMishap mishap = SimMishap::fails;
  u64 slow_ns = 0;
};

// Ops that met a device with power, the failed ones included.
struct SimCounters {
  u64 reads = 0;
  u64 writes = 0;
  u64 flushes = 0;
  u64 discards = 0;
  u64 bytes_read = 0;
  u64 bytes_written = 0;
};

struct SimTraceEntry {
  engine::OpKind kind = engine::OpKind::read;
  u64 offset = 0;
  u64 size = 0;
  i64 result = 0;
};

class SimDevice final : public engine::Device {
 public:
  explicit SimDevice(const SimConfig& config);
  ~SimDevice() override;

  const engine::DeviceInfo& info() const override { return info_; }
  Result<std::unique_ptr<engine::Io>> make_io(const engine::IoOptions& options) override;
  void refuse_io(bool refused) LK_EXCLUDES(mu_);  // make_io() answers unavailable, EPERM

  // Faults. The counts begin with the call.
  void inject(const SimFault& fault) LK_EXCLUDES(mu_);
  void bad_range(u64 offset, u64 size) LK_EXCLUDES(mu_);  // reads that touch it are -EIO
  // These, the bad ranges, and a cut that has not come. Lost power returns by crash() or restore().
  void clear_faults() LK_EXCLUDES(mu_);
  u64 faults_met() const LK_EXCLUDES(mu_);  // ops that an injected fault has met
  // `n` more writes, flushes and discards take effect; then the power is off: everything is -EIO.
  void cut_after(u64 n) LK_EXCLUDES(mu_);
  void vanish() LK_EXCLUDES(mu_) { cut_after(0); }
  bool power_off() const LK_EXCLUDES(mu_);
  // A thin device: once so many pages hold data, a write that needs a further one is -ENOSPC.
  void limit_pages(u64 pages) LK_EXCLUDES(mu_);

  // Crash. crash_image() is what a crash with this seed would leave; crash() makes it so, and the
  // power comes back. Ops still pending from before answer -EIO and change nothing.
  SimImage crash_image(u64 seed) const LK_EXCLUDES(mu_);
  void crash(u64 seed) LK_EXCLUDES(mu_);
  u64 unflushed() const LK_EXCLUDES(mu_);  // writes and discards that a crash may lose

  // Images: snapshot() is what reads see. restore() makes an image the flushed state, as crash().
  SimImage snapshot() const LK_EXCLUDES(mu_);
  SimImage durable() const LK_EXCLUDES(mu_);
  void restore(const SimImage& image) LK_EXCLUDES(mu_);
  void load_from(Bytes bytes) LK_EXCLUDES(mu_);  // from offset 0; the rest is zeros

  // Past the ops, any offset and size: into the medium at once, as rot does.
  void flip_bit(u64 offset, u32 bit) LK_EXCLUDES(mu_);
  void rot(u64 offset, u64 size, u64 seed) LK_EXCLUDES(mu_);  // other bytes, each changed
  void overwrite(u64 offset, Bytes bytes) LK_EXCLUDES(mu_);
  void peek(u64 offset, MutableBytes into) const LK_EXCLUDES(mu_);

  SimCounters counters() const LK_EXCLUDES(mu_);
  std::vector<SimTraceEntry> take_trace() LK_EXCLUDES(mu_);

 private:
  friend class SimIo;
  using Random = SplitMix64;

  // What an op must know of the moment when it was submitted.
  struct Stamp {
    u64 life = 0;      // crashes and restores before it
    u64 sequence = 0;  // a flush covers records below it
    bool powered = false;
  };
  // A write or discard that a crash may lose.
  struct Record {
    u64 sequence = 0;
    u64 first_page = 0;
    u64 page_count = 0;
    std::vector<SimPagePtr> pages;  // empty: a discard
    bool doomed = false;            // a failed flush lost it
  };
  struct ActiveFault {
    SimFault fault;
    bool spent = false;
  };
  struct Range {
    u64 offset = 0;
    u64 size = 0;
  };

  Stamp stamp() LK_EXCLUDES(mu_);
  u64 next_io_seed() LK_REQUIRES(mu_);
  i64 execute(const engine::Op& op, const Stamp& stamp, Random& random) LK_EXCLUDES(mu_);
  i64 execute_powered(const engine::Op& op, const Stamp& stamp, Random& random) LK_REQUIRES(mu_);
  void count(const engine::Op& op) LK_REQUIRES(mu_);
  const SimFault* injected(engine::OpKind kind) LK_REQUIRES(mu_);
  u64 elsewhere(const engine::Op& op, Random& random) const;
  i64 read(const engine::Op& op, const SimFault* fault, Random& random) LK_REQUIRES(mu_);
  i64 write(const engine::Op& op, const SimFault* fault, Random& random) LK_REQUIRES(mu_);
  void keep(Record record) LK_REQUIRES(mu_);
  i64 discard(const engine::Op& op, Random& random) LK_REQUIRES(mu_);
  i64 flush(u64 sequence, i32 fault, Random& random) LK_REQUIRES(mu_);
  u64 moment_of(const engine::Op& op, Random& random) LK_EXCLUDES(mu_);
  void announce_power() LK_EXCLUDES(mu_);
  void leave_in_cache(const engine::Op& op) LK_REQUIRES(mu_);
  bool fits(const engine::Op& op) const LK_REQUIRES(mu_);
  Record record_of(const engine::Op& op) LK_REQUIRES(mu_);
  void replace(SimImage image) LK_REQUIRES(mu_);

  static void apply(const Record& record, SimImage& image);
  static void apply_torn(const Record& record, SimImage& image, Random& random);

  engine::DeviceInfo info_;
  const SimConfig config_;

  mutable Mutex mu_;
  SimImage current_ LK_GUARDED_BY(mu_);  // what reads see
  SimImage durable_ LK_GUARDED_BY(mu_);  // what is flushed
  SimImage older_ LK_GUARDED_BY(mu_);    // and what was before the last flush
  std::vector<Record> unflushed_ LK_GUARDED_BY(mu_);
  u64 sequence_ LK_GUARDED_BY(mu_) = 0;
  u64 life_ LK_GUARDED_BY(mu_) = 0;
  u64 ios_made_ LK_GUARDED_BY(mu_) = 0;
  bool io_refused_ LK_GUARDED_BY(mu_) = false;
  u64 until_cut_ LK_GUARDED_BY(mu_) = ~u64{0};  // 0: the power is off
  u64 pages_max_ LK_GUARDED_BY(mu_) = ~u64{0};
  std::vector<ActiveFault> faults_ LK_GUARDED_BY(mu_);
  std::vector<Range> bad_ranges_ LK_GUARDED_BY(mu_);
  SimCounters counters_ LK_GUARDED_BY(mu_);
  std::vector<SimTraceEntry> trace_ LK_GUARDED_BY(mu_);
  u64 faults_met_ LK_GUARDED_BY(mu_) = 0;
  std::atomic<u32> power_changes_{0};  // who waits for an op's moment waits here too
};

}  // namespace latchkey::tests
