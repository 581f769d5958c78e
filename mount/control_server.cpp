#include "mount/control_server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/no_memory.h"
#include "mount/control_key.h"

namespace latchkey::mount {

namespace {

constexpr u64 kListenNumber = 0, kWakeNumber = 1;
constexpr u32 kAcceptsAtOnce = 64;
constexpr u32 kClosingMax = 4;  // foreign descriptors of one user

ControlOptions bounded(ControlOptions options) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0)  // the store's own descriptors come first
    options.connections_max =
        static_cast<u32>(std::min<u64>(options.connections_max, limit.rlim_cur / 4 * 3));
  return options;
}

struct Received {
  bool message = false;
  bool gone = false;  // the other end; neither: there is nothing yet
  std::size_t size = 0;
  bool brings = false;  // descriptors that were left behind
  UniqueFd fd;
};

// One message. Only with `takes` a descriptor of it becomes one of ours, and only one.
Received receive_message(int socket, MutableBytes into, int flags, bool takes) {
  iovec piece{into.data(), into.size()};
  msghdr header{};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
  if (takes) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_LEN(sizeof(int));
  }
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &header, flags | MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  Received received;
  received.message = got > 0;
  received.gone = got == 0 || (got < 0 && errno != EAGAIN);
  if (!received.message) return received;
  received.size = static_cast<std::size_t>(got);
  received.brings = (header.msg_flags & MSG_CTRUNC) != 0;
  const cmsghdr* first = takes ? CMSG_FIRSTHDR(&header) : nullptr;
  if (first != nullptr && first->cmsg_level == SOL_SOCKET && first->cmsg_type == SCM_RIGHTS &&
      first->cmsg_len == CMSG_LEN(sizeof(int))) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(first), sizeof(int));
    received.fd.reset(fd);
  }
  return received;
}

}  // namespace

ControlServer::ControlServer(ListeningSocket&& socket, u64 device, KeyService& service, Env& env,
                             const ControlOptions& options)
    : socket_(std::move(socket)),
      device_(device),
      env_(env),
      options_(bounded(options)),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      spare_(::open("/dev/null", O_RDONLY | O_CLOEXEC)),
      jobs_(service, env, options.jobs, [this] { (void)::eventfd_write(wake_.get(), 1); }) {}

Result<std::unique_ptr<ControlServer>> ControlServer::start(ListeningSocket&& socket, u64 device,
                                                            KeyService& service, Env& env,
                                                            const ControlOptions& options) {
  std::unique_ptr<ControlServer> server(
      new ControlServer(std::move(socket), device, service, env, options));
  LK_TRYV(server->prepare());
  server->thread_.emplace([raw = server.get()] { raw->loop(); });
  return server;
}

Result<void> ControlServer::prepare() {
  if (!epoll_ || !wake_) return fail_os(Errc::no_memory, errno, "no descriptors for clients");
  for (const auto& [fd, number] :
       {std::pair{socket_.fd(), kListenNumber}, std::pair{wake_.get(), kWakeNumber}}) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = number;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
      return fail_os(Errc::no_memory, errno, "clients cannot be waited for");
  }
  return {};
}

ControlServer::~ControlServer() { stop(); }

void ControlServer::stop() {
  if (!stopping_.exchange(true) && thread_) {
    (void)::eventfd_write(wake_.get(), 1);
    thread_->join();
    thread_.reset();
  }
  jobs_.stop();
  connections_.clear();
  waiting_.clear();
}

ControlFacts ControlServer::facts() const {
  return {open_.load(), accepted_.load(), turned_away_.load(), requests_.load(), refused_.load()};
}

