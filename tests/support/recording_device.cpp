#include "tests/support/recording_device.h"

#include <utility>

#include "base/check.h"

namespace latchkey::tests {

using engine::Op;
using engine::OpKind;

// Passes a copy of each op down, so that the completion comes by here first.
class RecordingDevice::RecordingIo final : public engine::Io {
 public:
  RecordingIo(RecordingDevice& device, std::unique_ptr<engine::Io> io)
      : device_(device), io_(std::move(io)) {}

  void submit(Op& op) override {
    engine::check_op(op);
    auto passed = std::make_unique<Passed>();
    passed->io = this;
    passed->outer = &op;
    passed->stamp = device_.submitted(op);
    passed->inner.kind = op.kind;
    passed->inner.offset = op.offset;
    passed->inner.data = op.data;
    passed->inner.discard_size = op.discard_size;
    passed->inner.done = &done;
    passed->inner.owner = passed.get();
    io_->submit(passed.release()->inner);
  }
  Result<u32> tick(u32 wait_min) override { return io_->tick(wait_min); }
  u32 pending() const override { return io_->pending(); }
  MutableBytes buffer() override { return io_->buffer(); }

 private:
  struct Passed {
    Op inner;
    Op* outer = nullptr;
    RecordingIo* io = nullptr;
    Stamp stamp;
  };
  static void done(Op& inner) {
    const std::unique_ptr<Passed> passed(static_cast<Passed*>(inner.owner));
    passed->io->device_.completed(passed->stamp, inner.result);
    passed->outer->result = inner.result;
    passed->outer->done(*passed->outer);
  }

  RecordingDevice& device_;
  std::unique_ptr<engine::Io> io_;
};

Result<std::unique_ptr<engine::Io>> RecordingDevice::make_io(const engine::IoOptions& options) {
  LK_TRY(auto io, device_.make_io(options));
  return std::make_unique<RecordingIo>(*this, std::move(io));
}

RecordingDevice::Stamp RecordingDevice::submitted(const Op& op) {
  LogWrite write;
  write.first_page = op.offset / kSimPage;
  if (op.kind == OpKind::write)
    for (u64 at = 0; at < op.data.size(); at += kSimPage)
      write.pages.push_back(make_sim_page(op.data.subspan(at, kSimPage)));
  if (op.kind == OpKind::discard) write.pages.resize(op.discard_size / kSimPage);

  Lock lock(mu_);
  Stamp stamp{op.kind, logs_taken_, 0};
  LogEvent event;
  event.first_page = write.first_page;
  switch (op.kind) {
    case OpKind::read:
      event.kind = LogEvent::Kind::read;
      event.page_count = op.data.size() / kSimPage;
      break;
    case OpKind::write:
    case OpKind::discard:
      event.kind = LogEvent::Kind::write;
      event.page_count = write.pages.size();
      event.number = log_.writes.size();
      log_.writes.push_back(std::move(write));
      break;
    case OpKind::flush:
      event.kind = LogEvent::Kind::flush;
      event.number = flushes_++;
      break;
  }
  stamp.number = event.number;
  log_.events.push_back(event);
  return stamp;
}

void RecordingDevice::completed(const Stamp& stamp, i64 result) {
  if (stamp.kind == OpKind::read || result < 0) return;
  Lock lock(mu_);
  LK_CHECK_MSG(stamp.log == logs_taken_, "a log is taken while nothing is in flight");
  LogEvent event;
  event.kind = stamp.kind == OpKind::flush ? LogEvent::Kind::flushed : LogEvent::Kind::completed;
  event.number = stamp.number;
  log_.events.push_back(event);
}

void RecordingDevice::mark(u64 moment) {
  Lock lock(mu_);
  LogEvent event;
  event.number = moment;
  log_.events.push_back(event);
}

DeviceLog RecordingDevice::take_log() {
  Lock lock(mu_);
  ++logs_taken_;
  return std::exchange(log_, {});
}

}  // namespace latchkey::tests
