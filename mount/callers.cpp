#include "mount/callers.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "mount/unique_fd.h"

namespace latchkey::mount {
namespace {

constexpr u64 kExiting = 0x4;  // PF_EXITING of the kernel's include/linux/sched.h
constexpr u32 kFlags = 9, kPending = 31;

template <class T>
T to_number(std::string_view text) {
  T number{};
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

// Of one that merely cannot be looked at (no descriptor, no permission) this is not so.
bool is_gone(pid_t process, pid_t thread) {
  return ::syscall(SYS_tgkill, process, thread, 0) != 0 && errno == ESRCH;
}

// A fatal signal is made a SIGKILL of each thread (kernel/signal.c, complete_signal).
bool thread_is_ending(pid_t process, pid_t thread) {
  const std::string flags = stat_field(process, thread, kFlags);
  if (flags.empty()) return is_gone(process, thread);
  if ((to_number<u64>(flags) & kExiting) != 0) return true;
  const auto pending = to_number<u64>(stat_field(process, thread, kPending));
  return (pending & u64{1} << (SIGKILL - 1)) != 0;
}

}  // namespace

std::string stat_field(pid_t process, pid_t thread, u32 number) {
  std::array<char, 64> path{};
  fmt::format_to_n(path.data(), path.size() - 1, "/proc/{}/task/{}/stat", process, thread);
  const UniqueFd file(::open(path.data(), O_RDONLY | O_CLOEXEC));
  std::array<char, 1024> text;
  const ssize_t got = file ? ::read(file.get(), text.data(), text.size()) : 0;
  std::string_view rest(text.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  const std::size_t command_end = rest.rfind(") ");
  if (command_end == std::string_view::npos) return {};
  rest.remove_prefix(command_end + 2);
  for (; number > 3; --number) {
    const std::size_t space = rest.find(' ');
    if (space == std::string_view::npos) return {};
    rest.remove_prefix(space + 1);
  }
  return std::string(rest.substr(0, rest.find(' ')));
}

pid_t process_of(pid_t thread) {
  constexpr std::string_view kGroup = "Tgid:\t";
  std::ifstream file(fmt::format("/proc/{}/status", thread));
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(kGroup)) return to_number<pid_t>(line.substr(kGroup.size()));
  return 0;
}

bool is_ending(pid_t process) {
  std::error_code error;
  std::filesystem::directory_iterator at(fmt::format("/proc/{}/task", process), error);
  for (; !error && at != std::filesystem::directory_iterator(); at.increment(error)) {
    const auto thread = to_number<pid_t>(at->path().filename().string());
    if (!thread_is_ending(process, thread)) return false;
  }
  return !error || is_gone(process, process);
}

}  // namespace latchkey::mount