void ControlServer::loop() {
  std::array<epoll_event, 64> events;
  while (!stopping_.load()) {
    const int count =
        ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), pause_ms());
    for (int i = 0; i < count; ++i) {
      const u64 number = events[static_cast<std::size_t>(i)].data.u64;
      const u32 what = events[static_cast<std::size_t>(i)].events;
      // Where memory ends, one client is lost and not the daemon.
      const auto handled = or_no_memory([&] {
        if (number == kListenNumber) {
          accept_some();
        } else if (number == kWakeNumber) {
          eventfd_t ignored = 0;
          (void)::eventfd_read(wake_.get(), &ignored);
        } else {
          handle(number, what);
        }
      });
      if (!handled && number > kWakeNumber) close(number);
    }
    (void)or_no_memory([&] { take_back(); });
    (void)or_no_memory([&] { look_at_waiting(); });
    close_slow();
  }
}

// Until the next look at a removal that waits, or at who does not take his answers.
int ControlServer::pause_ms() const {
  u64 next = kForever;
  for (const auto& job : waiting_) next = std::min(next, job->look_ns);
  for (const u64 number : sending_)
    next = std::min(next, connections_.at(number).moved_ns + options_.unsent_ns_max);
  if (next == kForever) return -1;
  const u64 now = env_.monotonic_ns();
  return next <= now ? 0 : static_cast<int>(std::min<u64>((next - now) / 1'000'000 + 1, 60'000));
}

// --- who comes and goes --------------------------------------------------------------------------

bool ControlServer::has_place(const Peer& peer) {
  const u64 open = connections_.size();
  if (peer.uid == 0) return open < options_.connections_max;
  if (open + options_.connections_of_root >= options_.connections_max) return false;
  const auto user = users_.find(peer.uid);
  return user == users_.end() || user->second.connections < options_.connections_per_user;
}

void ControlServer::accept_some() {
  for (u32 i = 0; i < kAcceptsAtOnce; ++i) {
    UniqueFd fd(::accept4(socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd && errno == ECONNABORTED) continue;
    if (!fd && (errno == EMFILE || errno == ENFILE)) return turn_one_away();
    if (!fd) return;
    const auto peer = peer_of(fd.get());
    if (!peer || !has_place(*peer)) {
      turned_away_.fetch_add(1);
      continue;
    }
    const u64 number = next_number_++;
    Connection& connection = connections_[number];
    connection.fd = std::move(fd);
    connection.peer = *peer;
    ++users_[peer->uid].connections;
    accepted_.fetch_add(1);
    open_.store(connections_.size());
    epoll_event event{};
    event.events = connection.interest = EPOLLIN | EPOLLRDHUP;
    event.data.u64 = number;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection.fd.get(), &event) != 0) close(number);
  }
}

// No descriptor is left to accept with: who waits is let in by the spare one, and out again, or the
// loop would be told of him for ever.
void ControlServer::turn_one_away() {
  spare_.reset();
  UniqueFd(::accept4(socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC)).reset();
  spare_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  turned_away_.fetch_add(1);
}

void ControlServer::close(u64 number) {
  const auto at = connections_.find(number);
  if (at == connections_.end()) return;
  Connection& connection = at->second;
  const u32 uid = connection.peer.uid;
  User& user = users_[uid];
  --user.connections;
  user.unsent_bytes -= connection.unsent_bytes;
  user.requests -= static_cast<u32>(std::ranges::count(connection.last, true));
  user.held_back.erase(number);
  sending_.erase(number);
  // Waiting is all that is left of these; the removal's claim is gone already, or was never
  // touched.
  user.requests -= static_cast<u32>(std::erase_if(
      waiting_, [&](const std::unique_ptr<Job>& job) { return job->connection == number; }));
  connections_.erase(at);
  open_.store(connections_.size());
  let_in_again(uid);
}

// A user without anything here is forgotten; else what he was held back from goes on.
void ControlServer::let_in_again(u32 uid) {
  const auto at = users_.find(uid);
  if (at == users_.end()) return;
  const std::set<u64> held_back = at->second.held_back;
  for (const u64 number : held_back) set_interest(number, connections_.at(number));
  if (at->second.connections == 0 && at->second.requests == 0) users_.erase(at);
}

bool ControlServer::may_read(const Connection& connection) const {
  if (connection.closing || connection.requests >= options_.requests_per_connection) return false;
  if (connection.peer.uid == 0) return true;
  const User& user = users_.at(connection.peer.uid);
  return user.requests < options_.requests_per_user &&
         user.unsent_bytes < options_.unsent_bytes_per_user;
}

void ControlServer::set_interest(u64 number, Connection& connection) {
  const bool reads = may_read(connection);
  u32 interest = EPOLLRDHUP;
  if (reads) interest |= EPOLLIN;
  if (!connection.unsent.empty()) interest |= EPOLLOUT;
  User& user = users_.at(connection.peer.uid);
  if (reads)
    user.held_back.erase(number);
  else
    user.held_back.insert(number);
  if (interest == connection.interest) return;
  connection.interest = interest;
  epoll_event event{};
  event.events = interest;
  event.data.u64 = number;
  LK_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd.get(), &event) == 0);
}

