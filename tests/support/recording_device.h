#pragma once
// A device that writes down what is done to the one below it: a simulated device, or a file under
// the real io_uring. From the log of one run every state that a power failure may leave can be made
// (crash_states.h).
//
// The log is in the order in which things were seen here: an op as it was submitted, its completion
// before its submitter hears of it. So a write whose `completed` comes before a `flush` is covered
// by that flush's `flushed`: dm-log-writes' rule. Contents are taken at submission; the Io contract
// leaves them alone until the completion.
//
// Thread-safe. Lock: mu_ is a leaf; no done() runs under it.

#include <memory>
#include <vector>

#include "base/mutex.h"
#include "engine/io.h"
#include "tests/support/sim_image.h"

namespace latchkey::tests {

// A write or a discard. A discarded page reads as zeros.
struct LogWrite {
  u64 first_page = 0;
  std::vector<SimPagePtr> pages;
};

struct LogEvent {
  enum class Kind : u8 {
    read,       // first_page, page_count
    write,      // submitted; `number` is its place in DeviceLog::writes
    completed,  // of the write `number`, without an error
    flush,      // submitted; `number` counts flushes
    flushed,    // the flush `number` answered 0
    moment,     // `number` is the test's own: mark()
  };
  Kind kind = Kind::moment;
  u64 number = 0;
  u64 first_page = 0, page_count = 0;
};

struct DeviceLog {
  std::vector<LogEvent> events;
  std::vector<LogWrite> writes;
};

class RecordingDevice final : public engine::Device {
 public:
  explicit RecordingDevice(engine::Device& device) : device_(device) {}

  const engine::DeviceInfo& info() const override { return device_.info(); }
  Result<std::unique_ptr<engine::Io>> make_io(const engine::IoOptions& options) override;

  void mark(u64 moment) LK_EXCLUDES(mu_);
  DeviceLog take_log() LK_EXCLUDES(mu_);  // what was recorded since the last one

 private:
  class RecordingIo;
  // What is remembered of an op: its event, which a take_log() meanwhile has not taken along.
  struct Stamp {
    engine::OpKind kind = engine::OpKind::read;
    u64 log = 0;
    u64 number = 0;
  };
  Stamp submitted(const engine::Op& op) LK_EXCLUDES(mu_);
  void completed(const Stamp& stamp, i64 result) LK_EXCLUDES(mu_);

  engine::Device& device_;
  Mutex mu_;
  DeviceLog log_ LK_GUARDED_BY(mu_);
  u64 logs_taken_ LK_GUARDED_BY(mu_) = 0;
  u64 flushes_ LK_GUARDED_BY(mu_) = 0;
};

}  // namespace latchkey::tests
