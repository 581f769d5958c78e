#include "mount/fusermount.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <vector>

namespace latchkey::mount {

namespace {

constexpr std::size_t kWordsMax = 200;  // of what it says

struct Ends {
  UniqueFd ours, theirs;
};

// The user's own fusermount3 is as good as another: it has no more rights than he has.
class Child {
 public:
  Child(std::vector<std::string> arguments, const UniqueFd* connection, const UniqueFd* words) {
    std::vector<char*> argv = pointers(arguments);
    std::vector<std::string> extra;
    if (connection != nullptr) extra.push_back("_FUSE_COMMFD=" + std::to_string(connection->get()));
    std::vector<char*> environment = pointers(extra);
    environment.pop_back();
    for (char** one = environ; *one != nullptr; ++one)
      if (std::strncmp(*one, "_FUSE_COMMFD=", 13) != 0) environment.push_back(*one);
    environment.push_back(nullptr);

    posix_spawnattr_t attributes;
    ::posix_spawnattr_init(&attributes);
    sigset_t none;
    ::sigemptyset(&none);
    ::posix_spawnattr_setsigmask(&attributes, &none);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    posix_spawn_file_actions_t files;
    ::posix_spawn_file_actions_init(&files);
    if (connection != nullptr)  // kept open
      ::posix_spawn_file_actions_adddup2(&files, connection->get(), connection->get());
    if (words != nullptr) ::posix_spawn_file_actions_adddup2(&files, words->get(), STDERR_FILENO);
    error_ = ::posix_spawnp(&pid_, argv[0], &files, &attributes, argv.data(), environment.data());
    ::posix_spawn_file_actions_destroy(&files);
    ::posix_spawnattr_destroy(&attributes);
  }

  int error() const { return error_; }  // 0: it runs
  bool succeeds() const {
    if (error_ != 0) return false;
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0)
      if (errno != EINTR) return false;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }

 private:
  static std::vector<char*> pointers(std::vector<std::string>& words) {
    std::vector<char*> list;
    list.reserve(words.size() + 1);
    for (std::string& word : words) list.push_back(word.data());
    list.push_back(nullptr);
    return list;
  }
  pid_t pid_ = 0;
  int error_ = 0;
};

Result<Ends> socket_pair() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return fail_os(Errc::unsupported, errno, "no descriptors for fusermount3");
  return Ends{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

UniqueFd receive(int socket) {
  char byte = 0;
  iovec piece{&byte, 1};
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  const cmsghdr* rights = got > 0 ? CMSG_FIRSTHDR(&header) : nullptr;
  if (rights == nullptr || rights->cmsg_type != SCM_RIGHTS) return {};
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(rights), sizeof fd);
  return UniqueFd(fd);
}

// The last line, without the name of the program.
std::string read_words(int fd) {
  std::string text;
  std::array<char, 512> piece;
  for (;;) {
    const ssize_t got = ::read(fd, piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(piece.data(), static_cast<std::size_t>(got));
  }
  while (text.ends_with('\n')) text.pop_back();
  text.erase(0, text.rfind('\n') + 1);
  if (text.size() > kWordsMax) text.resize(kWordsMax);
  return text;
}

}  // namespace

Result<UniqueFd> mount_by_fusermount(const std::string& directory, const std::string& options,
                                     std::string& said) {
  LK_TRY(Ends connection, socket_pair());
  LK_TRY(Ends words, socket_pair());
  const Child child({"fusermount3", "-o", options, "--", directory}, &connection.theirs,
                    &words.theirs);
  connection.theirs.reset();
  words.theirs.reset();
  if (child.error() != 0) {
    said = "who is not root mounts through fusermount3, which is not there (package fuse3)";
    return fail_os(Errc::unsupported, child.error(), "there is no fusermount3");
  }
  UniqueFd fd = receive(connection.ours.get());
  said = read_words(words.ours.get());
  if (child.succeeds() && fd) return fd;
  if (said.empty()) said = "fusermount3 does not mount it there";
  return fail(Errc::permission, "fusermount3 does not mount it there");
}

bool unmount_by_fusermount(const std::string& directory, const std::string& flags) {
  return Child({"fusermount3", "-u", flags, "--", directory}, nullptr, nullptr).succeeds();
}

}  // namespace latchkey::mount
