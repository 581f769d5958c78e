// Goal: no descriptor that a client sends holds up the control of a store, wherever it ends up, and
// none is kept. Method: sockets that linger for a minute when they are closed, with data that their
// other end does not take, sent by one user in each place where a descriptor can be; another user
// asks meanwhile. Who sends one has a removal under way that waits, so that his next message is
// read only when the server's is the last descriptor. In the end the other ends go, and with them
// what was stuck.

#include <netinet/in.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "tests/support/control_fixture.h"
#include "tests/support/control_messages.h"

namespace latchkey::tests {
namespace {

using mount::UniqueFd;
using mount::Verb;
using std::chrono_literals::operator""s;

using Message = std::vector<std::byte>;

constexpr auto kLingers = 60s;
constexpr auto kPatience = 15s;  // of who asks meanwhile

// A pair of connected sockets of which one cannot be closed at once.
class Lingering {
 public:
  Lingering() {
    const UniqueFd listening(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* at = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(listening.get(), at, size), 0);
    EXPECT_EQ(::listen(listening.get(), 1), 0);
    EXPECT_EQ(::getsockname(listening.get(), at, &size), 0);
    socket_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(socket_.get(), at, size), 0);
    other_end_.reset(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const Message data(64 * kKiB);
    while (::send(socket_.get(), data.data(), data.size(), MSG_DONTWAIT) > 0) {
    }
    const linger lingers{.l_onoff = 1, .l_linger = static_cast<int>(kLingers.count())};
    EXPECT_EQ(::setsockopt(socket_.get(), SOL_SOCKET, SO_LINGER, &lingers, sizeof(lingers)), 0);
  }
  int fd() const { return socket_.get(); }
  // Once it was sent: the last descriptor is the server's.
  void forget() { socket_.reset(); }
  void leave() { other_end_.reset(); }

