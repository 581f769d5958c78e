#include "cli/session_writers.h"

#include <fmt/format.h>

#include "cli/report.h"
#include "cli/session_signals.h"
#include "volume/paths.h"

namespace latchkey::cli {

namespace {

std::string line(u64 number) {
  return fmt::format("line {:012} {}\n", number, std::string(200, '.'));
}

}  // namespace

SessionWriters::~SessionWriters() {
  {
    Lock lock(mutex_);
    going_ = false;
    ending_ = true;
    changed_.notify_all();
  }
  for (const auto& writer : writers_) writer->thread.join();
}

Result<void> SessionWriters::add(volume::Caller caller, const std::string& path, u32 count) {
  for (u32 i = 0; i < count; ++i) {
    auto writer = std::make_unique<Writer>();
    writer->path = fmt::format("{}-{}", path, i);
    volume::OpenFlags flags;
    flags.write = flags.create = true;
    LK_TRY(writer->handle, volume::open_path(volume_, caller, writer->path, flags, 0600));
    writers_.push_back(std::move(writer));
    writers_.back()->thread = std::thread([this, w = writers_.back().get()] { run(*w); });
  }
  go();
  return {};
}

void SessionWriters::run(Writer& writer) {
  const SignalStack stack;
  for (;;) {
    {
      Lock lock(mutex_);
      while (!going_ && !ending_) changed_.wait(mutex_);
      if (ending_) return;
      ++writing_;
    }
    const bool fine = append(writer);
    Lock lock(mutex_);
    --writing_;
    changed_.notify_all();
    if (fine) continue;
    while (!ending_) changed_.wait(mutex_);  // it has met its error
    return;
  }
}

bool SessionWriters::append(Writer& writer) {
  const KeptFrames frames;
  const std::string text = line(writer.lines);
  const bool removed = removed_;
  const auto appended = volume_.append(writer.handle, std::as_bytes(std::span(text)));
  const auto synced =
      appended ? volume_.fsync(writer.handle) : Result<void>(std::unexpected(appended.error()));
  if (!synced) {
    ++writer.failures;
    Lock lock(mutex_);
    last_error_ = describe(synced.error());
    return false;
  }
  ++writer.lines;
  ++writer.acknowledged;
  if (removed) ++writer.after_removal;
  return true;
}

void SessionWriters::go() {
  Lock lock(mutex_);
  going_ = true;
  changed_.notify_all();
}

void SessionWriters::stop() {
  Lock lock(mutex_);
  going_ = false;
  while (writing_ != 0) changed_.wait(mutex_);
}

SessionWriters::Counts SessionWriters::counts() {
  Counts sum;
  {
    Lock lock(mutex_);
    sum.last_error = last_error_;
  }
  for (const auto& writer : writers_) {
    sum.acknowledged += writer->acknowledged;
    sum.after_removal += writer->after_removal;
    sum.failures += writer->failures;
  }
  return sum;
}

std::vector<const SessionWriters::File*> SessionWriters::files() const {
  std::vector<const File*> files;
  files.reserve(writers_.size());
  for (const auto& writer : writers_) files.push_back(writer.get());
  return files;
}

Result<SessionWriters::Verified> SessionWriters::verify(volume::Caller caller) const {
  Verified verified;
  for (const auto& file : writers_) {
    std::string expected;
    for (u64 i = 0; i < file->acknowledged; ++i) expected += line(i);
    LK_TRY(const auto handle, volume::open_path(volume_, caller, file->path, {}));
    std::string text(expected.size() + 1, '\0');
    const auto got = volume_.read(handle, 0, std::as_writable_bytes(std::span(text)));
    (void)volume_.close_handle(handle);
    LK_TRYV(got);
    text.resize(*got);
    verified.lines += file->acknowledged;
    ++verified.files;
    if (text != expected) ++verified.files_wrong;
  }
  return verified;
}

}  // namespace latchkey::cli