// --- requests ------------------------------------------------------------------------------------

void ControlServer::handle(u64 number, u32 events) {
  const auto at = connections_.find(number);
  if (at == connections_.end()) return;  // closed by what was handled before it
  if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0) return close(number);
  if ((events & EPOLLOUT) != 0) send_some(number, at->second);
  if ((events & EPOLLIN) == 0) return;
  const auto still = connections_.find(number);
  if (still != connections_.end() && may_read(still->second)) read_one(number, still->second);
}

// The message is looked at before it is taken, so that a descriptor that does not belong to it
// never becomes one of ours.
void ControlServer::read_one(u64 number, Connection& connection) {
  std::array<std::byte, kRequestBytesMax> buffer;
  const Received seen = receive_message(connection.fd.get(), buffer, MSG_PEEK, false);
  if (seen.gone) return close(number);
  if (!seen.message) return;
  requests_.fetch_add(1);
  const Bytes message = Bytes(buffer).first(std::min(seen.size, buffer.size()));
  Result<Request> request = seen.size > buffer.size()
                                ? fail(Errc::malformed, "the message is too long")
                                : decode_request(message);
  if (request && seen.brings != wants_descriptor(request->verb))
    request = seen.brings ? fail(Errc::malformed, "a descriptor where none belongs")
                          : fail(Errc::malformed, "a descriptor is missing");
  const u32 uid = connection.peer.uid;
  if (request && seen.brings && closer_.pending(uid) >= kClosingMax)
    request = fail(Errc::busy, "descriptors of yours cannot be closed");
  if (!request) {
    (void)receive_message(connection.fd.get(), {}, 0, false);
    return refuse(number, connection, sequence_of(message), request.error());
  }
  receive(number, connection, *request, seen.size);
}

void ControlServer::receive(u64 number, Connection& connection, const Request& request,
                            std::size_t size) {
  std::array<std::byte, kRequestBytesMax> buffer;
  const bool takes = wants_descriptor(request.verb);
  Received received =
      receive_message(connection.fd.get(), MutableBytes(buffer).first(size), 0, takes);
  auto job = std::make_unique<Job>();
  job->connection = number;
  job->peer = connection.peer;
  job->request = request;
  job->begun_ns = env_.monotonic_ns();
  if (takes) {
    Error refusal{Errc::malformed, "several descriptors, or none"};
    const bool one = received.message && !received.brings && received.fd;
    if (!one && received.fd) closer_.close(connection.peer.uid, std::move(received.fd));
    if (!one || !take_descriptor(*job, std::move(received.fd), refusal))
      return refuse(number, connection, request.sequence, refusal);
  }
  begin(number, connection, std::move(job));
}

