// What keeps a file or a place without being a handle of this process.

#include <fcntl.h>
#include <liburing.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <memory>

#include "base/check.h"
#include "tests/mounted/player.h"

namespace latchkey::tests {
namespace {

constexpr const char* kWaiter = "/bin/sleep";

void end_process(pid_t pid) {
  ::kill(pid, SIGKILL);
  LK_CHECK(::waitpid(pid, nullptr, 0) == pid);
}

bool write_file(const char* path, const std::string& text) {
  const mount::UniqueFd fd(::open(path, O_WRONLY | O_CLOEXEC));
  return fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// 0 or an errno, of one that runs by then.
int start_program(const std::string& program, pid_t& pid) {
  std::array<int, 2> ends{};
  LK_CHECK(::pipe2(ends.data(), O_CLOEXEC) == 0);
  const mount::UniqueFd read(ends[0]);
  mount::UniqueFd write(ends[1]);
  pid = ::fork();
  if (pid == 0) {
    LK_CHECK(::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    ::execl(program.c_str(), "waiter", "1000", nullptr);
    const int error = errno;
    (void)!::write(write.get(), &error, sizeof error);
    ::_exit(1);
  }
  write.reset();
  int error = 0;
  if (::read(read.get(), &error, sizeof error) == 0) return 0;
  LK_CHECK(::waitpid(pid, nullptr, 0) == pid);
  return error;
}

}  // namespace

Outcome Player::enter(const Words& words) {
  const int done = ::chdir(path(words.at(2)).c_str());
  if (done == 0) keep_until_end(words.at(1), [] { LK_CHECK(::chdir("/") == 0); });
  return outcome_of_call(done);
}

// The descriptor is closed, the mapping stays.
Outcome Player::map(const Words& words) {
  const mount::UniqueFd fd(open_path(words.at(2), "rw"));
  struct stat facts{};
  if (!fd || ::fstat(fd.get(), &facts) != 0) return outcome_of_call(-1);
  const auto size = static_cast<std::size_t>(facts.st_size);
  void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return outcome_of_call(-1);
  mappings_[words.at(1)] = {at, size};
  keep_until_end(words.at(1), [at, size] { LK_CHECK(::munmap(at, size) == 0); });
  return {"0"};
}

Outcome Player::store(const Words& words) {
  const Mapping& mapping = mappings_.at(words.at(1));
  LK_CHECK(words.at(2).size() <= mapping.size);
  std::memcpy(mapping.at, words[2].data(), words[2].size());
  return outcome_of_call(::msync(mapping.at, mapping.size, MS_SYNC));
}

// One that waits for long.
Outcome Player::copy_program(const Words& words) {
  const mount::UniqueFd from(::open(kWaiter, O_RDONLY | O_CLOEXEC));
  const std::string to = path(words.at(1));
  const mount::UniqueFd into(::open(to.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0755));
  struct stat facts{};
  if (!into || ::fstat(from.get(), &facts) != 0) return outcome_of_call(-1);
  for (off_t left = facts.st_size; left > 0;) {
    const ssize_t sent =
        ::sendfile(into.get(), from.get(), nullptr, static_cast<std::size_t>(left));
    if (sent <= 0) return outcome_of_call(-1);
    left -= sent;
  }
  return {"0"};
}

Outcome Player::execute(const Words& words) {
  pid_t pid = 0;
  const int error = start_program(path(words.at(2)), pid);
  if (error == 0) keep_until_end(words.at(1), [pid] { end_process(pid); });
  return outcome_of_errno(error);
}

Outcome Player::inherit(const Words& words) {
  const mount::UniqueFd fd(open_path(words.at(2), "rw"));
  if (!fd) return outcome_of_call(-1);
  const pid_t child = ::fork();
  if (child == 0) {
    LK_CHECK(::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    for (;;) ::pause();
  }
  keep_until_end(words.at(1), [child] { end_process(child); });
  return {"0"};
}

Outcome Player::send(const Words& words) {
  const mount::UniqueFd fd(open_path(words.at(2), "rw"));
  if (!fd) return outcome_of_call(-1);
  std::array<int, 2> ends{};
  LK_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) == 0);
  LK_CHECK(mount::send_message(ends[0], std::as_bytes(std::span("x", 1)), fd.get(), true));
  keep_until_end(words.at(1), [ends] {
    ::close(ends[0]);
    ::close(ends[1]);
  });
  return {"0"};
}

Outcome Player::watch(const Words& words) {
  const int fd = ::inotify_init1(IN_CLOEXEC);
  LK_CHECK(fd >= 0);
  const int watched = ::inotify_add_watch(fd, path(words.at(2)).c_str(), IN_ALL_EVENTS);
  keep_until_end(words.at(1), [fd] { ::close(fd); });
  return outcome_of_call(watched);
}

Outcome Player::ring(const Words& words) {
  auto ring = std::make_shared<io_uring>();
  const int error = -::io_uring_queue_init(4, ring.get(), 0);
  if (error != 0) return outcome_of_errno(error);
  rings_[words.at(1)] = ring;
  keep_until_end(words.at(1), [ring] { ::io_uring_queue_exit(ring.get()); });
  return {"0"};
}

Outcome Player::register_file(const Words& words) {
  const mount::UniqueFd fd(open_path(words.at(2), "rw"));
  if (!fd) return outcome_of_call(-1);
  const int file = fd.get();
  return outcome_of_errno(-::io_uring_register_files(rings_.at(words.at(1)).get(), &file, 1));
}

Outcome Player::bind(const Words& words) {
  const std::string at = place_ + "/" + words.at(1);
  std::filesystem::create_directory(at);
  const int done = ::mount(path(words.at(2)).c_str(), at.c_str(), nullptr, MS_BIND, nullptr);
  if (done == 0)
    keep_until_end(words.at(1), [at] { LK_CHECK(::umount2(at.c_str(), MNT_DETACH) == 0); });
  return outcome_of_call(done);
}

Outcome Player::remount(const Words& words) {
  const unsigned long read_only = words.at(1) == "ro" ? MS_RDONLY : 0;
  return outcome_of_call(::mount(nullptr, root_.c_str(), nullptr, MS_REMOUNT | read_only, nullptr));
}

Outcome Player::umount(const Words& words) {
  return outcome_of_call(::umount2(root_.c_str(), words.size() > 1 ? MNT_DETACH : 0));
}

// This process is the user 0 of a namespace of its own from now on. There nobody can tell who
// listens on a socket of root's, so no client gives a key to it.
Outcome Player::unshare(const Words&) {
  const uid_t uid = ::getuid();
  const int done = ::unshare(CLONE_NEWUSER);
  if (done == 0) {
    LK_CHECK(write_file("/proc/self/uid_map", "0 " + std::to_string(uid) + " 1"));
    LK_CHECK(::getuid() == 0);
    door_ = KeyDoor::ioctls;
  }
  return outcome_of_call(done);
}

}  // namespace latchkey::tests
