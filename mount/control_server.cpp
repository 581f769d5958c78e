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
#include <iterator>

#include "base/check.h"
#include "base/no_memory.h"
#include "mount/control_key.h"
#include "mount/control_receive.h"

namespace latchkey::mount {

namespace {

constexpr u64 kListenNumber = 0, kWakeNumber = 1;
constexpr u64 kNoClient = 0;  // of a job whose deadline is kept for nobody who listens
constexpr u32 kAcceptsAtOnce = 64;
constexpr u32 kClosingMax = 4;              // of one user, that he brought
constexpr u64 kStoresOwn = 128;             // descriptors: the image, its rings, looks at /proc
constexpr u64 kListenPauseNs = 50'000'000;  // where no descriptor or memory is left for a client
constexpr u32 kNobody = ~u32{0};            // a uid that there is not

u64 descriptors_max() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 1024;
}

ControlOptions bounded(ControlOptions options) {  // the store's own descriptors come first
  options.connections_max =
      static_cast<u32>(std::min<u64>(options.connections_max, descriptors_max() / 4 * 3));
  return options;
}

}  // namespace

ControlServer::ControlServer(ListeningSocket&& socket, u64 device, KeyService& service, Env& env,
                             const ControlOptions& options)
    : socket_(std::move(socket)),
      device_(device),
      env_(env),
      options_(bounded(options)),
      descriptors_max_(descriptors_max()),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
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
      if (!handled && number == kListenNumber) pause_listening();
      if (!handled && number > kWakeNumber) close(number);
    }
    listen_again();
    take_back();
    look_at_waiting();
    (void)or_no_memory([&] { close_slow(); });
  }
}

// Until the next look at a removal that waits, or at who does not take his answers.
int ControlServer::pause_ms() const {
  u64 next = listen_at_ns_;
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

// How many more may become ours.
u64 ControlServer::descriptors_left() const {
  const u64 used = connections_.size() + leaving_.pending() + brought_.pending() +
                   std::min(kStoresOwn, descriptors_max_ / 4);
  return used < descriptors_max_ ? descriptors_max_ - used : 0;
}

// What a client has sent before he is let in goes with his socket: also that of one who is turned
// away is closed by somebody else.
void ControlServer::accept_some() {
  for (u32 i = 0; i < kAcceptsAtOnce; ++i) {
    if (descriptors_left() == 0) return pause_listening();
    FdCloser::Bag socket = leaving_.bag(kNobody, 1);
    UniqueFd fd(::accept4(socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd && errno == ECONNABORTED) continue;
    if (!fd && errno == EAGAIN) return;
    if (!fd) return pause_listening();
    const auto peer = peer_of(fd.get());
    socket.add(std::move(fd));
    if (peer) socket.belongs_to(peer->uid);
    if (!peer || !has_place(*peer)) {
      turned_away_.fetch_add(1);
      hang_up(socket);
      continue;
    }
    let_in(*peer, std::move(socket));
  }
}

void ControlServer::let_in(const Peer& peer, FdCloser::Bag&& socket) {
  const u64 number = next_number_++;
  User& user = users_[peer.uid];
  Connection& connection = connections_[number];
  connection.socket = std::move(socket);
  connection.peer = peer;
  ++user.connections;
  accepted_.fetch_add(1);
  open_.store(connections_.size());
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = number;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection.fd(), &event) != 0) return close(number);
  connection.interest = event.events;
}

// Until then clients wait in the kernel's queue: the loop is not told of them for ever.
void ControlServer::pause_listening() {
  listen_at_ns_ = env_.monotonic_ns() + kListenPauseNs;
  listen_to_new(0);
}

void ControlServer::listen_again() {
  if (listen_at_ns_ == kForever || env_.monotonic_ns() < listen_at_ns_) return;
  listen_at_ns_ = kForever;
  listen_to_new(EPOLLIN);
}

void ControlServer::listen_to_new(u32 events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = kListenNumber;
  LK_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, socket_.fd(), &event) == 0);
}

// The other end knows at once, and can send nothing any more; the rest may take as long as what it
// has sent takes to be closed.
void ControlServer::hang_up(FdCloser::Bag& socket) {
  ::shutdown(socket.fds().front(), SHUT_RDWR);
  socket.hand_over();
}

void ControlServer::close(u64 number) {
  const auto at = connections_.find(number);
  if (at == connections_.end()) return;
  Connection& connection = at->second;
  const u32 uid = connection.peer.uid;
  User& user = users_.at(uid);
  --user.connections;
  user.unsent_bytes -= connection.unsent_bytes;
  user.held_back.erase(number);
  sending_.erase(number);
  user.requests -= connection.requests - connection.at_work;  // those come back
  // Waiting is all that is left of these; the removal's claim is gone already, or was never
  // touched.
  std::erase_if(waiting_, [&](const std::unique_ptr<Job>& job) {
    return job->connection == number && !job->has_deadline();
  });
  for (const auto& job : waiting_) {
    if (job->connection != number) continue;
    job->connection = kNoClient;
    ++user.requests;
  }
  if (connection.interest != 0)
    LK_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection.fd(), nullptr) == 0);
  hang_up(connection.socket);
  connections_.erase(at);
  open_.store(connections_.size());
  let_in_again(uid);
}

