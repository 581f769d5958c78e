#include "mount/session.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <utility>

#include "base/secret.h"
#include "base/wait.h"
#include "mount/device_io.h"
#include "mount/fusermount.h"
#include "mount/receive_errors.h"
#include "mount/unnamed.h"

namespace latchkey::mount {
namespace {

// Threads that wait for a request; further ones rest until one of these is the last.
constexpr u32 kIdleMax = 4;
constexpr int kWakeSignal = SIGURG;  // means nothing to who has no handler
constexpr u64 kWakePauseNs = 5'000'000;

// libfuse says on standard error why it does not mount; kept instead, to be part of the answer.
// Written while one thread mounts.
std::array<char, 256> g_said{};

void keep_words(fuse_log_level, const char* format, va_list arguments) {
  (void)std::vsnprintf(g_said.data(), g_said.size(), format, arguments);
  g_said[std::string_view(g_said.data()).find_last_not_of('\n') + 1] = 0;
}

const char* said_or(const char* otherwise) {
  return g_said.front() != 0 ? g_said.data() : otherwise;
}

std::string joined(const SessionOptions& options) {
  std::string text = options.read_only ? "ro" : "rw";
  text += ",default_permissions,subtype=latchkey,fsname=";
  for (const char c : options.source) {  // a comma would end the option
    if (c == ',' || c == '\\') text += '\\';
    text += c;
  }
  for (const std::string& option : options.kernel) text += "," + option;
  return text;
}

}  // namespace

Session::~Session() {
  if (session_ != nullptr) fuse_session_destroy(session_);
  if (ended_fd_ >= 0) ::close(ended_fd_);
}

Result<void> Session::mount(const SessionOptions& options) {
  options_ = options;
  ended_fd_ = ::eventfd(0, EFD_CLOEXEC);
  if (ended_fd_ < 0) return fail_os(Errc::unavailable, errno, "no event descriptor is left");
  g_said.front() = 0;
  fuse_set_log_func(keep_words);
  std::string words = joined(options_);
  std::string name = "latchkey", flag = "-o";
  std::array<char*, 4> argv{name.data(), flag.data(), words.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(3, argv.data());
  const fuse_lowlevel_ops& operations = FileSystem::operations();
  session_ = fuse_session_new(&args, &operations, sizeof operations, &file_system_);
  fuse_opt_free_args(&args);
  if (session_ == nullptr) return fail(Errc::invalid, said_or("a mount option was refused"));
  LK_TRYV(::geteuid() == 0 ? mount_as_root() : mount_as_user());
  fuse_set_log_func(nullptr);
  place_ = Place::of(options_.directory);
  if (place_) return use_device_io(session_);
  const int error = errno;
  if (::geteuid() == 0)
    fuse_session_unmount(session_);
  else
    (void)unmount_by_fusermount(options_.directory, "-q");
  return fail_os(Errc::unavailable, error, "the mount cannot be looked at");
}

Result<void> Session::mount_as_root() {
  if (fuse_session_mount(session_, options_.directory.c_str()) == 0) return {};
  return fail(Errc::unsupported, said_or("the kernel does not mount it there"));
}

// libfuse takes a connection that others have opened by its number.
Result<void> Session::mount_as_user() {
  SessionOptions options = options_;
  // To the kernel one is the other: libfuse turns away who is not meant.
  std::ranges::replace(options.kernel, "allow_root", "allow_other");
  std::string said;
  auto connection = mount_by_fusermount(options_.directory, joined(options), said);
  if (!connection) {
    g_said.fill(0);
    said.copy(g_said.data(), g_said.size() - 1);
    return fail_os(connection.error().code, connection.error().os_errno, g_said.data());
  }
  const std::string number = "/dev/fd/" + std::to_string(connection->get());
  if (fuse_session_mount(session_, number.c_str()) != 0)
    return fail(Errc::unsupported, said_or("the connection is of no use"));
  connection->release();  // the session's
  return {};
}

Result<void> Session::serve() {
  if (options_.companion) companion_.start(fuse_session_fd(session_));
  Lock lock(mutex_);
  receiving_.reserve(std::size_t{2} * options_.threads_max);
  start_thread();
  if (threads_.empty()) return fail(Errc::no_memory, "no thread can be started");
  return {};
}

void Session::start_thread() {
  if (threads_.size() >= options_.threads_max) return;
  try {
    threads_.reserve(threads_.size() + 1);
    threads_.emplace_back([this] { run(); });
    ++idle_;
  } catch (const std::exception&) {
    return;  // no memory, no thread: those that there are go on
  }
}

bool Session::begin_request() {
  Lock lock(mutex_);
  const bool alone = idle_ + resting_ == threads_.size();
  if (--idle_ != 0) return alone;
  if (resting_ != 0)
    wanted_.notify_one();
  else
    start_thread();
  return alone;
}

void Session::end_request() {
  Lock lock(mutex_);
  ++idle_;
}

// To those who wait at the device the kernel gives requests in turn, so that each has slept longest
// when its comes. Who is not needed there sleeps here.
void Session::rest() {
  Lock lock(mutex_);
  while (idle_ > kIdleMax && !over_) {
    --idle_;
    ++resting_;
    wanted_.wait(mutex_);
    --resting_;
    ++idle_;
  }
}

void Session::end_rest() {
  Lock lock(mutex_);
  over_ = true;
  wanted_.notify_all();
}

void Session::receive(fuse_buf& buffer) {
  ReceiveErrors errors;
  Companion::Turn turn;
  while (!cut_ && fuse_session_exited(session_) == 0) {
    rest();
    companion_.wait_turn(turn);
    const int got = fuse_session_receive_buf(session_, &buffer);
    if (got <= 0) {
      const auto then = errors.after(got);
      if (then == ReceiveErrors::Then::pause) pause_for(ReceiveErrors::kPauseNs);
      if (then != ReceiveErrors::Then::end) continue;
      if (got == 0 || got == -ENODEV) return;
      Lock lock(mutex_);
      failure_ = fail_os(Errc::io, -got, "the kernel's requests cannot be taken any more").error();
      return;
    }
    errors.received();
    const bool alone = begin_request();
    const MutableBytes request(static_cast<std::byte*>(buffer.mem), static_cast<std::size_t>(got));
    companion_.taken(turn, request, alone);
    if (!answer_unnamed(request)) fuse_session_process_buf(session_, &buffer);
    wipe(request);
    burn_stack_and_registers();
    companion_.answered(turn);
    end_request();
  }
}

void Session::run() {
  be_ordinary();
  const auto self = static_cast<pid_t>(::syscall(SYS_gettid));
  {
    Lock lock(mutex_);
    receiving_.push_back(self);  // there is room: serve()
  }
  fuse_buf buffer{};  // its memory is libfuse's, made at the first request
  receive(buffer);
  std::free(buffer.mem);
  companion_.close();
  end_rest();
  const u64 one = 1;
  (void)!::write(ended_fd_, &one, sizeof one);
  Lock lock(mutex_);
  std::erase(receiving_, self);
}

std::optional<Error> Session::failure() {
  Lock lock(mutex_);
  return failure_;
}

bool Session::answer_unnamed(Bytes request) {
  return mount::answer_unnamed(file_system_, fuse_session_fd(session_), request);
}

bool Session::unmount() {
  if (session_ == nullptr) return true;
  if (const auto place = std::exchange(place_, {})) (void)place->take_away();
  pollfd device{.fd = fuse_session_fd(session_), .events = 0, .revents = 0};
  return ::poll(&device, 1, 0) == 1 && (device.revents & POLLERR) != 0;
}

// A thread that waits for a request keeps the descriptor open, and so the connection. It sees a
// signal only if that comes while it waits: so they come until all have ended.
void Session::cut() {
  struct sigaction nothing{};
  nothing.sa_handler = [](int) {};
  ::sigaction(kWakeSignal, &nothing, nullptr);
  cut_ = true;
  companion_.close();
  end_rest();
  for (;;) {
    {
      Lock lock(mutex_);
      if (receiving_.empty()) return;
      for (const pid_t thread : receiving_) ::syscall(SYS_tgkill, ::getpid(), thread, kWakeSignal);
    }
    pause_for(kWakePauseNs);
  }
}

// Those that are joined may have started others.
void Session::join() {
  for (;;) {
    std::vector<Thread> threads;
    {
      Lock lock(mutex_);
      threads = std::exchange(threads_, {});
    }
    if (threads.empty()) return;
    for (Thread& thread : threads) thread.join();
  }
}

}  // namespace latchkey::mount
