#pragma once
// The daemon's end of the control socket: who may connect, how much one user may have under way,
// and the order of things when clients are slow, silent, dead or hostile.
//
// One thread reads and writes all sockets and never waits for any; the verbs run in ControlJobs.
// A message that is none, or that brings a descriptor where none belongs, several, or one that is
// no key and no inode of this mount, is refused and its connection closed. Who does not take his
// answers gets no more requests read, and after a while no connection. A client that hangs up ends
// its waiting, but not a deadline that it has set: that is one of its user's requests until then,
// or until an add of the key takes it away. An ordinary user has a bounded number of connections,
// of requests under way and of bytes; root only what each connection has, and connections that
// nobody else can take.
//
// A descriptor that a client brings is closed by threads that nobody waits for (fd_closer.h), and
// so is the client's own socket, which may have some in its queue: what they belong to may never
// answer. No path of a client's is ever opened.

#include <array>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "mount/control_jobs.h"
#include "mount/control_socket.h"
#include "mount/fd_closer.h"

namespace latchkey::mount {

struct ControlOptions {
  u32 connections_max = 1024;
  u32 connections_of_root = 64;  // of those, that only root can have
  u32 connections_per_user = 64;
  u32 requests_per_connection = 8;
  u32 requests_per_user = 32;
  u64 unsent_bytes_per_user = 4 * kMiB;
  u64 unsent_ns_max = 10'000'000'000;  // then the connection is closed
  ControlJobs::Options jobs;
};

struct ControlFacts {
  u64 connections = 0;  // now
  u64 accepted = 0, turned_away = 0;
  u64 requests = 0, refused = 0;
};

class ControlServer {
 public:
  // `device`: st_dev of the mount; descriptors of its inodes are those that policies are about.
  // The service outlives the server.
  static Result<std::unique_ptr<ControlServer>> start(ListeningSocket&& socket, u64 device,
                                                      KeyService& service, Env& env,
                                                      const ControlOptions& options = {});
  ~ControlServer();  // stop()
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // Closes every connection; waits for verbs that have begun.
  void stop();
  const std::string& path() const { return socket_.path(); }
  ControlFacts facts() const;

 private:
  using Message = std::vector<std::byte>;
  struct Unsent {
    Message message;
    bool last = false;  // of an answer
  };
  struct Connection {
    FdCloser::Bag socket;
    int fd() const { return socket.fds().front(); }
    Peer peer;
    u32 requests = 0;  // under way, or answered and not taken
    u32 at_work = 0;   // of those, that ControlJobs has
    std::deque<Unsent> unsent;
    u64 unsent_bytes = 0;
    u64 moved_ns = 0;      // when something of it went
    u32 interest = 0;      // 0: it is not waited for
    bool closing = false;  // once all is sent
    bool unread = false;   // and something is left in the queue: once the client has gone
  };
  struct User {
    u32 connections = 0;
    u32 requests = 0;
    u64 unsent_bytes = 0;
    std::set<u64> held_back;  // connections that are not read from, for the user's sake
  };

  ControlServer(ListeningSocket&& socket, u64 device, KeyService& service, Env& env,
                const ControlOptions& options);
  Result<void> prepare();
  void loop();
  int pause_ms() const;
  void accept_some();
  void let_in(const Peer& peer, FdCloser::Bag&& socket);
  void pause_listening();
  void listen_again();
  void listen_to_new(u32 events);
  u64 descriptors_left() const;
  bool has_place(const Peer& peer);
  void handle(u64 number, u32 events);
  void read_one(u64 number, Connection& connection);
  void take(u64 number, Connection& connection, const Request& request, FdCloser::Bag& bag);
  bool take_descriptor(Job& job, FdCloser::Bag& bag, Error& refusal);
  void begin(u64 number, Connection& connection, JobList& job);
  void refuse(u64 number, Connection& connection, u32 sequence, const Error& error);
  void answer(u64 number, Connection& connection, std::vector<Message>&& messages);
  void send_some(u64 number, Connection& connection);
  void take_back();
  void take_one_back(JobList& job);
  void forget_deadlines(const crypto::KeyId& key);
  bool is_forgotten(const Job& job) const;
  void uncount(const Job& job);
  void look_at_waiting();
  void close_slow();
  void close(u64 number);
  static void hang_up(FdCloser::Bag& socket);
  bool may_read(const Connection& connection) const;
  void set_interest(u64 number, Connection& connection);
  void listen_to(u64 number, Connection& connection, bool reads);
  void let_in_again(u32 uid);

  ListeningSocket socket_;
  const u64 device_;
  Env& env_;
  const ControlOptions options_;
  const u64 descriptors_max_;  // of this process
  UniqueFd epoll_;
  UniqueFd wake_;  // an eventfd
  ControlJobs jobs_;
  FdCloser brought_, leaving_;  // what clients have brought; their sockets
  std::atomic<bool> stopping_{false};
  std::optional<Thread> thread_;

  // Of the loop's thread alone.
  u64 next_number_ = 2;
  u64 listen_at_ns_ = kForever;  // again; kForever: it does
  std::map<u64, Connection> connections_;
  std::map<u32, User> users_;
  std::set<u64> sending_;  // that have something unsent, or are to go and have not
  JobList waiting_;
  u64 deadlines_ = 0;  // of jobs, waiting or at work
  // When each was added last, while there are any.
  std::map<std::array<std::byte, 16>, u64> added_;
  // Written by the loop's thread, read by any.
  std::atomic<u64> open_{0}, accepted_{0}, turned_away_{0}, requests_{0}, refused_{0};
};

}  // namespace latchkey::mount