 private:
  UniqueFd socket_, other_end_;
};

std::size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

class ControlDescriptors : public ControlTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "clients of several uids need root";
    ControlTest::SetUp();
    id_ = vault();
    handle_ = open("/vault/open");
    mount::ControlOptions options;
    options.requests_per_connection = 1;
    serve(options);
    EXPECT_EQ(ask_as(kBob, about(Verb::key_list)).done.error, std::nullopt);
    before_ = open_descriptors();
  }
  void TearDown() override {
    if (server_) others_are_served();
    stuck_.clear();
    if (volume_) let_go_on();
    // One that is kept is seen each time; one that is opened for a moment is not.
    bool kept = server_ != nullptr;
    for (int i = 0; i < 1000 && kept; ++i) {
      kept = open_descriptors() > before_;
      if (kept) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_FALSE(kept) << "descriptors were kept";
    ControlTest::TearDown();
  }

  // While the server may be stuck nobody here waits for it for ever.
  mount::UniqueFd connected() {
    auto socket = mount::connect_at(path());
    EXPECT_TRUE(socket) << socket.error().what;
    const timeval patience{.tv_sec = kPatience.count(), .tv_usec = 0};
    EXPECT_EQ(::setsockopt(socket->get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
    return std::move(*socket);
  }
  // The error in the answer (none: 0); -1: the connection was closed; -2: nobody answers.
  static int answer_of(const UniqueFd& socket) {
    Message buffer(mount::kPartBytesMax);
    mount::Answer answer;
    for (bool last = false; !last;) {
      const ssize_t got = ::recv(socket.get(), buffer.data(), buffer.size(), 0);
      if (got <= 0) return got < 0 && errno == EAGAIN ? -2 : -1;
      last = mount::decode_part(Bytes(buffer).first(static_cast<std::size_t>(got)), answer)
                 .value_or(true);
    }
    return answer.done.error ? static_cast<int>(*answer.done.error) : 0;
  }
  void others_are_served() {
    as_user(kBob, [&] {
      const UniqueFd socket = connected();
      ASSERT_TRUE(send_with(socket.get(), mount::encode_request(about(Verb::key_list)), {}));
      EXPECT_EQ(answer_of(socket), 0);
    });
  }
  // On a connection that is not read from before let_go_on().
  void send_lingering(const UniqueFd& socket, const Message& message, std::size_t copies = 0) {
    const u64 requests = server_->facts().requests;
    const auto waits = removal_of(id_, {.mode = keymgr::RemovalMode::safe, .wait = true});
    ASSERT_TRUE(send_with(socket.get(), mount::encode_request(waits), {}));
    for (int i = 0; i < 1000 && server_->facts().requests == requests; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    Lingering& one = *stuck_.emplace_back(std::make_unique<Lingering>());
    std::vector<UniqueFd> more;
    std::vector<int> all{one.fd()};
    while (all.size() <= copies)
      all.push_back(more.emplace_back(::fcntl(one.fd(), F_DUPFD_CLOEXEC, 0)).get());
    ASSERT_TRUE(send_with(socket.get(), message, all));
    more.clear();
    one.forget();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(server_->facts().requests, requests + 1) << "it is to be unread";
  }
  void let_go_on() {
    if (std::exchange(held_, false)) close(handle_);
  }
  static int code(Errc error) { return static_cast<int>(error); }
  // What came behind the removal. Of several that waited one may have found the key gone.
  int second_answer_of(const UniqueFd& socket) {
    const int removal = answer_of(socket);
    EXPECT_TRUE(removal == 0 || removal == code(Errc::no_key)) << removal;
    return answer_of(socket);
  }

  std::size_t before_ = 0;
  crypto::KeyId id_;
  volume::HandleId handle_{};
  bool held_ = true;
  std::vector<std::unique_ptr<Lingering>> stuck_;
};

TEST_F(ControlDescriptors, one_that_does_not_belong_to_its_request_holds_up_nobody) {
  as_user(kAda, [&] {
    const UniqueFd socket = connected();
    send_lingering(socket, mount::encode_request(about(Verb::key_list)));
    let_go_on();
    EXPECT_EQ(second_answer_of(socket), code(Errc::malformed));
    EXPECT_EQ(answer_of(socket), -1);
  });
}

TEST_F(ControlDescriptors, one_of_a_message_that_is_none_holds_up_nobody) {
  as_user(kAda, [&] {
    const UniqueFd socket = connected();
    send_lingering(socket, Message(7));
    let_go_on();
    EXPECT_EQ(second_answer_of(socket), code(Errc::malformed));
  });
}

TEST_F(ControlDescriptors, as_many_as_the_kernel_takes_hold_up_nobody) {
  as_user(kAda, [&] {
    const UniqueFd socket = connected();
    mount::Request request = about(Verb::key_add);
    request.key_bytes = 64;
    send_lingering(socket, mount::encode_request(request), kDescriptorsMax - 1);
    let_go_on();
    EXPECT_EQ(second_answer_of(socket), code(Errc::malformed));
  });
}

TEST_F(ControlDescriptors, one_instead_of_a_key_or_an_inode_holds_up_nobody) {
  as_user(kAda, [&] {
    const std::array wanted{std::pair{Verb::key_add, Errc::invalid},
                            std::pair{Verb::policy_get, Errc::cross_key},
                            std::pair{Verb::policy_set, Errc::cross_key}};
    std::array<UniqueFd, wanted.size()> sockets;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      mount::Request request = about(wanted[i].first);
      request.key_bytes = 64;
      sockets[i] = connected();
      send_lingering(sockets[i], mount::encode_request(request));
    }
    let_go_on();
    for (std::size_t i = 0; i < wanted.size(); ++i)
      EXPECT_EQ(second_answer_of(sockets[i]), code(wanted[i].second));
  });
}

TEST_F(ControlDescriptors, one_that_is_left_unread_holds_up_nobody) {
  as_user(kAda, [&] { send_lingering(connected(), Message(7)); });
}

TEST_F(ControlDescriptors, one_of_a_client_that_is_turned_away_holds_up_nobody) {
  mount::ControlOptions options;
  options.connections_per_user = 1;
  serve(options);
  std::vector<std::thread> closing;
  as_user(kAda, [&] {
    const UniqueFd first = connected();
    ASSERT_TRUE(send_with(first.get(), mount::encode_request(about(Verb::key_list)), {}));
    EXPECT_EQ(answer_of(first), 0);
    for (int i = 0; i < 20; ++i) {  // some of them before they are let in
      const UniqueFd second = connected();
      Lingering& one = *stuck_.emplace_back(std::make_unique<Lingering>());
      (void)send_with(second.get(), Message(7), {{one.fd()}});
      closing.emplace_back([&one] { one.forget(); });
    }
  });
  others_are_served();
  for (const auto& one : stuck_) one->leave();
  for (std::thread& each : closing) each.join();
}

TEST_F(ControlDescriptors, whose_are_stuck_brings_no_more_and_is_told_so) {
  as_user(kAda, [&] {
    std::array<UniqueFd, 5> sockets;
    for (UniqueFd& socket : sockets) {
      socket = connected();
      send_lingering(socket, mount::encode_request(about(Verb::key_list)));
    }
    let_go_on();
    std::map<int, int> said;
    for (const UniqueFd& socket : sockets) {
      ++said[second_answer_of(socket)];
      EXPECT_EQ(answer_of(socket), -1);
    }
    EXPECT_EQ(said, (std::map<int, int>{{code(Errc::malformed), 4}, {code(Errc::busy), 1}}));
  });
  EXPECT_EQ(add_as(kAda, 7).done.error, Errc::busy);
  EXPECT_EQ(add_as(kBob, 7).done.error, std::nullopt) << "that is Ada's affair";
}

TEST_F(ControlDescriptors, clients_wait_while_there_is_no_descriptor_for_them) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit small{.rlim_cur = 200, .rlim_max = limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &small), 0);
  mount::ControlOptions options;
  options.connections_of_root = 0;
  serve(options);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);  // the server goes by what it was told
  std::vector<UniqueFd> held;
  for (const u32 uid : {kAda, kBob, kBob + 1})
    as_user(uid, [&] {
      for (int i = 0; i < 60; ++i) held.push_back(connected());
    });
  for (int i = 0; i < 500 && server_->facts().connections < 150; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(server_->facts().connections, 150U);
  EXPECT_EQ(server_->facts().turned_away, 0U);
  held.resize(20);
}

}  // namespace
}  // namespace latchkey::tests