// A user without anything here is forgotten; else what he was held back from goes on.
void ControlServer::let_in_again(u32 uid) {
  const auto at = users_.find(uid);
  if (at == users_.end()) return;
  std::set<u64>& held_back = at->second.held_back;
  for (auto number = held_back.begin(); number != held_back.end();) {
    Connection& connection = connections_.at(*number);
    const bool reads = may_read(connection);
    listen_to(*number, connection, reads);
    number = reads ? held_back.erase(number) : std::next(number);
  }
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
  User& user = users_.at(connection.peer.uid);
  if (reads)
    user.held_back.erase(number);
  else
    user.held_back.insert(number);
  listen_to(number, connection, reads);
}

void ControlServer::listen_to(u64 number, Connection& connection, bool reads) {
  u32 interest = EPOLLRDHUP;
  if (reads) interest |= EPOLLIN;
  if (!connection.unsent.empty()) interest |= EPOLLOUT;
  if (interest == connection.interest) return;
  connection.interest = interest;
  epoll_event event{};
  event.events = interest;
  event.data.u64 = number;
  LK_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd(), &event) == 0);
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

// The message is looked at before it is taken: whether it may be, and whether there is room for
// what it brings.
void ControlServer::read_one(u64 number, Connection& connection) {
  std::array<std::byte, kRequestBytesMax> buffer;
  const Received seen = look_at_message(connection.fd(), buffer);
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
  const u32 sequence = sequence_of(message);
  FdCloser::Bag bag;
  if (seen.brings) {
    // What stays in the queue goes with the connection.
    const u64 room = std::min<u64>(descriptors_left(), kDescriptorsMax);
    connection.unread = room == 0 || brought_.pending(connection.peer.uid) >= kClosingMax;
    if (connection.unread)
      return refuse(number, connection, sequence,
                    Error{Errc::busy, "descriptors of yours cannot be closed"});
    bag = brought_.bag(connection.peer.uid, static_cast<u32>(room));
    const Received taken = take_message(connection.fd(), buffer, bag);
    if (request && (taken.brings || bag.fds().size() != 1))
      request = fail(Errc::malformed, "several descriptors, or none");
  } else {
    (void)take_message(connection.fd(), buffer);
  }
  if (!request) return refuse(number, connection, sequence, request.error());
  take(number, connection, *request, bag);
}

void ControlServer::take(u64 number, Connection& connection, const Request& request,
                         FdCloser::Bag& bag) {
  JobList list;
  Job* job = list.emplace_back(std::make_unique<Job>()).get();
  job->connection = number;
  job->peer = connection.peer;
  job->request = request;
  job->begun_ns = env_.monotonic_ns();
  job->counted = request.removal.wait && job->has_deadline();
  Error refusal{Errc::malformed, ""};
  if (!bag.fds().empty() && !take_descriptor(*job, bag, refusal))
    return refuse(number, connection, request.sequence, refusal);
  begin(number, connection, list);
}

bool ControlServer::take_descriptor(Job& job, FdCloser::Bag& bag, Error& refusal) {
  const int fd = bag.fds().front();
  bool recognised = false;
  bool good = false;
  if (job.request.verb == Verb::key_add) {
    TakenKey taken = take_key(fd, job.request.key_bytes);
    recognised = taken.recognised;
    good = taken.secret.has_value();
    if (good)
      job.key = std::move(*taken.secret);
    else
      refusal = taken.secret.error();
  } else {
    struct statx facts{};
    refusal = Error{Errc::cross_key, "it is not in this store"};
    if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
                STATX_TYPE | STATX_INO, &facts) == 0)
      good = makedev(facts.stx_dev_major, facts.stx_dev_minor) == device_;
    job.st_ino = facts.stx_ino;
    // A directory's close asks nobody; a file's is our own mount's, which may wait for a key.
    recognised = good && S_ISDIR(facts.stx_mode);
  }
  // Who only has the place of a file has nothing to be told of its close.
  if ((::fcntl(fd, F_GETFL) & O_PATH) != 0) recognised = true;
  if (recognised) bag.close_here();
  return good;
}

void ControlServer::begin(u64 number, Connection& connection, JobList& job) {
  const bool counted = job.front()->counted;
  jobs_.submit(job);
  if (counted) ++deadlines_;
  ++connection.requests;
  ++connection.at_work;
  ++users_.at(connection.peer.uid).requests;
  set_interest(number, connection);
}

