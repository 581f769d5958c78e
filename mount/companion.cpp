#include "mount/companion.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>

#include "base/env.h"
#include "base/no_memory.h"
#include "mount/callers.h"

namespace latchkey::mount {
namespace {

constexpr u32 kInARowMin = 16;    // requests, before there is a companion
constexpr u32 kWindow = 128;      // requests between two looks at who calls
constexpr u32 kStrangersMax = 8;  // of others, in a window
constexpr u32 kSampledMin = 8;    // requests of a window behind which another is sought
constexpr u32 kGlanceMin = 4, kGlanceMax = 64;  // requests between two looks at where the caller is
constexpr u32 kLongRead = 256 * kKiB;           // is worth a thread beside its reader
constexpr u64 kLookNs = 2'000'000;              // between two looks of the guardian
// Its looks in a row: nobody takes what waits, or the companion is kept from running; the companion
// waits for something else; nobody asks.
constexpr u32 kStuck = 2, kSlow = 10, kQuiet = 10;
// After one that was in somebody's way. One that went well for so long may follow soon.
constexpr u64 kOfUseNs = 100'000'000;
constexpr u64 kPauseMinNs = 10'000'000, kPauseMaxNs = 1'000'000'000;

pid_t thread_number() { return static_cast<pid_t>(::syscall(SYS_gettid)); }

bool set_class(pid_t thread, int policy) {
  const sched_param none{};
  return ::sched_setscheduler(thread, policy, &none) == 0;
}

// The first thread of the process answers no requests: it has what all have by default.
bool get_default(cpu_set_t& processors) {
  return ::sched_getaffinity(::getpid(), sizeof processors, &processors) == 0;
}

bool set_processors(pid_t thread, const cpu_set_t& processors) {
  return ::sched_setaffinity(thread, sizeof processors, &processors) == 0;
}

void make_ordinary(pid_t thread) {
  (void)set_class(thread, SCHED_OTHER);
  cpu_set_t processors;
  if (get_default(processors)) (void)set_processors(thread, processors);
}

bool wants_to_run(pid_t thread) { return stat_field(::getpid(), thread, 3) == "R"; }

// Of this process, the kernel's threads that work for its rings among them.
template <class Visit>
void for_each_thread(const Visit& visit) {
  std::error_code error;
  const std::filesystem::directory_iterator end;
  for (std::filesystem::directory_iterator at("/proc/self/task", error); !error && at != end;
       at.increment(error)) {
    const std::string number = at->path().filename().string();
    pid_t thread = 0;
    std::from_chars(number.data(), number.data() + number.size(), thread);
    if (thread != 0) visit(thread, at->path());
  }
}

// All threads but the first and the companion, and -1 lets them run where they may. To the
// scheduler a processor of SCHED_IDLE is a good place for whoever wakes up, those who write out
// above all. The kernel's threads stay where they are: it does not let them be moved.
void keep_away_from(int processor, pid_t companion) {
  cpu_set_t others;
  if (!get_default(others)) return;
  if (processor >= 0) CPU_CLR(static_cast<std::size_t>(processor), &others);
  (void)or_no_memory([&] {
    for_each_thread([&](pid_t thread, const auto&) {
      if (thread != companion && thread != ::getpid()) (void)set_processors(thread, others);
    });
  });
}

// The kernel's threads that work for a thread's rings were started by it.
void make_workers_ordinary(pid_t thread) {
  const std::string name = "iou-wrk-" + std::to_string(thread);
  (void)or_no_memory([&] {
    for_each_thread([&](pid_t worker, const std::filesystem::path& folder) {
      std::ifstream file(folder / "comm");
      std::string command;
      if (std::getline(file, command) && command == name) (void)set_class(worker, SCHED_OTHER);
    });
  });
}

bool waits(int fuse_fd) {
  pollfd device{.fd = fuse_fd, .events = POLLIN, .revents = 0};
  return ::poll(&device, 1, 0) > 0;
}

// About one number of eight, and not in step with anything.
bool is_sampled(u32 number) { return number * 2654435769U >> 29 == 0; }

bool is_long_read(Bytes request) {
  struct {
    fuse_in_header header;
    fuse_read_in read;
  } words;
  if (request.size() < sizeof words) return false;
  std::memcpy(&words, request.data(), sizeof words);
  return words.header.opcode == FUSE_READ && words.read.size >= kLongRead;
}

pid_t caller_of(Bytes request) {
  fuse_in_header header;
  if (request.size() < sizeof header) return 0;
  std::memcpy(&header, request.data(), sizeof header);
  return static_cast<pid_t>(header.pid);
}

}  // namespace

void be_ordinary() {
  if (::sched_getscheduler(0) == SCHED_IDLE) return make_ordinary(0);
  cpu_set_t processors;
  if (get_default(processors)) (void)set_processors(0, processors);
}

Companion::Turn::Turn() : self_(thread_number()) {}

// Of the last requests too many were by others, or had others behind them.
bool Companion::Turn::has_others() {
  const bool queue_up = sampled_ >= kSampledMin && queued_ >= sampled_ - sampled_ / 8;
  const bool others = queue_up || strangers_ > kStrangersMax;
  taken_ = strangers_ = sampled_ = queued_ = 0;
  return others;
}

// A caller that runs here lets this thread run again when it has made its next request: then that
// is there to be taken. Who sleeps in between has the caller elsewhere, or it takes its time.
bool Companion::Turn::slept() {
  rusage usage;
  if (::getrusage(RUSAGE_THREAD, &usage) != 0) return true;
  const long more = usage.ru_nvcsw - std::exchange(switches_, usage.ru_nvcsw);
  if (more >= glance_every_ / 2) return true;
  glance_every_ = kGlanceMin;
  return false;
}

Companion::~Companion() {
  close();
  if (guardian_) guardian_->join();
}

void Companion::start(int fuse_fd) {
  fuse_fd_ = fuse_fd;
  cpu_set_t processors;
  if (::sched_getaffinity(0, sizeof processors, &processors) != 0 || CPU_COUNT(&processors) < 2 ||
      ::sched_getscheduler(0) != SCHED_OTHER)
    return;
  try {
    guardian_ = std::make_unique<Thread>([this] { guard(); });
  } catch (const std::exception&) {
    return;  // no memory, no thread
  }
}

void Companion::close() {
  Lock lock(mutex_);
  closed_ = true;
  enabled_ = false;
  if (thread_ != 0) end(false);
  changed_.notify_all();
}

void Companion::wait_turn(const Turn& turn) {
  if (thread_.load() == 0 || is_companion(turn)) return;
  Lock lock(mutex_);
  while (thread_ != 0 && !is_companion(turn)) ended_.wait(mutex_);
}

// Without a caller are requests of the kernel's own, as that to forget an inode.
void Companion::taken(Turn& turn, Bytes request, bool alone) {
  if (!enabled_.load(std::memory_order_relaxed)) return;
  const pid_t caller = caller_of(request);
  const bool long_read = is_long_read(request);
  if (thread_.load() == 0) {
    if (caller != 0 && may_begin(turn, caller, alone && !long_read)) begin(turn, caller);
    return;
  }
  if (!is_companion(turn)) return;  // it was waiting for a request when that one began
  if (long_read) return give_up(turn, false);
  busy_.store(true, std::memory_order_relaxed);
  taken_.fetch_add(1, std::memory_order_relaxed);
  if (caller != turn.caller_ && caller != 0) ++turn.strangers_;
  if (is_sampled(turn.taken_)) {
    ++turn.sampled_;
    if (waits(fuse_fd_)) ++turn.queued_;
  }
  if (++turn.taken_ % turn.glance_every_ == 0) go_on(turn);
}

void Companion::answered(const Turn& turn) {
  if (is_companion(turn)) busy_.store(false, std::memory_order_relaxed);
}

bool Companion::may_begin(const Turn& turn, pid_t caller, bool alone) {
  Lock lock(mutex_);
  if (thread_ != 0 || closed_) return false;
  in_a_row_ = alone && caller == last_caller_ ? in_a_row_ + 1 : 0;
  last_caller_ = caller;
  if (in_a_row_ < kInARowMin) return false;
  in_a_row_ = 0;
  const u64 now = system_env().monotonic_ns();
  if (now < not_before_ns_) return false;
  begun_ns_ = now;
  busy_ = true;
  ++taken_;
  thread_ = turn.self_;
  changed_.notify_all();
  return true;
}

// To where the caller runs. False: it has gone, or runs where this process may not.
bool Companion::follow(Turn& turn, pid_t caller) {
  const std::string field = stat_field(caller, caller, 39);
  int processor = -1;
  std::from_chars(field.data(), field.data() + field.size(), processor);
  if (processor < 0 || processor >= CPU_SETSIZE) return false;
  const bool stayed = processor == turn.processor_;
  turn.glance_every_ = stayed ? std::min(2 * turn.glance_every_, kGlanceMax) : kGlanceMin;
  if (stayed) return true;
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(static_cast<std::size_t>(processor), &only);
  if (!set_processors(0, only)) return false;
  turn.processor_ = processor;
  processor_.store(processor, std::memory_order_relaxed);
  return true;
}

void Companion::begin(Turn& turn, pid_t caller) {
  turn.caller_ = caller;
  turn.processor_ = -1;
  turn.glance_every_ = kGlanceMin;
  turn.taken_ = turn.strangers_ = turn.sampled_ = turn.queued_ = 0;
  if (follow(turn, caller) && set_class(0, SCHED_IDLE)) {
    if (!is_companion(turn)) make_ordinary(0);
    return;
  }
  give_up(turn, true);
}

void Companion::give_up(const Turn& turn, bool contended) {
  make_ordinary(0);
  Lock lock(mutex_);
  if (is_companion(turn)) end(contended);
}

// It may have been ended meanwhile: end() says so first, and makes it ordinary then.
void Companion::go_on(Turn& turn) {
  const bool others = turn.taken_ >= kWindow && turn.has_others();
  if (!others && (!turn.slept() || follow(turn, turn.caller_))) {
    if (!is_companion(turn)) make_ordinary(0);
    return;
  }
  give_up(turn, others);
}

void Companion::end(bool contended) {
  const pid_t thread = thread_.exchange(0);
  make_ordinary(thread);
  make_workers_ordinary(thread);
  in_a_row_ = 0;
  ended_.notify_all();
  if (!contended) return;
  const u64 now = system_env().monotonic_ns();
  const bool of_use = now - begun_ns_ >= kOfUseNs;
  pause_ns_ = of_use ? kPauseMinNs : std::clamp(8 * pause_ns_, kPauseMinNs, kPauseMaxNs);
  not_before_ns_ = now + pause_ns_;
}

void Companion::guard() {
  if (!set_class(0, SCHED_IDLE) || !set_class(0, SCHED_OTHER)) return;
  enabled_ = true;
  Look at;
  Lock lock(mutex_);
  while (!closed_) {
    if (thread_ == 0) {
      if (std::exchange(at, {}).away_from >= 0) keep_away_from(-1, 0);
      changed_.wait(mutex_);
      continue;
    }
    changed_.wait_for(mutex_, kLookNs);
    if (thread_ != 0) look(at);
  }
  keep_away_from(-1, 0);
}

void Companion::look(Look& at) {
  if (const pid_t thread = thread_; thread != at.thread) at = {.thread = thread};
  const int processor = processor_.load(std::memory_order_relaxed);
  if (processor != at.away_from) keep_away_from(at.away_from = processor, at.thread);
  const u64 taken = taken_;
  at.still = taken == at.taken ? at.still + 1 : 0;
  at.taken = taken;
  const bool kept_from_running = at.still > 0 && wants_to_run(at.thread);
  if (kept_from_running != at.hurried &&
      set_class(at.thread, kept_from_running ? SCHED_OTHER : SCHED_IDLE))
    at.hurried = kept_from_running;
  if (at.still >= kStuck && (waits(fuse_fd_) || (busy_ && kept_from_running))) {
    end(true);
  } else if (at.still >= (busy_ ? kSlow : kQuiet)) {
    end(false);
  }
}

}  // namespace latchkey::mount