bool ControlServer::take_descriptor(Job& job, UniqueFd fd, Error& refusal) {
  bool recognised = false;
  bool good = false;
  if (job.request.verb == Verb::key_add) {
    TakenKey taken = take_key(fd.get(), job.request.key_bytes);
    recognised = taken.recognised;
    good = taken.secret.has_value();
    if (good)
      job.key = std::move(*taken.secret);
    else
      refusal = taken.secret.error();
  } else {
    struct statx facts{};
    refusal = Error{Errc::cross_key, "it is not in this store"};
    if (::statx(fd.get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
                STATX_TYPE | STATX_INO, &facts) == 0)
      good = makedev(facts.stx_dev_major, facts.stx_dev_minor) == device_;
    job.st_ino = facts.stx_ino;
    // A directory's close asks nobody; a file's is our own mount's, which may wait for a key.
    recognised = good && S_ISDIR(facts.stx_mode);
  }
  // Who only has the place of a file has nothing to be told of its close.
  if ((::fcntl(fd.get(), F_GETFL) & O_PATH) != 0) recognised = true;
  if (!recognised) closer_.close(job.peer.uid, std::move(fd));
  return good;
}

void ControlServer::begin(u64 number, Connection& connection, std::unique_ptr<Job> job) {
  ++connection.requests;
  ++users_.at(connection.peer.uid).requests;
  set_interest(number, connection);
  jobs_.submit(std::move(job));
}

// Told, if it can be, and closed.
void ControlServer::refuse(u64 number, Connection& connection, u32 sequence, const Error& error) {
  refused_.fetch_add(1);
  Done done;
  done.error = error.code;
  done.os_errno = error.os_errno;
  done.sentence = error.what;
  ++connection.requests;
  ++users_.at(connection.peer.uid).requests;
  connection.closing = true;
  answer(number, connection, AnswerWriter(sequence, 0).finish(done));
}

// --- answers -------------------------------------------------------------------------------------

void ControlServer::take_back() {
  for (auto& job : jobs_.take_back()) {
    const u64 number = job->connection;
    const u32 uid = job->peer.uid;
    const auto at = connections_.find(number);
    if (at == connections_.end()) {
      --users_.at(uid).requests;
      let_in_again(uid);
    } else if (job->waiting) {
      waiting_.push_back(std::move(job));
    } else {
      answer(number, at->second, std::move(job->answer));
    }
  }
}

void ControlServer::look_at_waiting() {
  if (waiting_.empty()) return;
  const u64 now = env_.monotonic_ns();
  std::erase_if(waiting_, [&](std::unique_ptr<Job>& job) {
    if (job->look_ns > now) return false;
    jobs_.submit(std::move(job));
    return true;
  });
}

void ControlServer::answer(u64 number, Connection& connection, std::vector<Message>&& messages) {
  User& user = users_.at(connection.peer.uid);
  if (connection.unsent.empty()) connection.moved_ns = env_.monotonic_ns();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    connection.unsent_bytes += messages[i].size();
    user.unsent_bytes += messages[i].size();
    connection.unsent.push_back(std::move(messages[i]));
    connection.last.push_back(i + 1 == messages.size());
  }
  sending_.insert(number);
  send_some(number, connection);
}

void ControlServer::send_some(u64 number, Connection& connection) {
  const u32 uid = connection.peer.uid;
  User& user = users_.at(uid);
  while (!connection.unsent.empty()) {
    const auto sent = send_message(connection.fd.get(), connection.unsent.front(), -1, false);
    if (!sent) return close(number);
    if (!*sent) break;
    const u64 bytes = connection.unsent.front().size();
    connection.unsent_bytes -= bytes;
    user.unsent_bytes -= bytes;
    connection.moved_ns = env_.monotonic_ns();
    if (connection.last.front()) {
      --connection.requests;
      --user.requests;
    }
    connection.unsent.pop_front();
    connection.last.pop_front();
  }
  if (connection.unsent.empty()) {
    sending_.erase(number);
    if (connection.closing) return close(number);
  }
  set_interest(number, connection);
  let_in_again(uid);
}

void ControlServer::close_slow() {
  if (sending_.empty()) return;
  const u64 now = env_.monotonic_ns();
  std::vector<u64> slow;
  for (const u64 number : sending_)
    if (now - connections_.at(number).moved_ns >= options_.unsent_ns_max) slow.push_back(number);
  for (const u64 number : slow) close(number);
}

}  // namespace latchkey::mount
