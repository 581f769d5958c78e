#include "mount/session.h"

#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <utility>

#include "base/secret.h"
#include "mount/unnamed.h"

namespace latchkey::mount {
namespace {

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
  if (fuse_session_mount(session_, options_.directory.c_str()) != 0)
    return fail(Errc::unavailable, said_or("the kernel does not mount it there"));
  fuse_set_log_func(nullptr);
  mounted_ = true;
  return {};
}

Result<void> Session::serve() {
  Lock lock(mutex_);
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

void Session::begin_request() {
  Lock lock(mutex_);
  if (--idle_ == 0) start_thread();
}

void Session::end_request() {
  Lock lock(mutex_);
  ++idle_;
}

void Session::run() {
  fuse_buf buffer{};  // its memory is libfuse's, made at the first request
  while (fuse_session_exited(session_) == 0) {
    const int got = fuse_session_receive_buf(session_, &buffer);
    if (got == -EINTR || got == -EAGAIN) continue;
    if (got <= 0) break;
    begin_request();
    const MutableBytes request(static_cast<std::byte*>(buffer.mem), static_cast<std::size_t>(got));
    if (!answer_unnamed(request)) fuse_session_process_buf(session_, &buffer);
    wipe(request);
    end_request();
  }
  std::free(buffer.mem);
  const u64 one = 1;
  (void)!::write(ended_fd_, &one, sizeof one);
}

bool Session::answer_unnamed(Bytes request) {
  return mount::answer_unnamed(file_system_, fuse_session_fd(session_), request);
}

void Session::unmount() {
  if (!std::exchange(mounted_, false)) return;
  // Where the kernel has let go, what is there now may be somebody else's.
  struct stat root{};
  const bool dead = ::stat(options_.directory.c_str(), &root) != 0 && errno == ENOTCONN;
  if (fuse_session_exited(session_) != 0 && !dead) return;
  if (::umount2(options_.directory.c_str(), 0) == 0 || errno == EINVAL) return;
  // With programs inside the connection is cut, which root may do.
  if (::umount2(options_.directory.c_str(), MNT_FORCE | MNT_DETACH) == 0) return;
  fuse_session_unmount(session_);
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