// Told, if it can be, and closed.
void ControlServer::refuse(u64 number, Connection& connection, u32 sequence, const Error& error) {
  refused_.fetch_add(1);
  Done done;
  done.error = error.code;
  done.os_errno = error.os_errno;
  done.sentence = error.what;
  auto messages = AnswerWriter(sequence, 0).finish(done);
  ++connection.requests;
  ++users_.at(connection.peer.uid).requests;
  connection.closing = true;
  answer(number, connection, std::move(messages));
}

// --- answers -------------------------------------------------------------------------------------

void ControlServer::take_back() {
  JobList back = jobs_.take_back();
  while (!back.empty()) {
    JobList one;
    one.splice(one.begin(), back, back.begin());
    take_one_back(one);
  }
}

// Where memory ends, its client is lost, and no other.
void ControlServer::take_one_back(JobList& list) {
  Job& job = *list.front();
  const u64 number = job.connection;
  const u32 uid = job.peer.uid;
  if (job.added) forget_deadlines(*job.added);
  if (!connections_.contains(number) && is_forgotten(job)) job.waiting = false;
  auto messages = std::exchange(job.answer, {});
  const bool unanswered = !job.waiting && messages.empty();
  const auto at = connections_.find(number);
  const bool connected = at != connections_.end();
  const bool goes_on = job.waiting && (job.has_deadline() || connected);
  if (connected) --at->second.at_work;
  if (goes_on && (!connected || !messages.empty())) {
    if (connected) ++users_.at(uid).requests;  // beside the one that is answered
    job.connection = kNoClient;
  }
  if (goes_on)
    waiting_.splice(waiting_.end(), list);
  else
    uncount(job);
  if (!connected) {
    if (!goes_on) --users_.at(uid).requests;
    return let_in_again(uid);
  }
  const auto answered = or_no_memory([&] {
    if (!messages.empty()) answer(number, at->second, std::move(messages));
  });
  if (!answered || unanswered) close(number);
}

// A removal that only tries again and again has left no mark on the key that an add would undo.
void ControlServer::forget_deadlines(const crypto::KeyId& key) {
  if (deadlines_ == 0) return;
  (void)or_no_memory([&] { added_[key.bytes] = env_.monotonic_ns(); });
  for (auto job = waiting_.begin(); job != waiting_.end();) {
    const auto next = std::next(job);
    if ((*job)->connection == kNoClient && is_forgotten(**job)) {
      const u32 uid = (*job)->peer.uid;
      uncount(**job);
      waiting_.erase(job);
      --users_.at(uid).requests;
      let_in_again(uid);
    }
    job = next;
  }
}

// It may have been at work when the key was added.
bool ControlServer::is_forgotten(const Job& job) const {
  if (!job.waiting || !job.refused_busy) return false;
  const auto added = added_.find(job.request.id.bytes);
  return added != added_.end() && added->second > job.begun_ns;
}

void ControlServer::uncount(const Job& job) {
  if (job.counted && --deadlines_ == 0) added_.clear();
}

// What cannot be submitted stays, and is tried again.
void ControlServer::look_at_waiting() {
  if (waiting_.empty()) return;
  const u64 now = env_.monotonic_ns();
  for (auto job = waiting_.begin(); job != waiting_.end();) {
    const auto next = std::next(job);
    if ((*job)->look_ns <= now) {
      JobList one;
      one.splice(one.begin(), waiting_, job);
      const u64 number = one.front()->connection;
      if (!or_no_memory([&] { jobs_.submit(one); }))
        waiting_.splice(next, one);
      else if (number != kNoClient)
        ++connections_.at(number).at_work;
    }
    job = next;
  }
}

void ControlServer::answer(u64 number, Connection& connection, std::vector<Message>&& messages) {
  User& user = users_.at(connection.peer.uid);
  if (connection.unsent.empty()) connection.moved_ns = env_.monotonic_ns();
  sending_.insert(number);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const u64 bytes = messages[i].size();
    connection.unsent.push_back({std::move(messages[i]), i + 1 == messages.size()});
    connection.unsent_bytes += bytes;
    user.unsent_bytes += bytes;
  }
  send_some(number, connection);
}

void ControlServer::send_some(u64 number, Connection& connection) {
  const u32 uid = connection.peer.uid;
  User& user = users_.at(uid);
  while (!connection.unsent.empty()) {
    const Unsent& next = connection.unsent.front();
    const auto sent = send_message(connection.fd(), next.message, -1, false);
    if (!sent) return close(number);
    if (!*sent) break;
    const u64 bytes = next.message.size();
    connection.unsent_bytes -= bytes;
    user.unsent_bytes -= bytes;
    connection.moved_ns = env_.monotonic_ns();
    if (next.last) {
      --connection.requests;
      --user.requests;
    }
    connection.unsent.pop_front();
  }
  if (connection.unsent.empty() && connection.closing) {
    if (!connection.unread) return close(number);
    // To close it now would take the answer away from who has not read it yet.
    ::shutdown(connection.fd(), SHUT_WR);
  } else if (connection.unsent.empty()) {
    sending_.erase(number);
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
