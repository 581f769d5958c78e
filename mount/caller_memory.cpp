#include "mount/caller_memory.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <optional>
#include <string>
#include <string_view>

#include "base/wait.h"

namespace latchkey::mount {

namespace {

constexpr u64 kPage = 4096;
// A thread that has sent its request may still be on its way to sleep.
constexpr int kLooksMax = 5000;
constexpr u64 kPauseNs = 1'000'000;

// Numbers of processes mean in /proc what they mean to system calls.
bool proc_is_ours() {
  std::array<char, 32> target{};
  const ssize_t size = ::readlink("/proc/self", target.data(), target.size());
  return size > 0 && std::string_view(target.data(), static_cast<std::size_t>(size)) ==
                         std::to_string(::getpid());
}

// A line of /proc/N/syscall: the number and six arguments, in the base that each is written in.
std::string_view next_word(std::string_view& line) {
  const std::string_view word = line.substr(0, line.find(' '));
  line.remove_prefix(std::min(word.size() + 1, line.size()));
  return word;
}

std::optional<u64> number_in(std::string_view word) {
  const bool hex = word.starts_with("0x");
  if (hex) word.remove_prefix(2);
  u64 value = 0;
  const auto [end, error] =
      std::from_chars(word.data(), word.data() + word.size(), value, hex ? 16 : 10);
  if (error != std::errc{} || end != word.data() + word.size()) return std::nullopt;
  return value;
}

bool is_ioctl(std::string_view line, u32 command, u64 argument) {
  if (number_in(next_word(line)) != SYS_ioctl) return false;
  next_word(line);                                // the descriptor
  const auto given = number_in(next_word(line));  // of a long, of which the kernel takes 32 bits
  return given && static_cast<u32>(*given) == command && number_in(next_word(line)) == argument;
}

// Cut at pages, as what ends in the middle of a piece may be moved not at all.
struct Pieces {
  Pieces(u64 address, std::size_t size) {
    for (iovec& piece : list) {
      if (size == 0 || address > ~u64{0} - size) return;
      const std::size_t here = std::min<u64>(size, kPage - address % kPage);
      piece = {reinterpret_cast<void*>(address), here};
      ++count;
      address += here;
      size -= here;
    }
  }
  std::array<iovec, 2> list{};
  unsigned long count = 0;
};

}  // namespace

Result<CallerMemory> CallerMemory::of(u32 thread, u32 command, u64 argument) {
  CallerMemory memory(thread, command, argument);
  const std::string path = "/proc/" + std::to_string(thread);
  memory.folder_.reset(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (thread == 0 || !memory.folder_ || !proc_is_ours() || !memory.waits())
    return fail(Errc::unsupported, "who calls is not seen to wait for this");
  return memory;
}

bool CallerMemory::waits() const {
  for (int look = 0; look < kLooksMax; ++look) {
    const UniqueFd file(::openat(folder_.get(), "syscall", O_RDONLY | O_CLOEXEC));
    std::array<char, 256> text{};
    const ssize_t size = file ? ::read(file.get(), text.data(), text.size()) : -1;
    if (size <= 0) return false;
    const std::string_view line(text.data(), static_cast<std::size_t>(size));
    if (!line.starts_with("running")) return is_ioctl(line, command_, argument_);
    pause_for(kPauseNs);
  }
  return false;
}

Result<std::size_t> CallerMemory::done(long moved, int error) const {
  if (moved < 0 && error != EFAULT)
    return fail_os(Errc::unsupported, error, "the caller's memory may not be looked at");
  if (!waits()) return fail(Errc::unsupported, "who called has gone");
  return moved < 0 ? 0 : static_cast<std::size_t>(moved);
}

Result<std::size_t> CallerMemory::read(u64 address, MutableBytes into) const {
  const iovec ours{into.data(), into.size()};
  const Pieces theirs(address, into.size());
  const ssize_t moved = ::process_vm_readv(static_cast<pid_t>(thread_), &ours, 1,
                                           theirs.list.data(), theirs.count, 0);
  return done(moved, errno);
}

Result<std::size_t> CallerMemory::write(u64 address, Bytes from) const {
  const iovec ours{const_cast<std::byte*>(from.data()), from.size()};
  const Pieces theirs(address, from.size());
  const ssize_t moved = ::process_vm_writev(static_cast<pid_t>(thread_), &ours, 1,
                                            theirs.list.data(), theirs.count, 0);
  return done(moved, errno);
}

}  // namespace latchkey::mount
