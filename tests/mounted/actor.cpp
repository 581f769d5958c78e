#include "tests/mounted/actor.h"

#include <grp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "base/check.h"

namespace latchkey::tests {
namespace {

void become(u32 uid) {
  if (uid != 0)
    LK_CHECK(::setgroups(0, nullptr) == 0 && ::setresgid(uid, uid, uid) == 0 &&
             ::setresuid(uid, uid, uid) == 0);
  // After another uid /proc/self would be root's.
  LK_CHECK(::prctl(PR_SET_DUMPABLE, 1) == 0 && ::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
  ::umask(0);
}

void send_text(int socket, const std::string& text) {
  LK_CHECK(::send(socket, text.data(), text.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(text.size()));
}

// Empty: the other end is gone.
std::string receive_text(int socket) {
  std::array<char, 8192> text;
  const ssize_t got = ::recv(socket, text.data(), text.size(), 0);
  return got > 0 ? std::string(text.data(), static_cast<std::size_t>(got)) : "";
}

[[noreturn]] void serve(int socket, const Actor::Work& work) {
  for (;;) {
    const std::string operation = receive_text(socket);
    if (operation.empty()) ::_exit(0);
    const Outcome outcome = work(operation);
    send_text(socket, outcome.result + "\t" + outcome.detail);
  }
}

}  // namespace

Actor::Actor(u32 uid, const std::function<Work()>& begin) {
  std::array<int, 2> ends{};
  LK_CHECK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) == 0);
  socket_.reset(ends[0]);
  const mount::UniqueFd theirs(ends[1]);
  pid_ = ::fork();
  LK_CHECK(pid_ >= 0);
  if (pid_ == 0) {
    become(uid);
    serve(theirs.get(), begin());
  }
}

Actor::~Actor() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Actor::tell(const std::string& operation) { send_text(socket_.get(), operation); }

Outcome Actor::answer() {
  const std::string text = receive_text(socket_.get());
  const std::size_t tab = text.find('\t');
  LK_CHECK_MSG(tab != std::string::npos, "an actor ended");
  return {text.substr(0, tab), text.substr(tab + 1)};
}

}  // namespace latchkey::tests
